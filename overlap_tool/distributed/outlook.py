"""The cost of a scene on workers: pieces, memory, recomputation and traffic, by the planner's integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from overlap_tool.distributed.models import file_bytes
from overlap_tool.distributed.pieces import (
    SIDE,
    all_of,
    areas_read,
    arithmetic,
    cut_pass,
    plans_of,
    refuse_other_networks,
    refuse_whole_maps,
)
from overlap_tool.errors import OptionError
from overlap_tool.files.codec import Codec
from overlap_tool.files.coding.entropy import coding_bytes, symbols_at_once
from overlap_tool.files.coding.waiting import codes_in_order
from overlap_tool.files.running import plan_of
from overlap_tool.files.task import IN_MEMORY
from overlap_tool.geometry.walk import Area
from overlap_tool.planning.choose import SegmentPlan, Shape, plan_pass
from overlap_tool.planning.cost import op_costs, working_bytes
from overlap_tool.settings import Size
from overlap_tool.wrapping.retrofit import TiledForward

SIDES = (SIDE, SIDE // 2, SIDE // 4, SIDE // 8, SIDE // 16)


OF_A_CODEC = 12 << 20
"""What a codec's worker holds beside tensors and the model's file, as measured: plans, and freed memory that
the allocators of C and of Python keep."""

ON_ITS_WAY = Fraction(1, 2)
"""The part of a result that is left when all of the next one is made, as measured: it is fetched
meanwhile."""


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
    """The most bytes that a worker holds for a piece, plus the model's file, and of a codec `OF_A_CODEC`;
    without Python, PyTorch and the model."""
    read: int
    """The bytes of numbers that workers read."""
    made: int
    """The bytes of numbers that they return or write."""


@dataclass(frozen=True)
class CodingOutlook:
    """The largest band that a worker codes."""

    symbols: int
    """At most: the model's code may take latents in several parts."""
    memory: int
    """The most bytes that a worker holds meanwhile, as for a piece."""


def coding_outlook(
    codec: Codec, size: Size, in_memory: int = IN_MEMORY, string: int | None = None
) -> CodingOutlook | None:
    """For a model whose latents workers code; `string` is the length of the band's string in bytes, by
    default a byte for each symbol."""
    networks = [stage.network for stage in codec.stages if stage.input_scale == 1]
    if not networks or not hasattr(codec.model, "compress") or codes_in_order(codec.model):
        return None
    network = networks[0]
    sides = (side + -side % codec.multiple for side in size[::-1])
    axes = network.rows, network.columns
    height, width = (axis.sizes(side)[-1] for axis, side in zip(axes, sides, strict=True))
    symbols = symbols_at_once(in_memory, network.ops[-1].channels, height, width)
    takes = coding_bytes(symbols, symbols if string is None else string)
    return CodingOutlook(symbols, file_bytes(codec.model) + OF_A_CODEC + takes)


def outlook(
    codec: Codec,
    size: Size,
    workers: int,
    memory: int,
    *,
    only: str | None = None,
    piece: int | None = None,
) -> list[Outlook]:
    """Stage by stage, pass by pass, for pieces of this side, or the largest that fit a worker's memory."""
    if workers < 1:
        raise OptionError(f"workers={workers}", "is no number of workers", "Write `workers=4`")
    stages = [stage for stage in codec.stages if only in (None, stage.name)]
    if not stages:
        known = ", ".join(stage.name for stage in codec.stages) or "it has none"
        raise OptionError(f"stage={only!r}", f"is no stage of {codec.where}", f"Choose from: {known}")
    sent = hasattr(codec.model, "compress")
    found, model = [], file_bytes(codec.model) + sent * OF_A_CODEC
    for stage in stages:
        stage.network.require_image(codec.where)
        refuse_whole_maps(stage)
        height, width = (side + -side % codec.multiple for side in size[::-1])
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
    made = []
    for number, each in enumerate(plan.segments):
        if not each.segment.computes:
            continue
        name = f"{stage.name}, pass {number + 1}" if several else stage.name
        sides = (piece,) if piece else SIDES
        side, least = fitting_side(stage, shape, each, memory - model, to_files, sides)
        takes = model + least
        if takes > memory:
            raise OptionError(
                f"memory={memory}",
                f"a piece of {side} pixels a side of {name} takes {takes} bytes of a worker",
                "Give workers more, or wrap the model with a smaller tile",
            )
        areas = cut_pass(stage, each, side)
        made.append(_of_pass(name, stage, shape, each, side, areas, workers, takes))
    return made


def fitting_side(
    stage: TiledForward,
    shape: Shape,
    each: SegmentPlan,
    memory: int,
    to_files: bool,
    sides: Sequence[int] = SIDES,
) -> tuple[int, int]:
    """The side and memory of the largest piece of a pass that fits a worker's memory, or else of the
    smallest.

    Pieces of a codec are sent, those of a network are written `to_files`.
    """
    plan = plan_of(stage, shape)
    for side in sides:
        largest = max(cut_pass(stage, each, side), key=lambda area: area.size)
        takes = _memory(plan_pass(stage.input_scale, plan, each, largest), shape, to_files)
        if takes <= memory:
            break
    return side, takes


def _of_pass(
    name: str,
    stage: TiledForward,
    shape: Shape,
    each: SegmentPlan,
    side: int,
    areas: Sequence[Area],
    workers: int,
    takes: int,
) -> Outlook:
    plan, network = plan_of(stage, shape), each.segment.network
    plans = plans_of(stage, plan, each, areas)
    costs = arithmetic(each, plans.values())
    together = sum(arithmetic(each, [plan_pass(stage.input_scale, plan, each, all_of(areas))]))
    sizes = zip(network.ops, each.rows.sizes, each.columns.sizes, strict=True)
    made = sum(op.channels * height * width for op, height, width in sizes if op.id in network.wanted)
    turns = [sum(costs[worker::workers]) for worker in range(min(workers, len(costs)))]
    return Outlook(
        stage=name,
        side=side,
        pieces=len(areas),
        added=sum(costs) / max(1, together) - 1,
        busiest=max(turns) * workers / max(1, sum(costs)),
        memory=takes,
        read=sum(_read(part) for part in plans.values()) * shape.itemsize,
        made=made * shape.itemsize,
    )


def _read(part: SegmentPlan) -> int:
    """The numbers of all maps that a piece of a pass reads."""
    network = part.segment.network
    return sum(network.ops[network.index[map]].channels * area.size for map, area in areas_read(part).items())


def _memory(part: SegmentPlan, shape: Shape, to_files: bool) -> int:
    """The memory of a worker: the executor's, its input, its output, and what is left of the one before.
    Written to files, outputs are two bands of tiles."""
    network = part.segment.network
    working = working_bytes(op_costs(network), part.rows, part.columns, shape.itemsize, 1, packed=True)
    places = [network.index[map] for map in network.wanted]
    if to_files:
        held = sum(2 * _band(part, place) for place in places)
    else:
        outputs = (
            network.ops[at].channels * part.rows.extents[at].length * part.columns.extents[at].length
            for at in places
        )
        held = _read(part) + ceil((1 + ON_ITS_WAY) * sum(outputs))
    return shape.itemsize * held + working


def _band(part: SegmentPlan, place: int) -> int:
    """The numbers of a map in the rows of one tile, over all columns of the piece."""
    rows = max(run.first.compute[place].length for run in part.rows.runs)
    return part.segment.network.ops[place].channels * rows * part.columns.extents[place].length
