"""The canonical chain in numpy, slow and exact: what any kernel on any device is held to.

A fused multiply-add rounds once. Numpy has none, so it is put together from operations whose error is known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
"""An array of float32 or float64."""


def convolution(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Array:
    """Every output of a convolution without padding, (N, O, Ho, Wo)."""
    windows = x
    for axis in (2, 3):
        reach = dilation[axis - 2] * (weight.shape[axis] - 1) + 1
        windows = np.lib.stride_tricks.sliding_window_view(windows, reach, axis)
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    images, _, height, width, *_ = windows.shape
    depth = weight.shape[1]
    parts = []
    for group, taps in enumerate(np.split(weight, groups)):
        read = windows[:, group * depth : (group + 1) * depth]
        samples = read.transpose(0, 2, 3, 4, 5, 1).reshape(images, height, width, 1, -1)
        parts.append(chains(samples, taps.transpose(0, 2, 3, 1).reshape(len(taps), -1)))
    y = np.concatenate(parts, -1)
    return np.moveaxis(y + (0 if bias is None else bias), -1, 1)


def chains(samples: Array, taps: Array) -> Array:
    """Chains along the last axis, in its order, without the bias."""
    fma = fma_of_singles if samples.dtype == np.float32 else fma_of_doubles
    acc = np.zeros(np.broadcast_shapes(samples.shape[:-1], taps.shape[:-1]), samples.dtype)
    for sample, tap in zip(np.moveaxis(samples, -1, 0), np.moveaxis(taps, -1, 0), strict=True):
        acc = fma(sample, tap, acc)
    return acc


def fma_of_singles(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float32, rounded once.

    The product is exact in float64, the sum is not: rounded to nearest twice, it could end on the wrong side.
    So the first rounding is to odd: an inexact sum takes the neighbour whose last bit is 1. The second then
    sees that something was left over.
    """
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    share = total - product
    error = (product - (total - share)) + (c - share)  # exact: Knuth's two-sum
    even = (total.view(np.int64) & 1) == 0
    odd = np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total)
    return odd.astype(np.float32)


def fma_of_doubles(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float64, rounded once: Python divides integers of any size with one rounding."""
    return np.asarray(_fma_of_doubles(a, b, c), dtype=np.float64)


def _of_integers(a: float, b: float, c: float) -> float:
    (a_over, a_under), (b_over, b_under), (c_over, c_under) = (x.as_integer_ratio() for x in (a, b, c))
    product_under = a_under * b_under
    return (a_over * b_over * c_under + c_over * product_under) / (product_under * c_under)


_fma_of_doubles = np.frompyfunc(_of_integers, 3, 1)
