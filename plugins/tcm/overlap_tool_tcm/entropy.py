"""TCM's entropy model, around any transforms: a hyperprior, and y in slices, each told by those before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from compressai.ans import BufferedRansEncoder, RansDecoder
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.layers import ResidualBlockUpsample, ResidualBlockWithStride, conv3x3, subpel_conv3x3
from compressai.models import CompressionModel
from compressai.ops import quantize_ste
from torch import Tensor, nn

from overlap_tool_tcm.layers import SwinAttention, mixed_blocks

HEAD_OF_HYPERPRIOR, WINDOW_OF_HYPERPRIOR = 32, 4
HEAD_OF_ATTENTION, WINDOW_OF_ATTENTION = 16, 8
MOST_SUPPORT = 5
"""How many slices at most a later one is predicted from."""


class SlicedCodec(CompressionModel):
    """A codec with the entropy model of TCM, between transforms of any kind.

    `g_a` brings an image to M channels at a sixteenth of its sides, `g_s` brings them back. N is half the
    width of the hyperprior; `depths` are the numbers of mixed blocks in its analysis and in its syntheses.
    `z`, `attention` and `prediction` are the channels of z, inside of SWAtten, and between the convolutions
    that predict a slice.
    """

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
        if M % slices:
            raise ValueError(f"{M} channels cannot be cut into {slices} slices")
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
        support = [M + M // slices * min(k, MOST_SUPPORT) for k in range(slices)]
        self.atten_mean = nn.ModuleList(_attention(width, attention) for width in support)
        self.atten_scale = nn.ModuleList(_attention(width, attention) for width in support)
        self.cc_mean_transforms = nn.ModuleList(
            _prediction(width, prediction, M // slices) for width in support
        )
        self.cc_scale_transforms = nn.ModuleList(
            _prediction(width, prediction, M // slices) for width in support
        )
        self.lrp_transforms = nn.ModuleList(
            _prediction(width + M // slices, prediction, M // slices) for width in support
        )
        self.gaussian_conditional = GaussianConditional(None)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.g_a(x)
        z = self.h_a(y)
        _, z_likelihoods = self.entropy_bottleneck(z)
        medians = self.entropy_bottleneck._get_medians()
        parts = y.chunk(len(self.lrp_transforms), dim=1)
        likelihoods = []

        def quantise(k: int, mean: Tensor, scale: Tensor) -> Tensor:
            likelihoods.append(self.gaussian_conditional(parts[k], scale, mean)[1])
            return quantize_ste(parts[k] - mean) + mean

        y_hat = self._slice_by_slice(quantize_ste(z - medians) + medians, quantise)
        return {
            "x_hat": self.g_s(y_hat),
            "likelihoods": {"y": torch.cat(likelihoods, dim=1), "z": z_likelihoods},
        }

    def compress(self, x: Tensor) -> dict[str, Any]:
        y = self.g_a(x)
        z = self.h_a(y)
        z_strings = self.entropy_bottleneck.compress(z)
        parts = y.chunk(len(self.lrp_transforms), dim=1)
        symbols, indexes = [], []

        def quantise(k: int, mean: Tensor, scale: Tensor) -> Tensor:
            found = self.gaussian_conditional.quantize(parts[k], "symbols", mean)
            symbols.append(found)
            indexes.append(self.gaussian_conditional.build_indexes(scale))
            return found + mean

        self._slice_by_slice(self.entropy_bottleneck.decompress(z_strings, z.shape[-2:]), quantise)
        tables = self._tables()
        strings = []
        for image in range(len(x)):
            encoder = BufferedRansEncoder()
            for slice_symbols, slice_indexes in zip(symbols, indexes, strict=True):
                encoder.encode_with_indexes(
                    slice_symbols[image].flatten().tolist(), slice_indexes[image].flatten().tolist(), *tables
                )
            strings.append(encoder.flush())
        return {"strings": [strings, z_strings], "shape": z.shape[-2:]}

    def decompress(self, strings: list[list[bytes]], shape: Any) -> dict[str, Tensor]:
        tables = self._tables()
        decoders = []
        for string in strings[0]:
            decoder = RansDecoder()
            decoder.set_stream(string)
            decoders.append(decoder)

        def read(k: int, mean: Tensor, scale: Tensor) -> Tensor:
            indexes = self.gaussian_conditional.build_indexes(scale)
            symbols = [
                decoder.decode_stream(image.flatten().tolist(), *tables)
                for decoder, image in zip(decoders, indexes, strict=True)
            ]
            found = torch.tensor(symbols, device=mean.device).reshape(mean.shape)
            return self.gaussian_conditional.dequantize(found, mean)

        y_hat = self._slice_by_slice(self.entropy_bottleneck.decompress(strings[1], shape), read)
        return {"x_hat": self.g_s(y_hat).clamp_(0, 1)}

    def _slice_by_slice(self, z_hat: Tensor, code: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
        """y as the decoder has it; `code` gives slice k of it, from the means and scales predicted for it."""
        means, scales = self.h_mean_s(z_hat), self.h_scale_s(z_hat)
        done: list[Tensor] = []
        for k, residual_of in enumerate(self.lrp_transforms):
            known = done[:MOST_SUPPORT]
            mean_support = self.atten_mean[k](torch.cat([means, *known], dim=1))
            scale_support = self.atten_scale[k](torch.cat([scales, *known], dim=1))
            mean = self.cc_mean_transforms[k](mean_support)
            coded = code(k, mean, self.cc_scale_transforms[k](scale_support))
            # the latent residual prediction: what rounding took away, guessed
            residual = residual_of(torch.cat([mean_support, coded], dim=1))
            done.append(coded + 0.5 * torch.tanh(residual))
        return torch.cat(done, dim=1)

    def _tables(self) -> tuple[list[list[int]], list[int], list[int]]:
        """The CDFs that the range coder wants: the tables, their lengths, their offsets."""
        gaussian = self.gaussian_conditional
        return gaussian.quantized_cdf.tolist(), gaussian.cdf_length.tolist(), gaussian.offset.tolist()


def _hyper_synthesis(z: int, N: int, M: int, depth: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlockUpsample(z, 2 * N, 2),
        *mixed_blocks(depth, N, HEAD_OF_HYPERPRIOR, WINDOW_OF_HYPERPRIOR),
        subpel_conv3x3(2 * N, M, 2),
    )


def _attention(channels: int, inner: int) -> nn.Sequential:
    return nn.Sequential(SwinAttention(channels, inner, HEAD_OF_ATTENTION, WINDOW_OF_ATTENTION))


def _prediction(channels_in: int, between: Sequence[int], channels_out: int) -> nn.Sequential:
    first, second = between
    return nn.Sequential(
        conv3x3(channels_in, first),
        nn.GELU(),
        conv3x3(first, second),
        nn.GELU(),
        conv3x3(second, channels_out),
    )
