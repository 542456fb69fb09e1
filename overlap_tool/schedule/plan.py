"""Axis plans: per step and op, the span to compute. Pure integers.

A plan in two dimensions is the product of a plan for the rows and one for the columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlap_tool.axis import Axis
from overlap_tool.geometry import Span


@dataclass(frozen=True)
class AxisPlan:
    """For one axis of a stage: the sizes of all ops, and step by step what each of them computes."""

    sizes: tuple[int, ...]
    steps: tuple[tuple[Span, ...], ...]

    def computed(self) -> tuple[int, ...]:
        """How many outputs every op computes over all steps, recomputed ones included."""
        return tuple(sum(span.length for span in spans) for spans in zip(*self.steps, strict=True))


def whole(axis: Axis, n: int) -> AxisPlan:
    """The whole map in one step."""
    sizes = axis.sizes(n)
    return AxisPlan(sizes, (tuple(Span(0, size) for size in sizes),))


def tiles(axis: Axis, n: int, cuts: Sequence[Span]) -> AxisPlan:
    """Independent tiles of the output, `cuts`: every tile computes all that it reads."""
    sizes = axis.sizes(n)
    last = len(axis.ops) - 1
    return AxisPlan(sizes, tuple(axis.needs({last: cut}, sizes) for cut in cuts))


def cut(size: int, tile: int) -> tuple[Span, ...]:
    """An output of `size` in tiles of `tile`, the last one being what is left."""
    return tuple(Span(start, min(start + tile, size)) for start in range(0, size, tile))
