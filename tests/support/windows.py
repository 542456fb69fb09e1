"""A geometry as a plugin may bring one, whose outputs cannot be computed one by one."""

from __future__ import annotations

from dataclasses import dataclass

from overlap_tool.geometry import Geometry, Period, Span


@dataclass(frozen=True)
class Windows(Geometry):
    """Every output reads the whole window that it lies in, cut at `shift` and every `window` samples from
    there, and a window is computed at once."""

    window: int
    shift: int = 0

    @property
    def period(self) -> Period:
        return Period(self.window, self.window)

    def size(self, n: int) -> int:
        return n

    def together(self, outputs: Span, n: int) -> Span:
        return self.need(outputs).clip(n)

    def need(self, outputs: Span) -> Span:
        first = (outputs.start - self.shift) // self.window
        last = (outputs.stop - 1 - self.shift) // self.window
        return Span(first * self.window + self.shift, (last + 1) * self.window + self.shift)

    def begins(self, start: int) -> int:
        return start
