"""LLIC's blocks. Kernels and channel factors are made from the map itself, pooled to 3x3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.geometry import Padding, Window
from overlap_tool.rules import Call, Operand, Patches, Rule, extend, register_rule
from overlap_tool.rules.layers import ChannelNorm

POOLED = 3
EXPANSION = 2
"""How much wider a depth-wise residual block is inside, within a transform block."""


class DepthResidual(nn.Module):
    """Depth-wise residual block: 1x1, 3x3 on each channel by itself, 1x1, around the identity."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        width = channels * expansion
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 1),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(width, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Gate(nn.Module):
    """Interaction between channels: one half of them times the other (eq. 9)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.widen(x).chunk(2, 1)
        return self.mix(first * second) + x


class OwnKernels(nn.Module):
    """A depth-wise convolution, each image by kernels of its own: (images, channels, side, side)."""

    def forward(self, x: Tensor, kernels: Tensor) -> Tensor:
        padding = kernels.shape[-1] // 2
        return _convolved(F.pad(x, [padding] * 4), kernels)


def _convolved(x: Tensor, kernels: Tensor) -> Tensor:
    images = [F.conv2d(x[i : i + 1], own[:, None], groups=len(own)) for i, own in enumerate(kernels)]
    return images[0] if len(images) == 1 else torch.cat(images)


@register_rule(OwnKernels)
def own_kernels(call: Call, module: OwnKernels, x: Operand, kernels: Operand) -> Rule:
    if x.summary or not kernels.summary:
        call.refuse("convolves other things than a map by kernels made from a whole one")

    def run(patches: Patches, module: OwnKernels, x: Tensor, kernels: Tensor) -> Tensor:
        return _convolved(extend(x, patches, Padding.CONSTANT), kernels)

    side = kernels.shape[-1]
    window = Window(side, before=side // 2, after=side // 2)
    macs = side * side * x.channels
    return Rule(run, window, window, macs=macs, kernel=(side, side), stride=(1, 1), pure=True)


class Condition(nn.Module):
    """What a whole map says of each of its channels: pooled to 3x3, then so many numbers (eqs. 7, 11)."""

    def __init__(self, channels: int, numbers: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(POOLED)
        self.down = nn.Conv2d(channels, channels, POOLED)
        self.numbers = nn.Conv2d(channels, channels * numbers, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.numbers(self.down(self.pool(x)))


class SpatialTransform(nn.Module):
    """Self-conditioned spatial transform (SCST): large kernels, made from the map."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.channels = channels
        self.side = side
        self.condition = Condition(channels, side * side)
        self.main = nn.Conv2d(channels, channels, 1)
        self.convolve = OwnKernels()

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.condition(x).view(-1, self.channels, self.side, self.side)
        return self.convolve(self.main(x), kernels)


class ChannelTransform(nn.Module):
    """Self-conditioned channel transform (SCCT): a factor for each channel, made from the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.condition = Condition(channels, 1)
        self.main = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.condition(x) * self.main(x)


class TransformBlock(nn.Module):
    """What both kinds of block have around their transform (eqs. 5 and 10)."""

    def __init__(self, channels: int, transform: nn.Module) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.embedding = DepthResidual(channels, EXPANSION)
        self.transform = transform
        self.mix = nn.Conv2d(channels, channels, 1)
        self.gate_norm = ChannelNorm(channels)
        self.gate = Gate(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.transform(self.embedding(self.norm(x)))) + x
        return self.gate(self.gate_norm(x)) + x


def basic_block(channels: int, side: int) -> list[nn.Module]:
    """A spatial transform block and a channel transform block."""
    return [
        TransformBlock(channels, SpatialTransform(channels, side)),
        TransformBlock(channels, ChannelTransform(channels)),
    ]


class Analysis(nn.Module):
    """One stage of g_a: to half the size, then the basic block."""

    def __init__(self, given: int, channels: int, side: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(given, channels, 3, stride=2, padding=1)
        self.residual = DepthResidual(channels, 1)
        self.block = nn.Sequential(*basic_block(channels, side))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.residual(self.down(x)))


class Synthesis(nn.Module):
    """One stage of g_s, the other way round: the inverse basic block, then to twice the size."""

    def __init__(self, channels: int, made: int, side: int) -> None:
        super().__init__()
        self.block = nn.Sequential(*reversed(basic_block(channels, side)))
        self.residual = DepthResidual(channels, 1)
        self.up = nn.ConvTranspose2d(channels, made, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.residual(self.block(x)))


SIDES = 11, 11, 9, 9
"""Of the kernels, by stage, from the image on."""


def transforms(N: int, M: int) -> tuple[nn.Sequential, nn.Sequential]:
    """g_a and g_s, of width N and, at the latent, M."""
    widths = 3, N, N, N, M
    stages = list(zip(widths, widths[1:], SIDES, strict=False))
    return (
        nn.Sequential(*(Analysis(outer, inner, side) for outer, inner, side in stages)),
        nn.Sequential(*(Synthesis(inner, outer, side) for outer, inner, side in reversed(stages))),
    )
