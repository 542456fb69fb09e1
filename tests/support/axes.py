"""A network of any number of axes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """A network with a stride, a skip and, if `normed`, a norm over the whole map: of volumes or of sound."""

    def __init__(self, axes: int, channels: int = 1, out: int = 2, normed: bool = False) -> None:
        super().__init__()
        conv, transposed = {
            1: (nn.Conv1d, nn.ConvTranspose1d),
            3: (nn.Conv3d, nn.ConvTranspose3d),
        }[axes]
        torch.manual_seed(0)
        self.first, self.down = conv(channels, 4, 3, padding=1), conv(4, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8) if normed else nn.Identity()
        self.up, self.last = transposed(8, 4, 2, 2), conv(4, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x).relu()
        up = self.up(self.norm(self.down(first)).relu())
        for dim in range(2, x.ndim):
            up = up.narrow(dim, 0, x.shape[dim])
        return self.last(up + first)
