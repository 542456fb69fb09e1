"""The entropy model that both share, around any transforms: all its parts are convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.layers import conv3x3, subpel_conv3x3
from torch import nn

from overlap_tool_stf.slices import SlicedCodec, activated, supports


class StfCodec(SlicedCodec):
    """A codec with transforms `g_a` and `g_s`, and y of M channels in `slices`.

    `analysis` are the channels in h_a, from those of y to those of z, `synthesis` those in h_mean_s and
    h_scale_s, from z to y; six numbers each.
    """

    string_per_image = False  # as the authors' code writes it

    def __init__(
        self, g_a: nn.Module, g_s: nn.Module, slices: int, analysis: Sequence[int], synthesis: Sequence[int]
    ) -> None:
        super().__init__()
        channels = analysis[0]
        self.most_support = slices // 2
        support = supports(channels, slices, self.most_support)
        self.g_a = g_a
        self.g_s = g_s
        self.h_a = _hyper_analysis(analysis)
        self.h_mean_s = _hyper_synthesis(synthesis)
        self.h_scale_s = _hyper_synthesis(synthesis)
        width = channels // slices
        self.predict_slices(width, support, between=(7 * width, 11 * width // 2, 4 * width, 2 * width))
        self.entropy_bottleneck = EntropyBottleneck(analysis[-1])
        self.gaussian_conditional = GaussianConditional(None)


def evenly(first: int, last: int) -> list[int]:
    """Five numbers from first to last."""
    return [first + (last - first) * k // 4 for k in range(5)]


def _hyper_analysis(channels: Sequence[int]) -> nn.Sequential:
    strides = (1, 1, 2, 1, 2)
    return activated(
        [conv3x3(*pair, stride=stride) for pair, stride in zip(pairwise(channels), strides, strict=True)]
    )


def _hyper_synthesis(channels: Sequence[int]) -> nn.Sequential:
    factors = (1, 2, 1, 2, 1)
    return activated(
        [
            subpel_conv3x3(*pair, r=factor) if factor > 1 else conv3x3(*pair)
            for pair, factor in zip(pairwise(channels), factors, strict=True)
        ]
    )
