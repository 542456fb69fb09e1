"""A geometry listed output by output, for inputs of one length: resampling to a given size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import count
from operator import sub

from overlap_tool.geometry.ops import Geometry, Period, Span, hull


@dataclass(frozen=True)
class Listed(Geometry):
    """Output `a` of an input of `length` samples reads those from `first[a]` to `last[a]`, inclusive.

    Neither list may decrease. `ratio` is roughly outputs per input. For an endless image, the geometry
    repeats by this ratio: each output there reads whatever any output of its kind reads in the real image,
    shifted, since the list drifts against the ratio by a fraction of a sample.
    """

    by_place = True

    length: int
    first: tuple[int, ...]
    last: tuple[int, ...]
    ratio: Fraction

    @property
    def period(self) -> Period:
        return Period(self.ratio.denominator, self.ratio.numerator)

    def size(self, n: int) -> int:
        return len(self.first) if n == self.length else 0

    @cached_property
    def _of_kinds(self) -> tuple[Span, ...]:
        """For every output of one period, the union of what its counterparts in all periods read, shifted."""
        inputs, outputs = self.period

        def of_kind(kind: int) -> Span:
            first, last = (
                map(sub, ends[kind::outputs], count(0, inputs)) for ends in (self.first, self.last)
            )
            return Span(min(first), max(last) + 1)

        kinds = [of_kind(kind) for kind in range(min(outputs, len(self.first)))]
        return tuple(kinds) + (hull(kinds),) * (outputs - len(kinds))

    def need(self, outputs: Span) -> Span:
        inputs, kinds = self.period
        wanted = range(*outputs)
        return hull(
            self._of_kinds[output % kinds].shift(output // kinds * inputs)
            for output in {*wanted[:kinds], *wanted[-kinds:]}
        )

    def reads(self, outputs: Span, n: int) -> Span:
        if outputs.empty:
            return Span(0, 0)
        return Span(self.first[outputs.start], self.last[outputs.stop - 1] + 1)

    def begins(self, start: int) -> int:
        inputs, outputs = self.period
        return -(-start * outputs // inputs)


def ratio_between(inputs: Sequence[int], outputs: Sequence[int]) -> Fraction:
    """Outputs per input, from the lengths at two sizes: from their differences, so that borders of constant
    size cancel.

    From the first size alone if the differences tell nothing.
    """
    more, grown = inputs[-1] - inputs[0], outputs[-1] - outputs[0]
    if more > 0 and grown > 0:
        return Fraction(grown, more)
    return Fraction(outputs[0], inputs[0])
