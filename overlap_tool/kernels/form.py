"""How a convolution reads its input: the arguments of every kernel besides the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Sides = tuple[tuple[int, int], tuple[int, int]]
"""Before and after, of rows and of columns."""

NOTHING: Sides = (0, 0), (0, 0)


class Form(NamedTuple):
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding: Sides = NOTHING
    """Zeros before and after rows and columns; negative amounts crop. The kernel adds them."""

    def read_by(self, kernel: Sequence[int], rows: slice, columns: slice) -> tuple[slice, slice]:
        """The inputs that spans of outputs read, by a kernel of this height and width, without padding."""
        down, across = (
            slice(out.start * s, (out.stop - 1) * s + d * (k - 1) + 1)
            for out, s, d, k in zip((rows, columns), self.stride, self.dilation, kernel, strict=True)
        )
        return down, across

    def shape(self, x: Tensor, weight: Sequence[int]) -> tuple[int, int, int, int]:
        """The shape of the outputs, for weights of the shape (out, in / groups, height, width)."""
        images, _, rows, columns = x.shape
        (top, bottom), (left, right) = self.padding
        height = top + rows + bottom - self.dilation[0] * (weight[2] - 1)
        width = left + columns + right - self.dilation[1] * (weight[3] - 1)
        return images, weight[0], (height - 1) // self.stride[0] + 1, (width - 1) // self.stride[1] + 1

    def result(self, x: Tensor, weight: Sequence[int], out: Tensor | None) -> Tensor:
        """The tensor for the outputs: `out`, or a new one, channels last."""
        shape = self.shape(x, weight)
        if out is None:
            return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        assert out.shape == shape, f"out is {tuple(out.shape)}, the result {shape}"
        return out

    def padded(self, x: Tensor) -> tuple[Tensor, Form]:
        """The input with its padding written out, for kernels that do not pad."""
        if self.padding == NOTHING:
            return x, self
        if x.shape[1] > 1 and x.stride(1) != 1:
            x = x.contiguous(memory_format=torch.channels_last)
        rows, columns = self.padding
        rest = self._replace(padding=NOTHING)
        if max(*rows, *columns) <= 0:
            height, width = x.shape[-2:]
            return x[..., -rows[0] : height + rows[1], -columns[0] : width + columns[1]], rest
        return torch.constant_pad_nd(x, (*columns, *rows)), rest
