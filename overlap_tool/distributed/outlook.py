"""The cost of a scene on workers: pieces, memory, recomputation and traffic, by the planner's integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import prod

import torch

from overlap_tool.distributed.cluster import AHEAD
from overlap_tool.distributed.models import file_bytes
from overlap_tool.distributed.pieces import (
    LEAST,
    SIDE,
    all_of,
    areas_read,
    arithmetic,
    cut_pass,
    enough,
    plans_of,
    refuse_other_networks,
    refuse_whole_maps,
)
from overlap_tool.errors import CodingError, OptionError
from overlap_tool.files.codec import Codec
from overlap_tool.files.coding import own_code
from overlap_tool.files.coding.entropy import areas_to_code, decoding_bytes, encoding_bytes, maps_coded
from overlap_tool.files.coding.waiting import codes_in_order
from overlap_tool.files.formats.container import Head
from overlap_tool.files.running import ALL, Block, plan_of
from overlap_tool.files.task import IN_MEMORY
from overlap_tool.geometry.walk import Area
from overlap_tool.planning.choose import SegmentPlan, Shape, plan_pass
from overlap_tool.planning.cost import op_costs, working_bytes
from overlap_tool.settings import Size
from overlap_tool.wrapping.retrofit import TiledForward

SIDES = (SIDE, SIDE // 2, SIDE // 4, SIDE // 8, SIDE // 16)

BESIDE = 6 << 20
"""What a codec's worker holds beside tensors and the model's file, measured as 2 to 9 MiB: plans, generated
code, and freed memory that the allocators of C and of Python keep. The reserve in `OF_PYTHON` covers the
rest."""

Cut = Callable[[int | None, int], list[Area]]
"""Cuts a map into pieces of a side in pixels of the image or, by default, of up to a side."""


@dataclass(frozen=True)
class Outlook:
    """One pass of a stage on workers."""

    stage: str
    side: int
    """The side of a piece, in pixels of the image."""
    pieces: int
    """The number of pieces, each of which is one task."""
    added: float
    """The share of its arithmetic that halos add."""
    busiest: float
    """The arithmetic of the busiest worker, relative to an even share."""
    memory: int
    """The most bytes that a worker holds for a piece, plus the model's file, and of a codec `BESIDE`; without
    Python, PyTorch and the model."""
    sent: int
    """The most bytes of inputs that are on their way at once, all of them held by the process that began."""
    read: int
    """The bytes of numbers that workers read."""
    made: int
    """The bytes of numbers that they return or write."""


@dataclass(frozen=True)
class CodingOutlook:
    """The band that takes most of the worker that codes it."""

    symbols: int
    memory: int
    """The most bytes that a worker holds meanwhile, as for a piece."""


SizeOfBand = tuple[int, int, bool]
"""The number of a band's symbols, the length of its string, and whether its map has others."""

BOTH = encoding_bytes, decoding_bytes


def coding_outlook(
    codec: Codec,
    size: Size,
    in_memory: int = IN_MEMORY,
    block: Block = ALL,
    head: Head | None = None,
    ways: Sequence[Callable[[int, int, bool], int]] = BOTH,
) -> CodingOutlook | None:
    """For a model whose latents workers code; a symbol takes a byte, unless a file's `head` says what."""
    maps = _maps_coded(codec, size)
    bands = _bands(codec, size, maps, in_memory, block) if head is None else _bands_of(maps, head)
    beside = file_bytes(codec.model) + BESIDE
    found = [CodingOutlook(band[0], beside + max(way(*band) for way in ways)) for band in bands]
    return max(found, key=lambda one: one.memory, default=None)


def _padded(codec: Codec, size: Size) -> tuple[int, int]:
    return size.height + -size.height % codec.multiple, size.width + -size.width % codec.multiple


def _maps_coded(codec: Codec, size: Size) -> list[tuple[int, ...] | None]:
    """The shapes of the maps that a model codes of an image, in order, by those of a small image; None for
    what has no rows and columns."""
    if not hasattr(codec.model, "compress") or codes_in_order(codec.model):
        return []
    side, found = 2 * codec.multiple, list[tuple[int, ...]]()
    trial = torch.full((1, codec.channels, side, side), 0.5, device=codec.device)
    with suppress(CodingError):  # which the run will raise
        found = maps_coded(codec.model, lambda: own_code.compress(codec, trial, []))
    height, width = _padded(codec, size)
    return [
        (1, shape[1], shape[2] * height // side, shape[3] * width // side) if len(shape) == 4 else None
        for shape in found
    ]


def _bands(
    codec: Codec, size: Size, maps: Sequence[tuple[int, ...] | None], limit: int, block: Block
) -> Iterator[SizeOfBand]:
    """A map is not in memory if a map that a stage returns at its scale is too large for it. Checkerboards
    have half the columns."""
    largest = dict[tuple[int, ...], int]()
    for stage in codec.stages:
        axes = stage.network.rows, stage.network.columns
        made = tuple(
            int(side * stage.input_scale * axis.scale)
            for side, axis in zip(_padded(codec, size), axes, strict=True)
        )
        largest[made] = max(largest.get(made, 0), stage.network.ops[-1].channels * prod(made))
    for shape in filter(None, maps):
        rows, columns = shape[2:]
        whole = next((largest[made] for made in sorted(largest) if made[0] == rows and made[1] >= columns), 0)
        areas = areas_to_code(shape, 4 * whole > limit, limit, block)
        symbols = shape[1] * max(area.size for area in areas)
        yield symbols, symbols, len(areas) > 1


def _bands_of(maps: Sequence[tuple[int, ...] | None], head: Head) -> Iterator[SizeOfBand]:
    """Those of a file, as far as they are known. If there are bands, it says whose its strings are. Otherwise
    rows tell the maps; of several maps with these rows, one of the n largest has no shorter a string than
    the n-th shortest. A file of other maps is refused when it is decoded."""
    if len(head.bands) != len(maps):
        return
    if head.order:
        for turn, bands in zip(head.order, head.bands, strict=True):
            if shape := maps[turn]:
                _, channels, height, width = shape
                for band in bands:
                    symbols = channels * min(band.rows or height, height) * min(band.columns or width, width)
                    yield symbols, band.length, len(bands) > 1
    elif not head.banded:
        strings = [band for bands in head.bands for band in bands]
        for rows in {band.rows for band in strings}:
            alike = sorted((prod(shape) for shape in maps if shape and shape[2] == rows), reverse=True)
            lengths = sorted(band.length for band in strings if band.rows == rows)
            if len(alike) == len(lengths):
                yield from ((most, least, False) for most, least in zip(alike, lengths, strict=True))


def outlook(
    codec: Codec,
    size: Size,
    workers: int,
    memory: int,
    *,
    only: str | None = None,
    piece: int | None = None,
) -> list[Outlook]:
    """Stage by stage, pass by pass, for pieces of this side, which have to fit a worker's memory, or for the
    largest that do."""
    if workers < 1:
        raise OptionError(f"workers={workers}", "is no number of workers", "Write `workers=4`")
    stages = [stage for stage in codec.stages if only in (None, stage.name)]
    if not stages:
        known = ", ".join(stage.name for stage in codec.stages) or "it has none"
        raise OptionError(f"stage={only!r}", f"is no stage of {codec.where}", f"Choose from: {known}")
    sent = hasattr(codec.model, "compress")
    found, model = [], file_bytes(codec.model) + sent * BESIDE
    for stage in stages:
        stage.network.require_image(codec.where)
        refuse_whole_maps(stage)
        height, width = _padded(codec, size)
        shape = Shape(1, int(height * stage.input_scale), int(width * stage.input_scale))
        refuse_other_networks(stage, shape)
        found += _of_stage(stage, shape, workers, memory, piece, not sent, model)
    return found


def _of_stage(
    stage: TiledForward,
    shape: Shape,
    workers: int,
    memory: int,
    piece: int | None,
    to_files: bool,
    model: int,
) -> list[Outlook]:
    plan = plan_of(stage, shape)
    several = len(plan.segments) > 1
    how = to_files, int(to_files or stage.input_scale == 1)
    made = []
    for number, each in enumerate(plan.segments):
        if not each.segment.computes:
            continue
        name = f"{stage.name}, pass {number + 1}" if several else stage.name
        cut = partial(cut_pass, stage, each)
        side = fitting_side(stage, shape, each, cut, memory - model, *how, piece)
        if piece is None:
            side = enough(cut, LEAST, side)
        areas = cut(side)
        takes = model + memory_of_a_piece(stage, shape, each, areas, *how)
        made.append(_of_pass(name, stage, shape, each, side, areas, workers, takes, how))
    return made


def fitting_side(
    stage: TiledForward,
    shape: Shape,
    each: SegmentPlan,
    cut: Cut,
    memory: int,
    to_files: bool,
    sample: int,
    piece: int | None = None,
) -> int:
    """The side of the largest piece of a pass that fits a worker's memory: `piece`, if it is given."""
    for side in SIDES if piece is None else [piece]:
        takes = memory_of_a_piece(stage, shape, each, cut(side, SIDE), to_files, sample)
        if takes <= memory:
            return side
    smaller = "wrap the model with a smaller tile" if piece is None else "write a smaller `piece`"
    raise OptionError(
        stage.name,
        f"a piece of {side} pixels a side takes {takes} bytes of a worker, which has {memory} for it",
        f"Give workers more memory, or {smaller}",
    )


def memory_of_a_piece(
    stage: TiledForward,
    shape: Shape,
    each: SegmentPlan,
    areas: Sequence[Area],
    to_files: bool,
    sample: int,
) -> int:
    """What the largest piece of a pass takes of a worker: the executor's memory, the piece's inputs, of which
    others wait, and its output.

    A worker reads the stage's input from a file in bands of tiles, of which it has two, with so many bytes
    for a `sample`, or 0 if it is sent the input. Outputs that it writes `to_files` are two bands of tiles.
    """
    plan = plan_of(stage, shape)
    largest = max(areas, key=lambda area: area.size)
    part = plan_pass(stage.input_scale, plan, each, largest)
    network, first = part.segment.network, plan.network.ops[0].id
    working = working_bytes(op_costs(network), part.rows, part.columns, shape.itemsize, 1, packed=True)
    places = [network.index[map] for map in network.wanted]
    picture = 2 * sample * _band(part, network.index[first]) if first in network.index else 0
    if to_files:
        held = sum(2 * _band(part, place) for place in places)
    else:
        held = AHEAD * _sent(part, first if sample else None) + sum(
            network.ops[at].channels * part.rows.extents[at].length * part.columns.extents[at].length
            for at in places
        )
    return picture + shape.itemsize * held + working


def _of_pass(
    name: str,
    stage: TiledForward,
    shape: Shape,
    each: SegmentPlan,
    side: int,
    areas: Sequence[Area],
    workers: int,
    takes: int,
    how: tuple[bool, int],
) -> Outlook:
    plan, network, (to_files, sample) = plan_of(stage, shape), each.segment.network, how
    plans = plans_of(stage, plan, each, areas)
    costs = arithmetic(each, plans.values())
    together = sum(arithmetic(each, [plan_pass(stage.input_scale, plan, each, all_of(areas))]))
    sizes = zip(network.ops, each.rows.sizes, each.columns.sizes, strict=True)
    made = sum(op.channels * height * width for op, height, width in sizes if op.id in network.wanted)
    sent = [_sent(part, plan.network.ops[0].id if sample else None) for part in plans.values()]
    turns = [sum(costs[worker::workers]) for worker in range(min(workers, len(costs)))]
    return Outlook(
        stage=name,
        side=side,
        pieces=len(areas),
        added=sum(costs) / max(1, together) - 1,
        busiest=max(turns) * workers / max(1, sum(costs)),
        memory=takes,
        sent=0 if to_files else AHEAD * workers * max(sent) * shape.itemsize,
        read=sum(_sent(part, None) for part in plans.values()) * shape.itemsize,
        made=made * shape.itemsize,
    )


def _sent(part: SegmentPlan, file: str | None) -> int:
    """The numbers of all maps that a piece of a pass reads, but for one that is read from a file."""
    network, read = part.segment.network, areas_read(part)
    return sum(network.ops[network.index[map]].channels * read[map].size for map in read if map != file)


def _band(part: SegmentPlan, place: int) -> int:
    """The numbers of a map in the rows of one tile, over all columns of the piece."""
    rows = max(run.first.hold[place].length for run in part.rows.runs)
    return part.segment.network.ops[place].channels * rows * part.columns.extents[place].length
