"""The blocks of LIC-TCM: a convolutional block beside a Swin block, and attention gated by Swin blocks.

J. Liu, H. Sun, J. Katto, "Learned Image Compression with Mixed Transformer-CNN Architectures", CVPR 2023.
Names of parts are those of the authors' checkpoints. Maps stay maps: channels before rows and columns.
"""

from __future__ import annotations

import torch
from compressai.layers import AttentionBlock, ResidualBlock
from torch import Tensor, nn

from overlap_tool.rules.layers import ChannelLinear, ChannelNorm
from overlap_tool_tcm.attention import WindowAttention


class SwinBlock(nn.Module):
    """Attention within windows, then a perceptron at every position, each added to its input."""

    def __init__(self, channels: int, head_dim: int, window: int, shift: int) -> None:
        super().__init__()
        self.ln1 = ChannelNorm(channels)
        self.msa = WindowAttention(channels, head_dim, window, shift)
        self.ln2 = ChannelNorm(channels)
        self.mlp = nn.Sequential(
            ChannelLinear(channels, 4 * channels), nn.GELU(), ChannelLinear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.msa(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class MixedBlock(nn.Module):
    """The TCM block: half of the channels through convolutions, half through a Swin block."""

    def __init__(self, channels: int, head_dim: int, window: int, shift: int) -> None:
        super().__init__()
        self.channels = channels
        self.trans_block = SwinBlock(channels, head_dim, window, shift)
        self.conv1_1 = nn.Conv2d(2 * channels, 2 * channels, kernel_size=1)
        self.conv1_2 = nn.Conv2d(2 * channels, 2 * channels, kernel_size=1)
        self.conv_block = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        local, distant = self.conv1_1(x).chunk(2, dim=1)
        local = self.conv_block(local) + local
        return x + self.conv1_2(torch.cat((local, self.trans_block(distant)), dim=1))


class TwoSwinBlocks(nn.Module):
    """A Swin block on the window grid, and one on the grid shifted by half a window."""

    def __init__(self, channels: int, head_dim: int, window: int) -> None:
        super().__init__()
        self.block_1 = SwinBlock(channels, head_dim, window, 0)
        self.block_2 = SwinBlock(channels, head_dim, window, window // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class SwinAttention(AttentionBlock):
    """SWAtten: Cheng's attention on fewer channels, where Swin blocks feed the gate."""

    def __init__(self, channels: int, inner: int, head_dim: int, window: int) -> None:
        super().__init__(inner)
        self.non_local_block = TwoSwinBlocks(inner, head_dim, window)
        self.in_conv = nn.Conv2d(channels, inner, kernel_size=1)
        self.out_conv = nn.Conv2d(inner, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_conv(x)
        gate = torch.sigmoid(self.conv_b(self.non_local_block(x)))
        return self.out_conv(self.conv_a(x) * gate + x)


def mixed_blocks(count: int, channels: int, head_dim: int, window: int) -> list[nn.Module]:
    """So many mixed blocks in a row, whose windows are shifted in every second."""
    return [MixedBlock(channels, head_dim, window, k % 2 * (window // 2)) for k in range(count)]
