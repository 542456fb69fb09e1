"""The canonical chain in numpy, slow and exact: the reference for every kernel on every device.

A fused multiply-add rounds once. Numpy has none, so it is composed of operations with known errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
"""An array of float32 or float64."""


def chains(samples: Array, taps: Array) -> Array:
    """Chains along the last axis, in order, without the bias."""
    fma = fma_of_singles if samples.dtype == np.float32 else fma_of_doubles
    acc = np.zeros(np.broadcast_shapes(samples.shape[:-1], taps.shape[:-1]), samples.dtype)
    for sample, tap in zip(np.moveaxis(samples, -1, 0), np.moveaxis(taps, -1, 0), strict=True):
        acc = fma(sample, tap, acc)
    return acc


def fma_of_singles(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float32, rounded once.

    The product is exact in float64, the sum is not: rounding to nearest twice could end on the wrong side. So
    the first rounding is to odd: an inexact sum takes the neighbour whose last bit is 1, which tells the
    second rounding that there was a remainder.
    """
    return to_odd(*sum_and_rest(np.multiply(a, b, dtype=np.float64), c)).astype(np.float32)


def sum_and_rest(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b, rounded, and its exact rounding error (Knuth)."""
    total: Array = a + b
    share: Array = total - a
    return total, (a - (total - share)) + (b - share)


def to_odd(total: Array, rest: Array) -> Array:
    """Of the two neighbours of an inexact sum in float64, the one whose last bit is 1."""
    even = (total.view(np.int64) & 1) == 0
    return np.where((rest != 0) & even, np.nextafter(total, np.copysign(np.inf, rest)), total)


def fma_of_doubles(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float64, rounded once: Python divides integers of any size with one rounding."""
    return np.asarray(_fma_of_doubles(a, b, c), dtype=np.float64)


def _of_integers(a: float, b: float, c: float) -> float:
    (a_over, a_under), (b_over, b_under), (c_over, c_under) = (x.as_integer_ratio() for x in (a, b, c))
    product_under = a_under * b_under
    return (a_over * b_over * c_under + c_over * product_under) / (product_under * c_under)


_fma_of_doubles = np.frompyfunc(_of_integers, 3, 1)
