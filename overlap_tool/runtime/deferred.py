"""Numbers that are read piece by piece: the content of a map that is not in memory.

They never change. A map that is written to is given new numbers, made from the old ones and from what was
written, and nothing is computed or copied before it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from overlap_tool.errors import ExactnessError
from overlap_tool.geometry import Span
from overlap_tool.geometry.walk import Area
from overlap_tool.runtime.stores import Sink

POSITIONS_AT_ONCE = 1 << 13
"""Positions of a derived map computed at once: intermediate results may have many more channels."""

ROWS_AT_ONCE = 64
"""Rows read at once of a map that is wanted in order and can only be read."""


class Numbers(Protocol):
    """The numbers of a map, by rows and columns. The other axes are always whole."""

    def read(self, rows: Span, columns: Span) -> Tensor:
        """A piece, which the reader must not write to."""
        ...


@runtime_checkable
class Poured(Numbers, Protocol):
    """Numbers that cost less to compute in order than piece by piece."""

    def pour(self, sink: Sink, area: Area) -> None:
        """All of an area and nothing beyond it, in order."""
        ...


def pour(numbers: Numbers, area: Area, sink: Sink) -> None:
    """Write an area of a map to a sink, in order."""
    if isinstance(numbers, Computed) and (source := numbers.only_source) is not None:
        pour(source, area, _Through(numbers, sink))
    elif isinstance(numbers, Poured):
        numbers.pour(sink, area)
    else:
        for row in range(*area.rows, ROWS_AT_ONCE):
            rows = Span(row, min(row + ROWS_AT_ONCE, area.rows.stop))
            sink.write(rows, area.columns, numbers.read(rows, area.columns))


def sources(numbers: Numbers, area: Area) -> Iterator[tuple[Numbers, Area]]:
    """The numbers behind all deferred functions, and the area of each that is read for this area."""
    match numbers:
        case Computed():
            for operand in numbers.operands:
                yield from sources(operand, area)
        case Excerpt():
            region = numbers.region
            picked = Area(_covered(region.rows, area.rows), _covered(region.columns, area.columns))
            yield from sources(numbers.whole, picked)
        case Overwritten():
            yield from sources(numbers.before, area)
            down, across = (
                _met(lines, span)[0]
                for lines, span in zip((numbers.region.rows, numbers.region.columns), area, strict=True)
            )
            if not (down.empty or across.empty):
                yield from sources(numbers.written, Area(down, across))
        case _:
            yield numbers, area


class OnDemand:
    """Numbers that are computed in rectangles when they are read; the last ones are cached, up to `limit`
    bytes."""

    def __init__(
        self, areas: Sequence[Area], make: Callable[[int], Tensor], limit: int, of: Any = None
    ) -> None:
        self.areas = areas
        self.make = make
        self.limit = limit
        self.of = of
        """What they are derived from: other numbers, or what was decoded."""
        self.made: dict[int, Tensor] = {}
        """The cached rectangles by number, the one read last at the end."""

    def read(self, rows: Span, columns: Span) -> Tensor:
        whole: Tensor | None = None
        for number, area in enumerate(self.areas):
            down, across = rows.within(area.rows), columns.within(area.columns)
            if down.empty or across.empty:
                continue
            made = self._made(number)
            if whole is None:
                whole = made.new_empty((*made.shape[:-2], rows.length, columns.length))
            whole[..., _shifted(down, rows.start), _shifted(across, columns.start)] = made[
                ..., _shifted(down, area.rows.start), _shifted(across, area.columns.start)
            ]
        if whole is None:  # nothing but its type is asked for
            made = self._made(0)
            return made.new_empty((*made.shape[:-2], rows.length, columns.length))
        return whole

    def _made(self, number: int) -> Tensor:
        made = self.made.pop(number, None)
        self.made[number] = self.make(number) if made is None else made
        size = sum(one.numel() * one.element_size() for one in self.made.values())
        while size > self.limit and len(self.made) > 1:
            oldest = self.made.pop(next(iter(self.made)))
            size -= oldest.numel() * oldest.element_size()
        return self.made[number]


def _shifted(span: Span, start: int) -> slice:
    return slice(span.start - start, span.stop - start)


@dataclass(frozen=True)
class InMemory:
    """A tensor. `behind` is the number of its axes from the rows on."""

    values: Tensor
    behind: int = 2

    def read(self, rows: Span, columns: Span) -> Tensor:
        down = self.values.ndim - self.behind
        return self.values.narrow(down, rows.start, rows.length).narrow(
            down + 1, columns.start, columns.length
        )


@dataclass(frozen=True)
class Argument:
    """A tensor beside maps: as large as they are, or broadcast over rows, columns or both."""

    values: Tensor
    version: int
    behind: int | None
    """As in a map; None if it has no rows and columns, as weights have none."""

    def read(self, rows: Span, columns: Span) -> Tensor:
        if self.values._version != self.version:
            raise ExactnessError(
                "a tensor that a lazily computed map reads", "it was changed in place", "Clone it before"
            )
        piece = self.values
        if self.behind is not None and piece.ndim >= self.behind:
            down = piece.ndim - self.behind
            for axis, span in ((down, rows), (down + 1, columns)):
                if piece.shape[axis] != 1:
                    piece = piece.narrow(axis, span.start, span.length)
        return piece


@dataclass(frozen=True)
class Computed:
    """The result of an elementwise function of its operands."""

    function: Callable[..., Tensor]
    operands: tuple[Numbers, ...]
    behind: int = 2

    def read(self, rows: Span, columns: Span) -> Tensor:
        at_once = max(1, POSITIONS_AT_ONCE // max(1, columns.length))
        pieces = [
            self.function(*(operand.read(part, columns) for operand in self.operands))
            for part in (
                Span(row, min(row + at_once, rows.stop)) for row in range(rows.start, rows.stop, at_once)
            )
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -self.behind)

    @property
    def only_source(self) -> Numbers | None:
        """Its single source map, if it has one and otherwise only tensors."""
        sources = [operand for operand in self.operands if not isinstance(operand, Argument)]
        return sources[0] if len(sources) == 1 else None


@dataclass(frozen=True)
class _Through:
    """A sink that applies a function to what passes through."""

    computed: Computed
    sink: Sink

    def write(self, rows: Span, columns: Span, values: Tensor) -> None:
        pieces = [
            operand.read(rows, columns) if isinstance(operand, Argument) else values
            for operand in self.computed.operands
        ]
        self.sink.write(rows, columns, self.computed.function(*pieces))


@dataclass(frozen=True)
class Region:
    """What an index selects from a map: a number or a range for each axis, ranges for rows and columns."""

    index: tuple[int | range, ...]
    at: int
    """The axis of the rows."""

    @property
    def rows(self) -> range:
        return self._lines(self.at)

    @property
    def columns(self) -> range:
        return self._lines(self.at + 1)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(part) for part in self.index if isinstance(part, range))

    @property
    def behind(self) -> int:
        """How many axes the selection has from the rows on."""
        return sum(isinstance(part, range) for part in self.index[self.at :])

    def within(self, rows: slice, columns: slice) -> tuple[int | slice, ...]:
        """The index for a piece in which the region has these rows and columns."""
        index = [part if isinstance(part, int) else _slice(part) for part in self.index]
        index[self.at], index[self.at + 1] = rows, columns
        return tuple(index)

    def misses(self, other: Region) -> bool:
        """Whether the two are known to be disjoint, on an axis other than rows and columns."""
        pairs = [(_range(one), _range(two)) for one, two in zip(self.index, other.index, strict=True)]
        del pairs[self.at : self.at + 2]
        return any(max(one.start, two.start) >= min(one.stop, two.stop) for one, two in pairs)

    def _lines(self, axis: int) -> range:
        lines = self.index[axis]
        assert isinstance(lines, range)
        return lines


@dataclass(frozen=True)
class Excerpt:
    """A region of a map."""

    whole: Numbers
    region: Region

    def read(self, rows: Span, columns: Span) -> Tensor:
        down, across = self.region.rows, self.region.columns
        piece = self.whole.read(_covered(down, rows), _covered(across, columns))
        return piece[self.region.within(slice(None, None, down.step), slice(None, None, across.step))]


@dataclass(frozen=True)
class Overwritten:
    """A map of which a region was written; `written` has the region's shape."""

    before: Numbers
    region: Region
    written: Numbers

    def read(self, rows: Span, columns: Span) -> Tensor:
        piece = self.before.read(rows, columns).clone()
        down, there = _met(self.region.rows, rows)
        across, aside = _met(self.region.columns, columns)
        if not (down.empty or across.empty):
            piece[self.region.within(there, aside)] = self.written.read(down, across)
        return piece


def part(whole: Numbers, region: Region) -> Numbers:
    """A region of a map, skipping anything that was written elsewhere."""
    while isinstance(whole, Overwritten):
        if whole.region == region:
            return whole.written
        if not whole.region.misses(region):
            break
        whole = whole.before
    if isinstance(whole, InMemory):
        lines = region.within(_slice(region.rows), _slice(region.columns))
        return InMemory(whole.values[lines], region.behind)
    return Excerpt(whole, region)


def _covered(lines: range, span: Span) -> Span:
    """From the first to the last of the lines with these numbers."""
    inside = lines[span.start : span.stop]
    return Span(inside[0], inside[-1] + 1) if inside else Span(lines.start, lines.start)


def _met(lines: range, span: Span) -> tuple[Span, slice]:
    """The numbers of the lines that lie in a span, and their positions in it."""
    first, last = (max(0, -((lines.start - end) // lines.step)) for end in span)
    found = Span(first, min(last, len(lines)))
    inside = lines[found.start : found.stop]
    return found, slice(inside.start - span.start, inside.stop - span.start, lines.step)


def _slice(part: range) -> slice:
    return slice(part.start, part.stop, part.step)


def _range(part: int | range) -> range:
    return range(part, part + 1) if isinstance(part, int) else part
