"""The canonical chain by PyTorch's own elementwise operations: slow, with the same bits on every device.

PyTorch has no fused multiply-add, but sums and products of float64 are correctly rounded on every device, and
it is composed of those: the rounding error of a sum is a number, too, which determines the last bit. All
outputs of a block go through their taps together.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from overlap_tool.errors import ExactnessError
from overlap_tool.kernels.form import Form

PIECE = (2, 3)
"""The outputs of a trial: all are computed in the same way."""

AT_ONCE = {"cpu": 1 << 15, "cuda": 1 << 22}
"""Outputs of a block: about six maps of this size stay in a core's cache, or fill a GPU."""

LARGEST = 2.0**480
"""For float64: between this and its inverse, no product loses a bit to the range."""


def pack(weight: Tensor, groups: int) -> Tensor:
    """Weights are read as they are."""
    return weight


def filled(outputs: int, dtype: torch.dtype) -> int:
    """Exactly the outputs that are asked for."""
    return outputs


@torch.no_grad()
def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form, out: Tensor | None = None) -> Tensor:
    """In blocks of pixels. `x`, `weight` and `out` may have any strides."""
    x, form = form.padded(x)
    out = form.result(x, weight.shape, out)
    images, outputs, height, width = out.shape
    if x.dtype == torch.float64:
        _within_range(x, weight)
    chains = _chains_of_doubles if x.dtype == torch.float64 else _chains_of_singles
    taps = weight.double().unflatten(0, (form.groups, -1))
    pixels = max(1, AT_ONCE[x.device.type] // outputs)
    columns = min(width, pixels)
    rows = max(1, pixels // columns)
    for image in range(images):
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                below, beside = slice(top, min(top + rows, height)), slice(left, min(left + columns, width))
                block = out[image, :, below, beside]
                down, across = form.read_by(weight.shape[2:], below, beside)
                samples = x[image, :, down, across].to(
                    torch.float64, memory_format=torch.contiguous_format, copy=True
                )
                size = block.shape[1], block.shape[2]
                factors = _Factors(samples.unflatten(0, (form.groups, -1)), taps, size, form)
                found = chains(factors).flatten(0, 1)
                block.copy_(found + (0 if bias is None else bias[:, None, None]))
    return out


class _Factors(NamedTuple):
    """The factors of a block: samples (groups, depth, ...) and taps (groups, outputs, depth, ...)."""

    samples: Tensor
    taps: Tensor
    size: tuple[int, int]
    form: Form

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the block: groups, outputs of each, rows, columns."""
        return (*self.taps.shape[:2], *self.size)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A sample for every pixel and a tap for every output, tap by tap."""
        depth, *kernel = self.taps.shape[2:]
        for i, j in product(*map(range, kernel)):
            down, across = (
                slice(k * d, k * d + (count - 1) * s + 1, s)
                for k, d, count, s in zip(
                    (i, j), self.form.dilation, self.size, self.form.stride, strict=True
                )
            )
            read = self.samples[:, :, down, across]
            for c in range(depth):
                yield read[:, c, None], self.taps[:, :, c, i, j, None, None]


def _chains_of_singles(factors: _Factors) -> Tensor:
    """A product of two float32 is exact in float64; its sum with a third is rounded to odd, then to float32.

    Rounding to nearest twice could end on the wrong side.
    """
    acc = factors.samples.new_zeros(factors.shape)
    exact, total, spare = (torch.empty_like(acc) for _ in range(3))
    rounded = torch.empty_like(acc, dtype=torch.float32)
    for sample, tap in factors.in_order():
        torch.mul(sample, tap, out=exact)
        _add(exact, acc, total, spare)
        _to_odd(total, exact, spare)
        acc.copy_(rounded.copy_(total))
    return rounded


def _chains_of_doubles(factors: _Factors) -> Tensor:
    """Boldo's and Melquiond's fused multiply-add, of operations of the same precision.

    The product is high + low exactly, so its sum with a third number is one of three. The two smaller ones
    are added with rounding to odd, so that the last addition rounds to the correct side.
    """
    acc = factors.samples.new_zeros(factors.shape)
    high, low, middle, total, spare = (torch.empty_like(acc) for _ in range(5))
    halves = [
        factors._replace(samples=s, taps=t)
        for s, t in zip(_split(factors.samples), _split(factors.taps), strict=True)
    ]
    for (sample, tap), (x, w), (dx, dw) in zip(*(f.in_order() for f in (factors, *halves)), strict=True):
        torch.mul(sample, tap, out=high)
        torch.mul(x, w, out=low)
        low.sub_(high)
        for one, other in ((x, dw), (dx, w), (dx, dw)):
            low.add_(torch.mul(one, other, out=spare))
        _add(low, acc, middle, spare)  # middle, and low beside it
        _add(high, middle, total, spare)  # total, and high beside it
        _add(high, low, middle, spare)
        _to_odd(middle, high, spare)
        torch.add(total, middle, out=acc)
    return acc


def _add(a: Tensor, b: Tensor, total: Tensor, spare: Tensor) -> None:
    """a + b, rounded, into `total`, and the rounding error into `a`: Knuth's two-sum. `b` is overwritten."""
    torch.add(a, b, out=total)
    torch.sub(total, a, out=spare)
    b.sub_(spare)
    torch.sub(total, spare, out=spare)
    a.sub_(spare).add_(b)


def _to_odd(total: Tensor, rest: Tensor, spare: Tensor) -> None:
    """Of the two neighbours of an inexact sum, the one whose last bit is 1. `rest` is overwritten."""
    bits, beyond = total.view(torch.int64), spare.view(torch.int64)
    torch.bitwise_xor(bits, rest.view(torch.int64), out=beyond)
    beyond.bitwise_right_shift_(63)  # -1 where the sum is farther from zero than the exact value
    inexact = rest.abs_() > 0
    bits.add_(beyond.mul_(inexact)).bitwise_or_(inexact)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Veltkamp's splitting: two numbers of half the digits each, whose sum is x."""
    scaled = x * (2.0**27 + 1)
    high = scaled - (scaled - x)
    return high, x - high


def _within_range(*operands: Tensor) -> None:
    for operand in operands:
        sizes = operand.abs()
        if ((sizes > LARGEST) | ((sizes < 1 / LARGEST) & (sizes > 0))).any():
            raise ExactnessError(
                "a convolution in float64 by elementwise operations",
                "numbers beyond 2**480, or within 2**-480, have products that might not be exact",
                "Convert the model with .float()",
            )
