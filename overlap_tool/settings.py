"""User settings: sizes, schedules, stores, engines. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from overlap_tool.errors import OptionError

Schedule = Literal["stream", "tiles"]
"""Tiles in order, which compute nothing twice ("stream"), or tiles that are independent of one another
("tiles")."""

Order = Literal["wavefront", "raster"]
"""The order in which a closed loop computes its blocks: all that are ready at once ("wavefront"), or row by
row."""

Store = Literal["auto", "device", "host", "disk"]
"""Where whole maps live."""

Engine = Literal["exact", "stock"]
"""Kernels whose bits do not depend on a tensor's shape ("exact"), or PyTorch's own ("stock")."""

SampleType = Literal["uint8", "uint16", "int16", "float32"]
"""The sample type of a written file. Integers span 0 to 1; signed ones are for sound and span -1 to 1."""

ReportFormat = Literal["rich", "json", "markdown", "dot"]

Value = TypeVar("Value")

SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
ORDERS: tuple[Order, ...] = get_args(Order)


class Size(NamedTuple):
    """Width and height, in pixels or samples. A plain `(width, height)` is accepted wherever a size is."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @staticmethod
    def of(given: tuple[int, int], parameter: str) -> Size:
        """An image's size; raises an error that names the parameter if it is no size."""
        if not _is_size(given):
            raise OptionError(
                f"{parameter}={_plain(given)!r}", "is not the size of an image", "Use two numbers from 1"
            )
        return Size(*given)

    @staticmethod
    def of_tile(given: int | tuple[int, ...], parameter: str) -> Size:
        """A tile's size; one number stands for both sides."""
        sides = given if isinstance(given, tuple | list) else (given, given)
        if not _is_size(sides):
            raise OptionError(
                f"{parameter}={_plain(given)!r}",
                "a tile's sides are whole numbers of pixels, at least 1",
                f"Write `{parameter}=256`, or `{parameter}=(1024, 256)` for a width and a height",
            )
        return Size(*sides)


USUAL_SIZE = Size(3840, 2160)
"""The image size where none is given."""


class Samples(Size):
    """The size of a sound: its height is 1."""

    def __str__(self) -> str:
        return f"{self.width} samples"


def told(size: Size, depth: int | None = None) -> str:
    """A size in words, with the depth of a volume."""
    if isinstance(size, Samples):
        return f"sound of {size}"
    return f"an image of {size}" if depth is None else f"a volume of {size}x{depth}"


@dataclass(frozen=True)
class Settings:
    """How a model is wrapped.

    `tile` is in pixels of the image; with `memory`, in bytes, tile and schedule are chosen for each input.
    `uniform` tiles all have one shape at every op, including those at the border of the image.
    """

    tile: Size | None = None
    memory: int | None = None
    schedule: Schedule | Order | None = None
    store: Store = "auto"
    batch: int = 1
    engine: Engine = "exact"
    uniform: bool = False

    def __post_init__(self) -> None:
        if (self.tile is None) == (self.memory is None):
            raise OptionError("`tile`, `memory`", "give one of the two", "A tile of 256 suits most machines")
        if self.tile is not None and not isinstance(self.tile, Samples):
            # two numbers, as in a file; `wrap` turns a single number into two
            sides = self.tile if isinstance(self.tile, tuple | list) else (self.tile,)
            object.__setattr__(self, "tile", Size.of_tile(tuple(sides), "tile"))
        if self.memory is not None and not _is_count(self.memory):
            raise OptionError(f"memory={self.memory!r}", "is not a number of bytes", 'Write `memory="2GiB"`')
        if self.schedule is not None and self.schedule not in (*SCHEDULES, *ORDERS):
            raise OptionError(
                f"schedule={self.schedule!r}",
                "is not one",
                f"Use {' or '.join(SCHEDULES)}; for a closed loop, {' or '.join(ORDERS)}",
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

    def __str__(self) -> str:
        tiles = f"tiles of {self.tile}" if self.tile else f"tiles within {self.memory} bytes"
        uniform = "uniform" if self.uniform else ""
        stock = "stock kernels" if self.engine == "stock" else ""
        return ", ".join(part for part in (tiles, self.schedule, uniform, stock) if part)


@contextmanager
def inside(variable: ContextVar[Value], value: Value) -> Iterator[Any]:
    """Inside the block, this thread's variable has this value, which is yielded."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


def parse_bytes(memory: int | str) -> int:
    """Parse `2GiB`, `500 MB` or `1048576` as a number of bytes."""
    if not isinstance(memory, str):
        return memory
    number, unit = memory.strip(), ""
    while number and not (number[-1].isdigit() or number[-1] == "."):
        number, unit = number[:-1], number[-1] + unit
    factors = {"": 1, "b": 1}
    for power, letter in enumerate("kmgt", start=1):
        factors |= {letter: 1024**power, f"{letter}ib": 1024**power, f"{letter}b": 1000**power}
    try:
        value = float(number) * factors[unit.strip().lower()]
    except (ValueError, KeyError) as error:
        raise OptionError(
            f"memory={memory!r}", "is not an amount of memory", 'Write `memory="2GiB"`'
        ) from error
    return int(value)


def _is_size(given: object) -> bool:
    return isinstance(given, tuple | list) and len(given) == 2 and all(map(_is_count, given))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _plain(given: object) -> object:
    """A tile as a user writes it: one number if both sides are equal."""
    sides = tuple(given) if isinstance(given, tuple | list) else (given,)
    return sides[0] if len(set(map(repr, sides))) == 1 else sides
