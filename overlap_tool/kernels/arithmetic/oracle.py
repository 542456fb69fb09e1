"""The functions in numpy, slow and simple: the reference for generated code.

Numpy adds, multiplies, divides and takes roots as IEEE 754 defines. It has no fused multiply-add: that is
composed of operations with known errors or, where they would leave their range, computed with Python's
integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from overlap_tool.kernels.emulation import Array, fma_of_doubles, sum_and_rest, to_odd

LARGEST, SMALLEST = 2.0**480, 2.0**-440
"""Between these magnitudes, no nonzero product and no part of one leaves the range of float64."""


class Oracle:
    """Computes programs on arrays of float64; `single` if they were float32."""

    def __init__(self, single: bool) -> None:
        self.single = single

    sqrt = staticmethod(np.sqrt)
    abs = staticmethod(np.abs)
    copysign = staticmethod(np.copysign)

    @staticmethod
    def where(mask: Array, one: Any, other: Any) -> Array:
        return np.where(mask, one, other)

    @staticmethod
    def bits(x: Array) -> Array:
        return np.asarray(x).view(np.int64)

    @staticmethod
    def number(bits: Array) -> Array:
        return np.asarray(bits).view(np.float64)

    def widen(self, x: Array) -> Array:
        return x.astype(np.float64)

    def narrow(self, x: Array) -> Array:
        return x.astype(np.float32) if self.single else x

    @staticmethod
    def upper(bits: Array, count: int) -> Array:
        """A logical shift to the right."""
        return (bits.view(np.uint64) >> np.uint64(count)).view(np.int64)

    @staticmethod
    def table(values: Sequence[int], index: Array) -> Array:
        """Integers as float64; arbitrary values beyond the ends."""
        return np.asarray(values, np.float64)[np.clip(index, 0, len(values) - 1)]

    def rarely(self, mask: Array, compute: Callable[[], Any], otherwise: Any) -> Any:
        if not np.any(mask):
            return otherwise
        found = compute()
        if not isinstance(otherwise, tuple):
            return self.where(mask, found, otherwise)
        return tuple(self.where(mask, one, other) for one, other in zip(found, otherwise, strict=True))

    @staticmethod
    def fma(a: Any, b: Any, c: Any) -> Array:
        """a * b + c, rounded once: Boldo's and Melquiond's algorithm, or integers beyond its range."""
        a, b, c = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (a, b, c)))
        high, low = _product(a, b)
        upper, lower = sum_and_rest(c, low)
        total, rest = sum_and_rest(high, upper)
        y = np.asarray(total + to_odd(*sum_and_rest(rest, lower)))
        sizes = np.abs(np.stack([a, b, high, c]))
        inside = ((sizes < LARGEST) & ((sizes > SMALLEST) | (sizes == 0))).all(0)
        nothing = (a == 0) | (b == 0) | ~np.isfinite(a) | ~np.isfinite(b) | ~np.isfinite(c)
        y = np.where(nothing, a * b + c, y)
        for place in np.argwhere(~(inside | nothing)):
            at = tuple(place)
            try:
                y[at] = fma_of_doubles(a[at], b[at], c[at])
            except OverflowError:
                y[at] = math.copysign(math.inf, a[at] * b[at])
        return y


def _product(a: Array, b: Array) -> tuple[Array, Array]:
    (ah, al), (bh, bl) = _halves(a), _halves(b)
    product = a * b
    return product, ((ah * bh - product) + ah * bl + al * bh) + al * bl


def _halves(a: Array) -> tuple[Array, Array]:
    scaled = a * (2.0**27 + 1)
    high = scaled - (scaled - a)
    return high, a - high
