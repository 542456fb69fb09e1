"""One tile, op by op: what is read, computed, dropped, joined and kept.

The executor performs the walk, and the memory prediction adds it up: there is one definition of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from overlap_tool.geometry.ops import Patch, Span
from overlap_tool.geometry.plan import Step


class Reads(NamedTuple):
    """The ops that feed an op, and the last op that reads its output."""

    inputs: tuple[int, ...]
    """Empty for a given map, which is read from a store."""
    last: int | None
    """None if no op reads it: it is the network's output, or is stored."""
    dropped: tuple[int, ...] = ()
    """The inputs that no later op reads."""


class Area(NamedTuple):
    """A rectangle of one op's map."""

    rows: Span
    columns: Span

    @staticmethod
    def whole(height: int, width: int) -> Area:
        """All of a map."""
        return Area(Span(0, height), Span(0, width))

    @property
    def size(self) -> int:
        """The number of its positions."""
        return self.rows.length * self.columns.length

    def within(self, other: Area) -> Area:
        """The intersection; empty if there is nothing in common."""
        return Area(self.rows.within(other.rows), self.columns.within(other.columns))

    def meets(self, other: Area) -> bool:
        """Whether they have a position in common."""
        return self.within(other).size > 0


class Turn(NamedTuple):
    """What happens at one op of the walk, in this order.

    `computed` is computed from `patches`; the maps in `dropped` are not read again; if later ops read this
    map, `held` is assembled from what was computed and what was kept for this tile, and its part `kept` is
    set aside for later tiles.
    """

    op: int
    computed: Area
    patches: tuple[Patch, Patch] | None
    """None for a given map, and where there is nothing to compute."""
    dropped: tuple[int, ...]
    held: Area | None
    """None if no later op of this tile reads the map."""
    kept: Area
    """Its columns serve the tile to the right, and its rows the band below."""

    @property
    def before(self) -> int:
        """How many columns of what is held were kept by the tile to the left."""
        assert self.held is not None
        if self.computed.columns.empty:
            return self.held.columns.length
        return self.computed.columns.start - self.held.columns.start

    @property
    def joins(self) -> bool:
        """Whether what is held is a new map, rather than exactly what was computed or kept."""
        return self.held != self.computed and not self.computed.columns.empty


def walk(reads: Sequence[Reads], row: Step, column: Step) -> Iterator[Turn]:
    """The turns of the tile where a row step and a column step meet."""
    for op, (_, last, dropped) in enumerate(reads):
        held = Area(row.hold[op], column.hold[op])
        vertical, horizontal = row.patches[op], column.patches[op]
        yield Turn(
            op,
            Area(row.compute[op], column.compute[op]),
            None if vertical is None or horizontal is None else (vertical, horizontal),
            dropped,
            None if last is None or held.rows.empty or held.columns.empty else held,
            Area(row.keep[op], column.keep[op]),
        )
