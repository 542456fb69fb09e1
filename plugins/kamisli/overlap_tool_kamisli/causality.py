"""Which blocks a block reads, and so which blocks can be computed together. Pure integers, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

Tap = tuple[int, int]
"""From a block to one that it reads, rows down and columns to the right: (-1, 1) is above to the right."""

HERE: Tap = (0, 0)


def through(first: Iterable[Tap], then: Iterable[Tap]) -> frozenset[Tap]:
    """What is read through two layers, one after the other."""
    later = tuple(then)
    return frozenset((row + down, column + right) for row, column in first for down, right in later)


@dataclass(frozen=True)
class Reach:
    """The reconstructed blocks that a block is computed from: above it, or to its left in its own row."""

    taps: frozenset[Tap]

    @property
    def causal(self) -> bool:
        return all(tap < HERE for tap in self.taps)

    @property
    def left(self) -> int:
        return max(0, -min((column for _, column in self.taps), default=0))

    @property
    def right(self) -> int:
        """To the right in rows above: there is nothing to the right in its own row yet."""
        return max(0, max((column for _, column in self.taps), default=0))

    @property
    def up(self) -> int:
        return max(0, -min((row for row, _ in self.taps), default=0))

    @cached_property
    def slope(self) -> int:
        """How many columns a row has to be behind the row above it, so that all that it reads is there.

        A front reads only earlier fronts: `slope * up > right` for every tap, in its own row as well.
        """
        assert self.causal
        return max([1, *(column // -row + 1 for row, column in self.taps if row < 0)])


@dataclass(frozen=True)
class Front:
    """Blocks that are computed together: one in each row, `slope` columns behind the one in the row above.

    The block of row r stands in column `time - slope * r`.
    """

    time: int
    start: int
    stop: int
    slope: int

    @property
    def rows(self) -> range:
        return range(self.start, self.stop)

    def column(self, row: int) -> int:
        return self.time - self.slope * row


def fronts(height: int, width: int, slope: int) -> Iterator[Front]:
    """All blocks of a grid, front by front. A slope of the width gives single blocks in raster order."""
    for time in range(width + slope * (height - 1)):
        start, stop = max(0, (time - width) // slope + 1), min(height, time // slope + 1)
        if start < stop:
            yield Front(time, start, stop, slope)
