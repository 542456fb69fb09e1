"""How a convolution without padding reads its input: the arguments of every kernel beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Form(NamedTuple):
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def read_by(self, kernel: Sequence[int], rows: slice, columns: slice) -> tuple[slice, slice]:
        """The inputs that spans of outputs read, through a kernel of this height and width."""
        down, across = (
            slice(out.start * s, (out.stop - 1) * s + d * (k - 1) + 1)
            for out, s, d, k in zip((rows, columns), self.stride, self.dilation, kernel, strict=True)
        )
        return down, across

    def result(self, x: Tensor, weight: Sequence[int], out: Tensor | None) -> Tensor:
        """What outputs go into, for weights of the shape (out, in / groups, height, width): `out`, or a new
        tensor, channels last."""
        size = (
            (n - d * (k - 1) - 1) // s + 1
            for n, s, d, k in zip(x.shape[2:], self.stride, self.dilation, weight[2:], strict=True)
        )
        shape = (x.shape[0], weight[0], *size)
        if out is None:
            return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        assert out.shape == shape, f"out is {tuple(out.shape)}, the result {shape}"
        return out
