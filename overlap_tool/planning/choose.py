"""From a tile or a memory budget to the plan of a stage, for one size of input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil, prod

from overlap_tool.errors import OptionError
from overlap_tool.geometry import Padding, Span
from overlap_tool.geometry.axis import Axis, Lengths
from overlap_tool.geometry.plan import AxisPlan, cut, stream, stream_cuts, tiles, together, uniform
from overlap_tool.geometry.walk import Area
from overlap_tool.graph import segments
from overlap_tool.graph.network import Barrier, Input, Network, Op, Summary
from overlap_tool.graph.segments import Segment
from overlap_tool.graph.trace import fitted
from overlap_tool.planning.cost import OpCost, macs, op_costs, store_sizes, weights, working_bytes
from overlap_tool.planning.usual import as_taken, square
from overlap_tool.planning.wholes import bytes_of_parts
from overlap_tool.rules.placing import placed
from overlap_tool.settings import ORDERS, SCHEDULES, Order, Schedule, Settings, Size, told

SIDES = (512, 384, 256, 192, 128, 96, 64, 32, 16)
"""The tiles that a memory budget chooses from, in pixels. Larger ones gain nothing: `stream` recomputes
nothing whatever the tile, and a larger tile's maps no longer fit the caches."""


class BudgetError(OptionError):
    """A memory budget that is too small for a stage; `least` bytes would be enough."""

    def __init__(self, stage: str, given: str, memory: int, least: int) -> None:
        super().__init__(
            f"memory={memory}",
            f"{stage} needs at least {least} bytes for {given}, its input and output included",
            f'Give `memory="{ceil(least / 2**20)}MiB"`, or a smaller input',
        )
        self.least = least


@dataclass(frozen=True)
class BarrierBands:
    """The bands in which a barrier reads its map: `rows` rows, or `columns` columns of a single row."""

    height: int
    width: int
    rows: int
    columns: int | None = None

    @property
    def at_once(self) -> int:
        """The number of positions in a band."""
        return self.rows * (self.columns or self.width)

    @property
    def areas(self) -> tuple[Area, ...]:
        across = cut(self.width, self.columns or self.width)
        return tuple(Area(down, part) for down in cut(self.height, self.rows) for part in across)


@dataclass(frozen=True)
class SegmentPlan:
    """How one segment runs: the steps of its pass, and the bands in which its barriers read their maps."""

    segment: Segment
    rows: AxisPlan
    columns: AxisPlan
    bands: Mapping[str, BarrierBands]
    wholes: Mapping[str, Size] = field(default_factory=dict)
    """The sizes of the maps on which parts are kept whole, by the parts' ids."""

    @property
    def tiles(self) -> int:
        return self.rows.count * self.columns.count if self.segment.computes else 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a stage or a closed loop runs on one size of input, and the memory and arithmetic that takes.

    `working_bytes` is the most memory in use at once, including the copies of weights that the exact engine
    makes; `store_bytes` is the most that lies in stores between passes. `peak_bytes` is the largest sum of
    both, the whole input and, during the last pass, the output; stores on disk take no memory.
    """

    schedule: Schedule | Order
    tile: Size
    tiles: int
    """The number of tiles in all passes."""
    passes: int = 1
    macs: int
    working_bytes: int
    store_bytes: int = 0
    peak_bytes: int
    uniform: bool = False


@dataclass(frozen=True, kw_only=True)
class StagePlan(Plan):
    """How a stage runs: one pass, and one more after every barrier."""

    schedule: Schedule
    segments: tuple[SegmentPlan, ...] = field(repr=False)
    network: Network = field(repr=False)
    """The stage's network for inputs of this size."""
    part_bytes: Mapping[str, int] = field(default_factory=dict)
    """The peak memory of each part that is kept whole, beside its input, by the part's id."""

    @property
    def output_size(self) -> Size:
        """The size of the stage's output."""
        return self.size_of(self.network.output)

    def size_of(self, map: str) -> Size:
        """The size of a map that the stage computes."""
        part = next(part for part in self.segments if map in part.segment.network.index)
        place = part.segment.network.index[map]
        return Size(part.columns.sizes[place], part.rows.sizes[place])


class Plans(dict[str, Plan]):
    """The plans of a model for images of one size, by the names of its stages."""

    def __init__(self, of: str, size: Size, plans: Mapping[str, Plan], depth: int | None = None) -> None:
        super().__init__(plans)
        self.of = of
        self.size = size
        self.depth = depth
        """The depth of a volume."""

    def _repr_html_(self) -> str:
        import overlap_tool

        return overlap_tool.report.fragment(self)


@dataclass(frozen=True)
class Shape:
    """The input of a stage: images, rows, columns, and bytes per number."""

    images: int
    rows: int
    columns: int
    itemsize: int = 4


def plan_stage(
    name: str, network: Network, input_scale: Fraction, shape: Shape, settings: Settings
) -> StagePlan:
    """The plan for one input; with a memory budget, the largest stream that fits, else the largest tiles."""
    if settings.schedule in ORDERS:
        raise OptionError(
            f"schedule={settings.schedule!r}",
            f"is for codecs that are closed loops, and {name} is part of none",
            "Use stream or tiles",
        )
    network = fitted(network, shape.images, shape.rows, shape.columns)
    network.require(shape.rows, shape.columns)
    size = Size(shape.columns, shape.rows)
    of_parts = bytes_of_parts(network, shape.images, size, settings.engine == "exact")
    candidates: tuple[Schedule, ...] = tuple(
        schedule for schedule in SCHEDULES if settings.schedule in (None, schedule)
    )
    if settings.tile is not None:
        return _plan(network, input_scale, shape, candidates[0], settings.tile, settings, of_parts)
    assert settings.memory is not None
    least: int | None = None
    for schedule in candidates:
        for side in SIDES:
            chosen = square(side, [(network, input_scale)])
            plan = _plan(network, input_scale, shape, schedule, chosen, settings, of_parts)
            if plan.peak_bytes <= settings.memory:
                return plan
            least = plan.peak_bytes if least is None else min(least, plan.peak_bytes)
    assert least is not None
    raise BudgetError(name, told(as_taken(size, network), network.depth), settings.memory, least)


def require_uniform(network: Network) -> None:
    """Raise for the first op that cannot be computed in tiles of one shape."""
    for op in network.ops:
        if isinstance(op, Input) or op.rule.local or op.rule.whole:
            continue
        reason = ""
        if Padding.CIRCULAR in (op.rule.rows.padding, op.rule.columns.padding):
            reason = "takes samples from the other end of the map, so that each tile would hold all of it"
        elif not op.rule.uniform:
            reason = "has a rule that is not said to compute tiles that go beyond the image"
        if reason:
            raise OptionError(f"`uniform=True` at {op.name} ({op.kind})", reason, "Leave `uniform` out")


def _plan(
    network: Network,
    input_scale: Fraction,
    shape: Shape,
    schedule: Schedule,
    tile: Size,
    settings: Settings,
    of_parts: Mapping[str, int],
) -> StagePlan:
    if settings.uniform:
        require_uniform(network)
    size = Size(shape.columns, shape.rows)
    parts = plan_segments(network, input_scale, size, schedule, tile, settings.uniform)
    costs = [op_costs(part.segment.network) for part in parts]
    memory = _memory(network, parts, costs, shape, schedule, settings, of_parts)
    return StagePlan(
        schedule=schedule,
        tile=as_taken(tile, network),
        tiles=sum(part.tiles for part in parts),
        passes=len(parts),
        segments=parts,
        macs=shape.images
        * sum(macs(c, part.rows, part.columns) for c, part in zip(costs, parts, strict=True)),
        working_bytes=max(moment.working for moment in memory),
        store_bytes=max(moment.stores for moment in memory),
        peak_bytes=max(
            moment.working + moment.ends + (moment.stores if settings.store != "disk" else 0)
            for moment in memory
        ),
        network=network,
        part_bytes=of_parts,
        uniform=settings.uniform,
    )


def plan_segments(
    network: Network,
    input_scale: Fraction,
    size: Size,
    schedule: Schedule,
    tile: Size,
    one_shape: bool = False,
) -> tuple[SegmentPlan, ...]:
    """The steps of every pass on an input of this size, for one tile size in pixels of the image."""
    axes = (network.rows, network.columns)
    sizes = [
        dict(zip(network.index, axis.sizes(n), strict=True)) for axis, n in zip(axes, size[::-1], strict=True)
    ]
    scales = [[reach.scale for reach in axis.reaches()] for axis in axes] if network.need_whole_maps else []
    sides = tile[::-1]

    def axis_plan(part: Network, dim: int) -> AxisPlan:
        axis = (part.rows, part.columns)[dim]
        lengths = [sizes[dim][op.id] for op in part.ops if isinstance(op, Input)]
        return _axis_plan(axis, lengths, _side(sides[dim], input_scale, axis), schedule, one_shape)

    def bands(barrier: Barrier) -> BarrierBands:
        """Bands of about a tile's samples: whole rows of an image, or a stretch of a sound."""
        height, width = (of_axis[barrier.source] for of_axis in sizes)
        down, across = (
            max(1, int(side * input_scale * of_axis[network.index[barrier.source]]))
            for side, of_axis in zip(sides, scales, strict=True)
        )
        if network.takes_sound and barrier.rule.by_columns:
            return BarrierBands(height, width, height, min(width, across))
        return BarrierBands(height, width, min(height, max(1, down * across // width)))

    return tuple(
        SegmentPlan(
            segment,
            axis_plan(segment.network, 0),
            axis_plan(segment.network, 1),
            {op.id: bands(op) for op in segment.reduced if isinstance(op, Barrier)},
            {op.id: Size(*(of[op.id] for of in sizes[::-1])) for op in segment.reduced if isinstance(op, Op)},
        )
        for segment in segments.cut(network)
    )


def plan_part(input_scale: Fraction, plan: StagePlan, area: Area) -> tuple[SegmentPlan, ...]:
    """The passes of a plan, with the last one restricted to a rectangle of the stage's output.

    Earlier passes stay whole, since they compute summaries of whole maps.
    """
    *before, last = plan.segments
    return (*before, plan_pass(input_scale, plan, last, area))


def plan_pass(input_scale: Fraction, plan: StagePlan, each: SegmentPlan, area: Area) -> SegmentPlan:
    """One of the passes, restricted to a rectangle of its last map; other wanted maps are restricted to the
    same place."""
    rows, columns = (plan_axis(input_scale, plan, each, axis, area[axis]) for axis in (0, 1))
    return replace(each, rows=rows, columns=columns)


def plan_axis(input_scale: Fraction, plan: StagePlan, each: SegmentPlan, number: int, part: Span) -> AxisPlan:
    """One axis of such a pass: 0 for rows, 1 for columns."""
    axis = (each.segment.network.rows, each.segment.network.columns)[number]
    whole = (each.rows, each.columns)[number]
    if part == (0, whole.sizes[-1]):
        return whole
    lengths = [size for op, size in zip(axis.ops, whole.sizes, strict=True) if op.geometry is None]
    side = _side(plan.tile[1 - number], input_scale, axis)
    return _axis_plan(axis, lengths, side, plan.schedule, plan.uniform, part)


def _side(pixels: int, input_scale: Fraction, axis: Axis) -> int:
    """The side of a tile in samples of the axis's output."""
    return max(1, int(pixels * input_scale * axis.scale))


def _axis_plan(
    axis: Axis, n: Lengths, tile: int, schedule: Schedule, one_shape: bool, part: Span | None = None
) -> AxisPlan:
    """The plan of one axis, for all outputs or for a `part` of them."""
    sizes = axis.sizes(n)
    if one_shape:
        plan = uniform(axis, n, tile)
        return plan if part is None else AxisPlan.of(sizes, (s for s in plan.steps if s.computes(part)))
    start, stop = (0, sizes[-1]) if part is None else together(axis, sizes, part)
    if schedule == "stream":
        return stream(axis, n, stream_cuts(axis, stop, tile, start))
    return tiles(axis, n, [span.shift(start) for span in cut(stop - start, tile)])


@dataclass(frozen=True)
class _Moment:
    """The bytes in use at one moment: in a pass, or while one of its barriers reads."""

    working: int
    stores: int
    ends: int


def _placed_numbers(network: Network) -> int:
    """How many numbers the position-dependent values have, such as coordinates: they are computed whole."""
    wholes = {op.args[0] for op in network.ops if isinstance(op, Op) and op.target is placed}
    return sum(prod(whole.shape) for whole in wholes if not whole.summary)


def _memory(
    network: Network,
    parts: Sequence[SegmentPlan],
    costs: Sequence[Sequence[OpCost]],
    shape: Shape,
    schedule: Schedule,
    settings: Settings,
    of_parts: Mapping[str, int],
) -> list[_Moment]:
    """The moments of every pass, in the order in which a stage runs."""
    exact = settings.engine == "exact"
    item = shape.images * shape.itemsize
    heights, widths = network.rows.sizes(shape.rows), network.columns.sizes(shape.columns)
    areas = [height * width for height, width in zip(heights, widths, strict=True)]
    stored = store_sizes(network, [part.segment for part in parts], areas)
    sizes = {op.id: op.channels * area for op, area in zip(network.ops, areas, strict=True)}
    given = sizes[network.ops[0].id]
    returned = 0
    values, packed = _placed_numbers(network), 0
    moments = []
    for number, (part, of_ops) in enumerate(zip(parts, costs, strict=True)):
        segment = part.segment
        stores = item * sum(stored[number].values())
        returned += sum(
            sizes[map] for map in network.wanted if isinstance(segment.network.nodes.get(map), Op)
        )
        ends = item * (given + returned)
        if segment.computes:
            at_once = shape.images * (min(settings.batch, part.tiles) if schedule == "tiles" else 1)
            working = working_bytes(of_ops, part.rows, part.columns, shape.itemsize, at_once, exact)
            moments.append(_Moment(working + item * values + shape.itemsize * packed, stores, ends))
        packed += sum(cost.weights for cost in of_ops) if exact else 0
        for op in segment.reduced:
            if isinstance(op, Barrier):
                bands = part.bands[op.id]
                read = bands.at_once * (1 + op.rule.scratch) + 2 * op.rule.profile * bands.height
                working = item * (network.ops[network.index[op.source]].channels * read + values)
                moments.append(_Moment(working + shape.itemsize * packed, stores, ends))
                values += op.numbers
            elif isinstance(op, Summary):
                packed += weights(op) if exact else 0
                values += op.numbers
            else:
                working = item * (sizes[op.inputs[0]] + values) + of_parts[op.id]
                moments.append(_Moment(working + shape.itemsize * packed, stores, ends))
                packed += weights(op) if exact else 0
    return moments
