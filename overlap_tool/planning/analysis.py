"""The analysis of a model before it runs: overlaps, receptive fields, phases, arithmetic and memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Any

from torch import nn

from overlap_tool import checkpoint
from overlap_tool.errors import CopyError, OptionError
from overlap_tool.geometry import Overlap, padding_free_overlap
from overlap_tool.geometry.axis import exact_overlap
from overlap_tool.geometry.plan import whole
from overlap_tool.graph import segments
from overlap_tool.graph.copying import copied
from overlap_tool.graph.example import Example, Given, example_of
from overlap_tool.graph.network import Barrier, Input, Network, Op
from overlap_tool.graph.segments import Segment
from overlap_tool.graph.standing_in import put_back, stands_in
from overlap_tool.graph.trace import fitted
from overlap_tool.models.closed_loop import CausalReach
from overlap_tool.models.stages import Stage, Untiled, survey
from overlap_tool.planning.choose import Shape, plan_segments, plan_stage
from overlap_tool.planning.cost import full_bytes, macs, op_costs, store_sizes, working_bytes
from overlap_tool.planning.usual import as_taken, usual_size, usual_tile
from overlap_tool.settings import Schedule, Settings, Size, parse_bytes, told

SCHEMA = 1


@dataclass(frozen=True)
class Edges:
    """How far a tile reads beyond its own samples, on its four sides."""

    left: int
    right: int
    top: int
    bottom: int

    @staticmethod
    def of(rows: Overlap, columns: Overlap) -> Edges:
        return Edges(columns.before, columns.after, rows.before, rows.after)


@dataclass(frozen=True)
class StageOverlap:
    """The overlap of a stage, and the receptive field of its outputs. All are None where barriers make every
    output depend on the whole input."""

    left: int | None = None
    right: int | None = None
    top: int | None = None
    bottom: int | None = None
    receptive_field: int | None = None
    receptive_field_rows: int | None = None

    @staticmethod
    def of(network: Network) -> StageOverlap:
        if network.need_whole_maps:
            return StageOverlap()
        edges = Edges.of(network.rows.overlap, network.columns.overlap)
        fields = network.columns.receptive_field, network.rows.receptive_field
        return StageOverlap(edges.left, edges.right, edges.top, edges.bottom, *fields)


@dataclass(frozen=True)
class LayerReport:
    """One op of a stage, within its segment.

    `left`, `right`, `top` and `bottom` are the published recursion: the overlap at this op's input for an
    aligned tile of the segment's output. `exact` is the same, by the op's own map. `reach` is the overlap at
    the stage's input (or at a stored map, for later segments) for a tile of this op's output.
    """

    name: str
    op: str
    segment: int
    kernel: Size | None
    stride: Size | None
    scale: Fraction
    left: int
    right: int
    top: int
    bottom: int
    exact: Edges
    reach: Edges
    receptive_field: int
    receptive_field_rows: int
    period: int
    channels: int
    macs: int
    pointwise: bool
    inputs: tuple[str, ...]
    """The layers that feed it; the stage's own name stands for its input."""


@dataclass(frozen=True)
class TileReport:
    """What tiles of one size cost under one schedule. `tile` is in pixels of the image."""

    tile: int
    count: int
    peak_bytes: int
    macs: int
    overhead: float


@dataclass(frozen=True)
class Choice:
    """How `wrap` runs a stage, by default or within a memory budget.

    `cost` counts what every `TileReport` counts. `bounded_bytes` is what `wrap --memory` bounds: it includes
    the stage's whole input and output, and the copies of weights that the exact engine makes.
    """

    schedule: Schedule
    cost: TileReport
    bounded_bytes: int


@dataclass(frozen=True)
class MapReport:
    """A map that a segment reads, and how far its tiles read beyond their own part of it, in its samples."""

    name: str
    scale: Fraction
    left: int
    right: int
    top: int
    bottom: int


@dataclass(frozen=True)
class StoreReport:
    """A map that a segment stores for later ones or for its barriers."""

    name: str
    bytes: int


@dataclass(frozen=True)
class SegmentReport:
    """One pass. `store_bytes` is all that lies in stores at its end, including maps of earlier passes."""

    reads: tuple[MapReport, ...]
    stores: tuple[StoreReport, ...]
    barriers: tuple[str, ...]
    kept_whole: tuple[str, ...]
    """Parts that the model's own code runs on whole maps at the end of the pass."""
    whole_bytes: tuple[int, ...]
    """The peak memory of each of these parts, beside its input."""
    store_bytes: int


@dataclass(frozen=True, repr=False)
class StageReport:
    """One stage. Overlaps are in samples of its input, for a tile aligned to `period`.

    A stage with barriers runs in several passes. Each of its outputs depends on its whole input, so its own
    overlaps are None, and `segments` has those of each pass.
    """

    name: str
    input_scale: Fraction
    scale: Fraction
    left: int | None
    right: int | None
    top: int | None
    bottom: int | None
    receptive_field: int | None
    receptive_field_rows: int | None
    period: int
    period_rows: int
    padding_free_overlap: int | None
    status: str
    full_macs: int
    full_peak_bytes: int
    passes: int
    store_bytes: int
    holds_for: str
    """The inputs for which the report holds: "any size", or one size if the code asks for the size."""
    segments: tuple[SegmentReport, ...]
    layers: tuple[LayerReport, ...]
    tiles: tuple[TileReport, ...]
    """Independent tiles, each of which recomputes its halo."""
    streams: tuple[TileReport, ...]
    """Tiles in order, which compute nothing twice."""
    chosen: Choice

    def __repr__(self) -> str:
        overlap = self.overlap or f"{self.passes} passes"
        return f"StageReport({self.name}, {overlap}, {len(self.layers)} ops, {self.full_macs} MACs)"

    @property
    def overlap(self) -> Edges | None:
        """The overlap of a tile, if it is finite."""
        if self.left is None or self.right is None or self.top is None or self.bottom is None:
            return None
        return Edges(self.left, self.right, self.top, self.bottom)


@dataclass(frozen=True, repr=False)
class Analysis:
    """What `overlap-tool analyze` reports. `padded` is the image size rounded up to one that the
    model takes."""

    architecture: str
    arguments: Mapping[str, Any]
    weights_sha256: str
    image: Size
    padded: Size
    depth: int | None
    """The depth of a volume."""
    stages: tuple[StageReport, ...]
    untiled: tuple[Untiled, ...] = ()
    """Parts that stay whole, and why: no stage's figures include their maps."""
    causal: tuple[CausalReach, ...] = ()
    """For a closed loop: how far its networks read the reconstruction."""
    call: str = ""
    """How the model is called, if not with an image alone: a method and its arguments."""

    def __repr__(self) -> str:
        stages = ", ".join(stage.name for stage in self.stages)
        return f"Analysis({self.architecture}, {told(self.image, self.depth)}, stages {stages})"

    def _repr_html_(self) -> str:
        import overlap_tool

        return overlap_tool.report.fragment(self)


def analyze(
    model: nn.Module | str | os.PathLike[str],
    *,
    size: Size | tuple[int, int] | None = None,
    tiles: Sequence[int] | None = None,
    memory: int | str | None = None,
    stage: str | None = None,
    architecture: str | None = None,
    model_class: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    example: Given = None,
    method: str | None = None,
    trust: bool = False,
) -> Analysis:
    """Report the overlaps, phases, arithmetic and memory of a model, layer by layer.

    `model` is a module, the path of a checkpoint, or `zoo:NAME`; a wrapped model is analysed as it was before
    wrapping, and stays wrapped. `size` is the image's width and height, 3840x2160 by default; for sound, the
    width is its length. `tiles` are the sides of square tiles, in pixels of the image or samples of a sound;
    by default, some around the tile of `wrap`. `memory` ("2GiB", or bytes) is a budget for which a tile is
    chosen.

    `example` describes the call of a model that takes more than an image: positional arguments, `(image, 3)`,
    or keyword arguments, `{"qp": 21}`, which follow an image if none of them is a map; `method` names the
    method to call in place of `forward`. A wrapped model is called as it was wrapped.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    >>> stage = analyze(net.eval(), size=(640, 480)).stages[0]
    >>> stage.left, stage.right, stage.receptive_field
    (4, 3, 9)
    """
    asked = None if size is None else Size.of(size, "size")
    if tiles is not None and any(tile < 1 for tile in tiles):
        raise OptionError(f"tiles={list(tiles)}", "a tile is at least one pixel", "Use numbers from 1")
    bound = None if memory is None else parse_bytes(memory)
    if isinstance(model, nn.Module):
        loaded = checkpoint.Loaded.of(model)
    else:
        loaded = checkpoint.load_checkpoint(
            model, architecture=architecture, model_class=model_class, kwargs=kwargs, trust=trust
        )
    subject = _apart(model) if isinstance(model, nn.Module) else loaded.model
    call = Example.of(example, method)
    if call is None:
        call = example_of(model) if isinstance(model, nn.Module) else Example.of_data(loaded.example)
    found = survey(subject, only=stage, example=call)
    scaled = [(stage.network, stage.input_scale) for stage in found.stages]
    first, tile = found.stages[0].network, usual_tile(scaled)
    image = as_taken(asked or usual_size(scaled), first)
    padded = as_taken(Size(*(ceil(side / found.multiple) * found.multiple for side in image)), first)
    chosen = Settings(tile=tile if bound is None else None, memory=bound)
    sides = tiles or [tile.width * times // 2 for times in (1, 2, 4, 8)]
    return Analysis(
        architecture=loaded.architecture,
        arguments=dict(loaded.arguments),
        weights_sha256=loaded.weights_sha256,
        image=image,
        padded=padded,
        depth=first.depth,
        stages=tuple(_stage_report(part, padded, sides, chosen) for part in found.stages),
        untiled=found.untiled,
        causal=() if found.loop is None else found.loop.causal_reaches(),
        call="" if call is None else str(call),
    )


def _apart(model: nn.Module) -> nn.Module:
    """An unwrapped copy if the model can be copied: a survey sets eval mode and runs the model, which the
    caller may be using meanwhile."""
    try:
        own = copied(model)
    except CopyError as error:
        if stands_in(model):
            raise CopyError(
                error.where,
                f"is wrapped, and {error.reason}",
                "Call overlap_tool.unwrap(model, inplace=True)",
            ) from error
        return model
    put_back(own)
    return own


def _stage_report(stage: Stage, image: Size, tile_sides: Sequence[int], chosen: Settings) -> StageReport:
    height, width = (ceil(side * stage.input_scale) for side in (image.height, image.width))
    network = fitted(stage.network, 1, height, width)
    stage = replace(stage, network=network)
    scale = network.columns.scale
    overlap = StageOverlap.of(network)
    network.require(height, width)
    costs = op_costs(network)
    full = whole(network.rows, height), whole(network.columns, width)
    full_macs = macs(costs, *full)
    down = 1 / scale
    field = overlap.receptive_field
    parts = segments.cut(network)
    plan = plan_stage(_name(stage), network, stage.input_scale, Shape(1, height, width), chosen)
    passes = tuple(_segment_reports(network, parts, full[0].sizes, full[1].sizes, plan.part_bytes))
    return StageReport(
        name=_name(stage),
        input_scale=stage.input_scale,
        scale=scale,
        **asdict(overlap),
        period=network.columns.period,
        period_rows=network.rows.period,
        padding_free_overlap=(
            padding_free_overlap(field, int(down)) if field is not None and down.denominator == 1 else None
        ),
        status="proved" if all(op.rule.proved for op in network.ops if isinstance(op, Op)) else "probed",
        full_macs=full_macs,
        full_peak_bytes=full_bytes(costs, *full),
        passes=len(parts),
        store_bytes=max(part.store_bytes for part in passes),
        holds_for=str(as_taken(Size(width, height), network)) if network.asks else "any size",
        segments=passes,
        layers=tuple(_layer_reports(network, parts, full[0].sizes, full[1].sizes)),
        tiles=tuple(_tile_report(stage, "tiles", height, width, tile, full_macs) for tile in tile_sides),
        streams=tuple(_tile_report(stage, "stream", height, width, tile, full_macs) for tile in tile_sides),
        chosen=Choice(
            plan.schedule,
            _tile_report(stage, plan.schedule, height, width, plan.tile.width, full_macs),
            plan.peak_bytes,
        ),
    )


def _tile_report(
    stage: Stage, schedule: Schedule, height: int, width: int, tile: int, full_macs: int
) -> TileReport:
    size, side = Size(width, height), Size(tile, tile)
    planned = plan_segments(stage.network, stage.input_scale, size, schedule, side)
    parts = [part for part in planned if part.segment.computes]
    costs = [op_costs(part.segment.network) for part in parts]
    total = sum(macs(of_ops, part.rows, part.columns) for of_ops, part in zip(costs, parts, strict=True))
    return TileReport(
        tile=tile,
        count=sum(part.tiles for part in parts),
        peak_bytes=max(
            working_bytes(of_ops, part.rows, part.columns) for of_ops, part in zip(costs, parts, strict=True)
        ),
        macs=total,
        overhead=total / full_macs if full_macs else 1.0,
    )


def _name(stage: Stage) -> str:
    return stage.name or type(stage.module).__name__


def _segment_reports(
    network: Network,
    parts: Sequence[Segment],
    heights: Sequence[int],
    widths: Sequence[int],
    part_bytes: Mapping[str, int],
) -> Iterator[SegmentReport]:
    areas = [height * width for height, width in zip(heights, widths, strict=True)]
    for part, stored in zip(parts, store_sizes(network, parts, areas), strict=True):
        rows, columns = part.network.rows.overlaps(), part.network.columns.overlaps()
        reads = []
        for op, *overlaps in zip(part.network.ops, rows, columns, strict=True):
            if isinstance(op, Input):
                edges = Edges.of(*(Overlap(max(0, o.before), max(0, o.after)) for o in overlaps))
                reads.append(MapReport(op.name, op.scale[1], **asdict(edges)))
        names = {op.id: op.name for op in part.network.ops}
        yield SegmentReport(
            reads=tuple(reads),
            stores=tuple(StoreReport(names[map], 4 * stored[map]) for map in part.stored if map in stored),
            barriers=tuple(node.name for node in part.reduced if isinstance(node, Barrier)),
            kept_whole=tuple(node.name for node in part.reduced if isinstance(node, Op)),
            whole_bytes=tuple(part_bytes[node.id] for node in part.reduced if isinstance(node, Op)),
            store_bytes=4 * sum(stored.values()),
        )


def _layer_reports(
    network: Network, parts: Sequence[Segment], heights: Sequence[int], widths: Sequence[int]
) -> Iterator[LayerReport]:
    """The layers in the order in which they run, segment by segment."""
    for number, part in enumerate(parts):
        rows, columns = part.network.rows, part.network.columns
        row_reaches, column_reaches = rows.reaches(), columns.reaches()
        published = list(zip(rows.published_overlaps(), columns.published_overlaps(), strict=True))
        asked = list(zip(rows.overlaps(), columns.overlaps(), strict=True))
        names = {op.id: op.name for op in part.network.ops}
        for i, op in enumerate(part.network.ops):
            if isinstance(op, Input):
                continue
            place = network.index[op.id]
            yield LayerReport(
                name=op.name,
                op=op.kind,
                segment=number,
                kernel=_across_and_down(op.rule.kernel),
                stride=_across_and_down(op.rule.stride),
                scale=column_reaches[i].scale,
                **asdict(Edges.of(*published[i])),
                exact=Edges.of(
                    exact_overlap(op.rule.rows, asked[i][0]), exact_overlap(op.rule.columns, asked[i][1])
                ),
                reach=Edges.of(row_reaches[i].overlap, column_reaches[i].overlap),
                receptive_field=column_reaches[i].receptive_field,
                receptive_field_rows=row_reaches[i].receptive_field,
                period=column_reaches[i].period.input,
                channels=op.channels,
                macs=op.rule.macs * heights[place] * widths[place],
                pointwise=op.rule.local,
                inputs=tuple(names[source] for source in op.inputs),
            )


def _across_and_down(pair: tuple[int, int] | None) -> Size | None:
    """A rule's pair, which is (rows, columns) as in PyTorch, as (columns, rows)."""
    return None if pair is None else Size(*pair[::-1])
