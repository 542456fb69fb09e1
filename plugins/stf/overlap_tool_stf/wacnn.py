"""WACNN: mbt2018's strided convolutions with GDN, and gated window attention between them."""

from __future__ import annotations

import torch
from compressai.layers import GDN, conv1x1, conv3x3
from compressai.models.utils import conv, deconv
from torch import Tensor, nn

from overlap_tool_stf.attention import WindowAttention
from overlap_tool_stf.entropy import StfCodec, evenly

HEADS = 8
SLICES = 10


class WACNN(StfCodec):
    """N is the width of the transforms and of z, M that of y."""

    def __init__(self, N: int = 192, M: int = 320) -> None:
        between = evenly(M, N)
        super().__init__(
            nn.Sequential(
                conv(3, N),
                GDN(N),
                conv(N, N),
                GDN(N),
                GatedAttention(N, window=8),
                conv(N, N),
                GDN(N),
                conv(N, M),
                GatedAttention(M, window=4),
            ),
            nn.Sequential(
                GatedAttention(M, window=4),
                deconv(M, N),
                GDN(N, inverse=True),
                deconv(N, N),
                GDN(N, inverse=True),
                GatedAttention(N, window=8),
                deconv(N, N),
                GDN(N, inverse=True),
                deconv(N, 3),
            ),
            slices=SLICES,
            analysis=[M, *between],
            synthesis=[N, *between[::-1]],
        )


class GatedAttention(nn.Module):
    """A branch of convolutions, weighted by another that begins with attention in shifted windows."""

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(*(ResidualUnit(channels) for _ in range(3)))
        self.conv_b = nn.Sequential(
            ResidualAttention(channels, window),
            *(ResidualUnit(channels) for _ in range(3)),
            conv1x1(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_a(x) * torch.sigmoid(self.conv_b(x)) + x


class ResidualAttention(nn.Module):
    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.attn = WindowAttention(channels, HEADS, window, shift=window // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x)


class ResidualUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv = nn.Sequential(
            conv1x1(channels, half), nn.GELU(), conv3x3(half, half), nn.GELU(), conv1x1(half, channels)
        )
        self.relu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x) + x)
