"""TCM's entropy model, around any transforms: a hyperprior of mixed blocks, and attention before slices."""

from __future__ import annotations

from collections.abc import Sequence

from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.layers import ResidualBlockUpsample, ResidualBlockWithStride, conv3x3, subpel_conv3x3
from overlap_tool_stf.slices import SlicedCodec, supports
from torch import Tensor, nn

from overlap_tool_tcm.layers import SwinAttention, mixed_blocks

HEAD_OF_HYPERPRIOR, WINDOW_OF_HYPERPRIOR = 32, 4
HEAD_OF_ATTENTION, WINDOW_OF_ATTENTION = 16, 8


class TcmCodec(SlicedCodec):
    """A codec with the entropy model of TCM, between transforms of any kind.

    `g_a` brings an image to M channels at a sixteenth of its sides, `g_s` brings them back. N is half the
    width of the hyperprior; `depths` are the numbers of mixed blocks in its analysis and in its syntheses.
    `z`, `attention` and `prediction` are the channels of z, inside of SWAtten, and between the convolutions
    that predict a slice.
    """

    most_support = 5
    string_per_image = True

    def __init__(
        self,
        g_a: nn.Module,
        g_s: nn.Module,
        N: int,
        M: int,
        depths: tuple[int, int] = (2, 2),
        slices: int = 5,
        z: int = 192,
        attention: int = 128,
        prediction: Sequence[int] = (224, 128),
    ) -> None:
        super().__init__()
        support = supports(M, slices, self.most_support)
        self.entropy_bottleneck = EntropyBottleneck(z)
        self.g_a = g_a
        self.g_s = g_s
        self.h_a = nn.Sequential(
            ResidualBlockWithStride(M, 2 * N, 2),
            *mixed_blocks(depths[0], N, HEAD_OF_HYPERPRIOR, WINDOW_OF_HYPERPRIOR),
            conv3x3(2 * N, z, stride=2),
        )
        self.h_mean_s = _hyper_synthesis(z, N, M, depths[1])
        self.h_scale_s = _hyper_synthesis(z, N, M, depths[1])
        self.atten_mean = nn.ModuleList(_attention(channels, attention) for channels in support)
        self.atten_scale = nn.ModuleList(_attention(channels, attention) for channels in support)
        self.predict_slices(M // slices, support, between=prediction)
        self.gaussian_conditional = GaussianConditional(None)

    def attended(self, k: int, of_mean: Tensor, of_scale: Tensor) -> tuple[Tensor, Tensor]:
        return self.atten_mean[k](of_mean), self.atten_scale[k](of_scale)


def _hyper_synthesis(z: int, N: int, M: int, depth: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlockUpsample(z, 2 * N, 2),
        *mixed_blocks(depth, N, HEAD_OF_HYPERPRIOR, WINDOW_OF_HYPERPRIOR),
        subpel_conv3x3(2 * N, M, 2),
    )


def _attention(channels: int, inner: int) -> nn.Sequential:
    return nn.Sequential(SwinAttention(channels, inner, HEAD_OF_ATTENTION, WINDOW_OF_ATTENTION))
