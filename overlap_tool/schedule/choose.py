"""From what the user asks for, a tile or a memory budget, to the plan of a stage for one size of input."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from overlap_tool.axis import Axis
from overlap_tool.errors import OptionError
from overlap_tool.geometry import Padding
from overlap_tool.network import Input, Network
from overlap_tool.schedule.cost import macs, op_costs, working_bytes
from overlap_tool.schedule.plan import AxisPlan, cut, stream, tiles, uniform

Schedule = Literal["stream", "tiles"]
Store = Literal["auto", "device", "host", "disk"]
Engine = Literal["exact", "stock"]

SIDES = (512, 384, 256, 192, 128, 96, 64, 32, 16)
"""The tiles that a budget chooses from, in pixels. Larger ones gain nothing: `stream` recomputes nothing
whatever the tile, and beyond these a tile's maps fall out of the caches."""


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    `tile` is width and height in pixels of the image; with `memory`, in bytes, tile and schedule are chosen
    for each input. The `engine` is what computes: kernels whose bits no shape changes, or the library's.
    `uniform` tiles have one shape at every op, those at the border of the image, too.
    """

    tile: tuple[int, int] | None = None
    memory: int | None = None
    schedule: Schedule | None = None
    store: Store = "auto"
    batch: int = 1
    engine: Engine = "exact"
    uniform: bool = False

    def __post_init__(self) -> None:
        if (self.tile is None) == (self.memory is None):
            raise OptionError("--tile, --memory", "give one of the two", "A tile of 256 suits most machines")
        sides = self.tile if isinstance(self.tile, tuple) else (self.tile,)
        if self.tile is not None and not (len(sides) == 2 and all(map(_is_count, sides))):
            raise OptionError(
                f"--tile {'x'.join(map(str, sides))}",
                "a tile's sides are whole numbers of pixels, at least 1",
                "Write --tile 256, or --tile 1024x256 for a width and a height",
            )
        if self.memory is not None and not _is_count(self.memory):
            raise OptionError(f"--memory {self.memory}", "is not a number of bytes", "Write --memory 2GiB")
        if self.schedule is not None and self.schedule not in get_args(Schedule):
            raise OptionError(f"--schedule {self.schedule}", "is not one", "Use stream or tiles")
        if self.store not in get_args(Store):
            raise OptionError(f"--store {self.store}", "is not one", f"Use {', '.join(get_args(Store))}")
        if self.engine not in get_args(Engine):
            raise OptionError(f"--engine {self.engine}", "is not one", f"Use {' or '.join(get_args(Engine))}")
        if not _is_count(self.batch):
            raise OptionError(f"batch {self.batch}", "is not a number of tiles", "Use a number from 1")
        if self.batch > 1 and self.schedule != "tiles":
            raise OptionError(
                f"batch {self.batch}", "tiles of a stream depend on one another", 'Add schedule="tiles"'
            )
        if self.uniform and self.schedule != "tiles":
            raise OptionError(
                "--uniform",
                "tiles of a stream differ in shape, since each computes what those before it did not",
                "Add --schedule tiles, or leave --uniform out",
            )


@dataclass(frozen=True)
class StagePlan:
    """How a stage runs on one size of input, and what that takes.

    `working_bytes` is what the executor holds at once, with the copy of the weights that the exact engine
    reads; `peak_bytes` adds the stage's whole input and output.
    """

    schedule: Schedule
    tile: tuple[int, int]
    rows: AxisPlan
    columns: AxisPlan
    macs: int
    working_bytes: int
    peak_bytes: int
    uniform: bool = False

    @property
    def tiles(self) -> int:
        return len(self.rows.steps) * len(self.columns.steps)


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
    if settings.tile is not None:
        return _plan(network, input_scale, shape, settings.schedule or "stream", settings.tile, settings)
    assert settings.memory is not None
    candidates: tuple[Schedule, ...] = (settings.schedule,) if settings.schedule else ("stream", "tiles")
    least: int | None = None
    for schedule in candidates:
        for side in SIDES:
            plan = _plan(network, input_scale, shape, schedule, (side, side), settings)
            if plan.peak_bytes <= settings.memory:
                return plan
            least = plan.peak_bytes if least is None else min(least, plan.peak_bytes)
    raise OptionError(
        f"--memory {settings.memory}",
        f"{name} needs at least {least} bytes for an input of {shape.columns}x{shape.rows}, "
        "its input and output included",
        f"Use --memory {least} or more",
    )


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
        raise OptionError(f"--memory {text}", "is not an amount of memory", "Write --memory 2GiB") from error
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
            raise OptionError(f"--uniform at {op.name} ({op.kind})", reason, "Leave --uniform out")


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
    rows, columns = (
        _axis_plan(axis, n, max(1, int(side * input_scale * axis.scale)), schedule, settings.uniform)
        for axis, n, side in (
            (network.rows, shape.rows, tile[1]),
            (network.columns, shape.columns, tile[0]),
        )
    )
    costs = op_costs(network)
    at_once = shape.images * (
        min(settings.batch, len(rows.steps) * len(columns.steps)) if schedule == "tiles" else 1
    )
    working = working_bytes(costs, rows, columns, shape.itemsize, at_once, settings.engine == "exact")
    ends = sum(costs[op].channels * rows.sizes[op] * columns.sizes[op] for op in (0, -1))
    return StagePlan(
        schedule=schedule,
        tile=tile,
        rows=rows,
        columns=columns,
        macs=shape.images * macs(costs, rows, columns),
        working_bytes=working,
        peak_bytes=working + shape.images * ends * shape.itemsize,
        uniform=settings.uniform,
    )


def _axis_plan(axis: Axis, n: int, tile: int, schedule: Schedule, one_shape: bool) -> AxisPlan:
    if one_shape:
        return uniform(axis, n, tile)
    cuts = cut(axis.sizes(n)[-1], tile)
    return stream(axis, n, cuts) if schedule == "stream" else tiles(axis, n, cuts)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
