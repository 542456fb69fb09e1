"""From what the user asks for, a tile or a memory budget, to the plan of a stage for one size of input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil
from typing import Literal, get_args

from overlap_tool.errors import OptionError
from overlap_tool.geometry import Padding, Span
from overlap_tool.geometry.axis import Axis, Lengths
from overlap_tool.geometry.plan import AxisPlan, cut, stream, stream_cuts, tiles, together, uniform
from overlap_tool.geometry.walk import Area
from overlap_tool.graph import segments
from overlap_tool.graph.network import Barrier, Input, Network
from overlap_tool.graph.segments import Segment
from overlap_tool.graph.trace import fitted
from overlap_tool.models.closed_loop import ORDERS, Order
from overlap_tool.planning.cost import OpCost, macs, op_costs, store_sizes, weights, working_bytes

Schedule = Literal["stream", "tiles"]
Store = Literal["auto", "device", "host", "disk"]
Engine = Literal["exact", "stock"]

SIDES = (512, 384, 256, 192, 128, 96, 64, 32, 16)
"""The tiles that a budget chooses from, in pixels. Larger ones gain nothing: `stream` recomputes nothing
whatever the tile, and beyond these a tile's maps fall out of the caches."""


class BudgetError(OptionError):
    """A budget of memory that is too small for a stage; `least` bytes are enough for it."""

    def __init__(self, stage: str, shape: Shape, memory: int, least: int) -> None:
        super().__init__(
            f"memory={memory}",
            f"{stage} needs at least {least} bytes for an input of {shape.columns}x{shape.rows}, "
            "its input and output included",
            f'Give `memory="{ceil(least / 2**20)}MiB"`, or a smaller image',
        )
        self.least = least


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    `tile` is width and height in pixels of the image; with `memory`, in bytes, tile and schedule are chosen
    for each input. The `engine` is what computes: kernels whose bits no shape changes, or the library's.
    `uniform` tiles have one shape at every op, those at the border of the image, too.
    """

    tile: tuple[int, int] | None = None
    memory: int | None = None
    schedule: Schedule | Order | None = None
    store: Store = "auto"
    batch: int = 1
    engine: Engine = "exact"
    uniform: bool = False

    def __post_init__(self) -> None:
        if (self.tile is None) == (self.memory is None):
            raise OptionError("`tile`, `memory`", "give one of the two", "A tile of 256 suits most machines")
        sides = self.tile if isinstance(self.tile, tuple) else (self.tile,)
        tile = sides[0] if len(set(map(repr, sides))) == 1 else self.tile
        if self.tile is not None and not (len(sides) == 2 and all(map(_is_count, sides))):
            raise OptionError(
                f"tile={tile!r}",
                "a tile's sides are whole numbers of pixels, at least 1",
                "Write `tile=256`, or `tile=(1024, 256)` for a width and a height",
            )
        if self.memory is not None and not _is_count(self.memory):
            raise OptionError(f"memory={self.memory!r}", "is not a number of bytes", 'Write `memory="2GiB"`')
        if self.schedule is not None and self.schedule not in (*get_args(Schedule), *ORDERS):
            raise OptionError(
                f"schedule={self.schedule!r}",
                "is not one",
                f"Use {' or '.join(get_args(Schedule))}; for a closed loop, {' or '.join(ORDERS)}",
            )
        if self.store not in get_args(Store):
            raise OptionError(f"store={self.store!r}", "is not one", f"Use {', '.join(get_args(Store))}")
        if self.engine not in get_args(Engine):
            raise OptionError(f"engine={self.engine!r}", "is not one", f"Use {' or '.join(get_args(Engine))}")
        if not _is_count(self.batch):
            raise OptionError(f"batch={self.batch!r}", "is not a number of tiles", "Use a number from 1")
        if self.batch > 1 and self.schedule != "tiles":
            raise OptionError(
                f"batch={self.batch!r}", "tiles of a stream depend on one another", 'Add `schedule="tiles"`'
            )
        if self.uniform and self.schedule != "tiles":
            raise OptionError(
                "uniform=True",
                "tiles of a stream differ in shape, since each computes what those before it did not",
                'Add `schedule="tiles"`, or leave `uniform` out',
            )


@dataclass(frozen=True)
class BarrierBands:
    """How a barrier reads its map of this height and width: so many rows at a time."""

    height: int
    width: int
    rows: int

    @property
    def spans(self) -> tuple[Span, ...]:
        return cut(self.height, self.rows)


@dataclass(frozen=True)
class SegmentPlan:
    """How one segment of a stage runs: the steps of its pass, and how each of its barriers reads its map."""

    segment: Segment
    rows: AxisPlan
    columns: AxisPlan
    bands: Mapping[str, BarrierBands]

    @property
    def tiles(self) -> int:
        return len(self.rows.steps) * len(self.columns.steps) if self.segment.computes else 0


@dataclass(frozen=True)
class StagePlan:
    """How a stage runs on one size of input, and what that takes: one pass, and one more after every barrier.

    `working_bytes` is what the executor holds at once, with the copy of the weights that the exact engine
    reads; `store_bytes` the most that lies in stores between segments. `peak_bytes` is the largest sum of
    these, the stage's whole input, and its output from the last pass on; stores on disk take no memory.
    """

    schedule: Schedule
    tile: tuple[int, int]
    segments: tuple[SegmentPlan, ...]
    macs: int
    working_bytes: int
    store_bytes: int
    peak_bytes: int
    network: Network = field(repr=False)
    """The stage's, for inputs of this size."""
    uniform: bool = False

    @property
    def tiles(self) -> int:
        return sum(part.tiles for part in self.segments)

    @property
    def output_size(self) -> tuple[int, int]:
        """The height and width of the stage's output."""
        return self.segments[-1].rows.sizes[-1], self.segments[-1].columns.sizes[-1]


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
    candidates: tuple[Schedule, ...] = tuple(
        schedule for schedule in get_args(Schedule) if settings.schedule in (None, schedule)
    )
    if settings.tile is not None:
        return _plan(network, input_scale, shape, candidates[0], settings.tile, settings)
    assert settings.memory is not None
    least: int | None = None
    for schedule in candidates:
        for side in SIDES:
            plan = _plan(network, input_scale, shape, schedule, (side, side), settings)
            if plan.peak_bytes <= settings.memory:
                return plan
            least = plan.peak_bytes if least is None else min(least, plan.peak_bytes)
    assert least is not None
    raise BudgetError(name, shape, settings.memory, least)


def parse_bytes(text: str) -> int:
    """`2GiB`, `500 MB` or `1048576` as bytes."""
    number, unit = text.strip(), ""
    while number and not (number[-1].isdigit() or number[-1] == "."):
        number, unit = number[:-1], number[-1] + unit
    factors = {"": 1, "b": 1}
    for power, letter in enumerate("kmgt", start=1):
        factors |= {letter: 1024**power, f"{letter}ib": 1024**power, f"{letter}b": 1000**power}
    try:
        value = float(number) * factors[unit.strip().lower()]
    except (ValueError, KeyError) as error:
        raise OptionError(
            f"memory={text!r}", "is not an amount of memory", 'Write `memory="2GiB"`'
        ) from error
    return int(value)


def require_uniform(network: Network) -> None:
    """Refuse the first op of which no tiles of one shape can be made."""
    for op in network.ops:
        if isinstance(op, Input) or op.rule.local:
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
    tile: tuple[int, int],
    settings: Settings,
) -> StagePlan:
    if settings.uniform:
        require_uniform(network)
    size = shape.rows, shape.columns
    parts = plan_segments(network, input_scale, size, schedule, tile, settings.uniform)
    costs = [op_costs(part.segment.network) for part in parts]
    memory = _memory(network, parts, costs, shape, schedule, settings)
    return StagePlan(
        schedule=schedule,
        tile=tile,
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
        uniform=settings.uniform,
    )


def plan_segments(
    network: Network,
    input_scale: Fraction,
    size: tuple[int, int],
    schedule: Schedule,
    tile: tuple[int, int],
    one_shape: bool = False,
) -> tuple[SegmentPlan, ...]:
    """The steps of every pass on an input of this height and width, by tiles of one width and height in
    pixels of the image."""
    axes = (network.rows, network.columns)
    sizes = [dict(zip(network.index, axis.sizes(n), strict=True)) for axis, n in zip(axes, size, strict=True)]
    scales = [[reach.scale for reach in axis.reaches()] for axis in axes] if network.barriers else []
    sides = tile[::-1]

    def axis_plan(part: Network, dim: int) -> AxisPlan:
        axis = (part.rows, part.columns)[dim]
        lengths = [sizes[dim][op.id] for op in part.ops if isinstance(op, Input)]
        return _axis_plan(axis, lengths, _side(sides[dim], input_scale, axis), schedule, one_shape)

    def bands(source: str) -> BarrierBands:
        """As many rows as hold about a tile's samples, over the whole width."""
        height, width = (of_axis[source] for of_axis in sizes)
        down, across = (
            max(1, int(side * input_scale * of_axis[network.index[source]]))
            for side, of_axis in zip(sides, scales, strict=True)
        )
        return BarrierBands(height, width, min(height, max(1, down * across // width)))

    return tuple(
        SegmentPlan(
            segment,
            axis_plan(segment.network, 0),
            axis_plan(segment.network, 1),
            {op.id: bands(op.source) for op in segment.reduced if isinstance(op, Barrier)},
        )
        for segment in segments.cut(network)
    )


def plan_part(
    network: Network, input_scale: Fraction, plan: StagePlan, area: Area
) -> tuple[SegmentPlan, ...]:
    """The passes of a plan, the last one for a rectangle of the stage's output alone. Those before it are for
    summaries of whole maps, and compute these."""
    *before, last = plan.segments
    axes = last.segment.network.rows, last.segment.network.columns

    def axis_plan(dim: int, whole: AxisPlan, part: Span) -> AxisPlan:
        axis = axes[dim]
        if part == (0, whole.sizes[-1]):
            return whole
        lengths = [size for op, size in zip(axis.ops, whole.sizes, strict=True) if op.geometry is None]
        side = _side(plan.tile[1 - dim], input_scale, axis)
        return _axis_plan(axis, lengths, side, plan.schedule, plan.uniform, part)

    rows, columns = axis_plan(0, last.rows, area.rows), axis_plan(1, last.columns, area.columns)
    return (*before, replace(last, rows=rows, columns=columns))


def _side(pixels: int, input_scale: Fraction, axis: Axis) -> int:
    """Of a tile, in samples of what an axis gives."""
    return max(1, int(pixels * input_scale * axis.scale))


def _axis_plan(
    axis: Axis, n: Lengths, tile: int, schedule: Schedule, one_shape: bool, part: Span | None = None
) -> AxisPlan:
    """For all outputs, or `part` of them."""
    sizes = axis.sizes(n)
    if one_shape:
        plan = uniform(axis, n, tile)
        return plan if part is None else AxisPlan(sizes, tuple(s for s in plan.steps if s.computes(part)))
    start, stop = (0, sizes[-1]) if part is None else together(axis, sizes, part)
    if schedule == "stream":
        return stream(axis, n, stream_cuts(axis, stop, tile, start))
    return tiles(axis, n, [span.shift(start) for span in cut(stop - start, tile)])


@dataclass(frozen=True)
class _Moment:
    """What is alive at once in a pass, or while one of its barriers reads: bytes."""

    working: int
    stores: int
    ends: int


def _memory(
    network: Network,
    parts: Sequence[SegmentPlan],
    costs: Sequence[Sequence[OpCost]],
    shape: Shape,
    schedule: Schedule,
    settings: Settings,
) -> list[_Moment]:
    """Pass by pass, in the order in which a stage runs."""
    exact = settings.engine == "exact"
    item = shape.images * shape.itemsize
    heights, widths = network.rows.sizes(shape.rows), network.columns.sizes(shape.columns)
    areas = [height * width for height, width in zip(heights, widths, strict=True)]
    stored = store_sizes(network, [part.segment for part in parts], areas)
    given, output = (network.ops[place].channels * areas[place] for place in (0, -1))
    values = packed = 0
    moments = []
    for number, (part, of_ops) in enumerate(zip(parts, costs, strict=True)):
        segment = part.segment
        stores = item * sum(stored[number].values())
        ends = item * (given + (output if number == len(parts) - 1 else 0))
        if segment.computes:
            at_once = shape.images * (min(settings.batch, part.tiles) if schedule == "tiles" else 1)
            working = working_bytes(of_ops, part.rows, part.columns, shape.itemsize, at_once, exact)
            moments.append(_Moment(working + item * values + shape.itemsize * packed, stores, ends))
        packed += sum(cost.weights for cost in of_ops) if exact else 0
        for op in segment.reduced:
            if isinstance(op, Barrier):
                bands = part.bands[op.id]
                read = bands.rows * bands.width * (1 + op.rule.scratch) + 2 * op.rule.profile * bands.height
                working = item * (network.ops[network.index[op.source]].channels * read + values)
                moments.append(_Moment(working + shape.itemsize * packed, stores, ends))
            elif exact:
                packed += weights(op)
            values += op.numbers
    return moments


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
