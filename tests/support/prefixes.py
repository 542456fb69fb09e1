"""What can be computed of a map of which only the beginning exists."""

from __future__ import annotations

from overlap_tool.geometry import Geometry, Span


def ready(geometry: Geometry, stop: int, n: int) -> int:
    """How many leading outputs of an op can be computed once the inputs `[0, stop)` of `n` exist."""
    low, high = 0, geometry.size(n)
    if stop >= n:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        reads = geometry.reads(Span(0, middle), n)
        if reads.empty or reads.stop <= stop:
            low = middle
        else:
            high = middle - 1
    return low
