"""The layers of STF's transforms, on maps: Swin blocks, and how they become smaller and larger."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.rules.layers import ChannelLinear, ChannelNorm
from overlap_tool_stf.attention import WindowAttention

WINDOW = 4


class Scale(nn.Module):
    """Swin blocks, every second one with shifted windows, and what brings the map to the next scale."""

    def __init__(self, channels: int, depth: int, heads: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(SwinBlock(channels, heads, shift=WINDOW // 2 * (k % 2)) for k in range(depth))
        )
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x if self.downsample is None else self.downsample(x)


class SwinBlock(nn.Module):
    def __init__(self, channels: int, heads: int, shift: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.attn = WindowAttention(channels, heads, WINDOW, shift, fills=True)
        self.norm2 = ChannelNorm(channels)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Mlp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = ChannelLinear(channels, 4 * channels)
        self.act = nn.GELU()
        self.fc2 = ChannelLinear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class PatchEmbed(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, kernel_size=2, stride=2)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(_even(x)))


class PatchMerging(nn.Module):
    """Half the sides, twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = ChannelLinear(4 * channels, 2 * channels, bias=False)
        self.norm = ChannelNorm(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = _even(x)
        patches = torch.cat([x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)], 1)
        return self.reduction(self.norm(patches))


class PatchSplit(nn.Module):
    """Twice the sides, half the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = ChannelLinear(channels, 2 * channels, bias=False)
        self.norm = ChannelNorm(channels)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.reduction(self.norm(x)))


def analysis(embed_dim: int, depths: Sequence[int], heads: Sequence[int]) -> nn.Sequential:
    """From an image to y, whose sides are halved by the patches and between any two scales."""
    parts = OrderedDict[str, nn.Module](
        patch_embed=PatchEmbed(embed_dim),
        layers=_scales(_widths(embed_dim, depths), depths, heads, PatchMerging),
    )
    return nn.Sequential(parts)


def synthesis(embed_dim: int, depths: Sequence[int], heads: Sequence[int]) -> nn.Sequential:
    """From y to an image: `depths` and `heads` are those of the analysis."""
    widths = _widths(embed_dim, depths)
    parts = OrderedDict[str, nn.Module](
        syn_layers=_scales(widths[::-1], depths[::-1], heads[::-1], PatchSplit),
        end_conv=nn.Sequential(
            nn.Conv2d(embed_dim, 4 * embed_dim, 5, padding=2),
            nn.PixelShuffle(2),
            nn.Conv2d(embed_dim, 3, 3, padding=1),
        ),
    )
    return nn.Sequential(parts)


def _widths(embed_dim: int, depths: Sequence[int]) -> list[int]:
    return [embed_dim << scale for scale in range(len(depths))]


def _scales(
    widths: Sequence[int], depths: Sequence[int], heads: Sequence[int], between: Callable[[int], nn.Module]
) -> nn.Sequential:
    """Blocks at every scale, and what leads from each to the next."""
    last = len(widths) - 1
    return nn.Sequential(
        *(
            Scale(width, depth, count, between(width) if scale < last else None)
            for scale, (width, depth, count) in enumerate(zip(widths, depths, heads, strict=True))
        )
    )


def _even(x: Tensor) -> Tensor:
    """Every 2x2 samples become one: a last odd row or column is filled up with zeros."""
    return F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
