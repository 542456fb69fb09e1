"""The entropy model that both share: a hyperprior, and y in slices, each told by those before it.

A slice's mean and scale are predicted from the hyperprior and the first half of the slices; what rounding
takes away is guessed (latent residual prediction). Minnen and Singh 2020 describe it (arXiv 2007.08739).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from compressai.ans import BufferedRansEncoder, RansDecoder
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.layers import conv3x3, subpel_conv3x3
from compressai.models import CompressionModel
from compressai.ops import quantize_ste
from torch import Tensor, nn


class SlicedCodec(CompressionModel):
    """A codec with transforms `g_a` and `g_s`, and y of M channels in `slices`.

    `analysis` are the channels in h_a, from those of y to those of z, `synthesis` those in h_mean_s and
    h_scale_s, from z to y; six numbers each.
    """

    def __init__(
        self, g_a: nn.Module, g_s: nn.Module, slices: int, analysis: Sequence[int], synthesis: Sequence[int]
    ) -> None:
        super().__init__()
        channels = analysis[0]
        if channels % slices:
            raise ValueError(f"{channels} channels cannot be cut into {slices} slices")
        self.g_a = g_a
        self.g_s = g_s
        self.h_a = _hyper_analysis(analysis)
        self.h_mean_s = _hyper_synthesis(synthesis)
        self.h_scale_s = _hyper_synthesis(synthesis)
        self.most_support = slices // 2
        width = channels // slices
        support = [channels + width * min(k, self.most_support) for k in range(slices)]
        self.cc_mean_transforms = nn.ModuleList(_prediction(inputs, width) for inputs in support)
        self.cc_scale_transforms = nn.ModuleList(_prediction(inputs, width) for inputs in support)
        self.lrp_transforms = nn.ModuleList(_prediction(inputs + width, width) for inputs in support)
        self.entropy_bottleneck = EntropyBottleneck(analysis[-1])
        self.gaussian_conditional = GaussianConditional(None)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.g_a(x)
        z = self.h_a(y)
        _, z_likelihoods = self.entropy_bottleneck(z)
        medians = self.entropy_bottleneck._get_medians()
        parts = y.chunk(len(self.lrp_transforms), 1)
        likelihoods = []

        def rounded(k: int, mean: Tensor, scale: Tensor) -> Tensor:
            likelihoods.append(self.gaussian_conditional(parts[k], scale, mean)[1])
            return quantize_ste(parts[k] - mean) + mean

        y_hat = self._slice_by_slice(quantize_ste(z - medians) + medians, rounded)
        return {
            "x_hat": self.g_s(y_hat),
            "likelihoods": {"y": torch.cat(likelihoods, 1), "z": z_likelihoods},
        }

    def compress(self, x: Tensor) -> dict[str, Any]:
        """One string for y of all images, slice after slice, as the authors' code writes it."""
        y = self.g_a(x)
        z = self.h_a(y)
        z_strings = self.entropy_bottleneck.compress(z)
        parts = y.chunk(len(self.lrp_transforms), 1)
        symbols: list[int] = []
        indexes: list[int] = []

        def coded(k: int, mean: Tensor, scale: Tensor) -> Tensor:
            found = self.gaussian_conditional.quantize(parts[k], "symbols", mean)
            symbols.extend(found.flatten().tolist())
            indexes.extend(self.gaussian_conditional.build_indexes(scale).flatten().tolist())
            return found + mean

        self._slice_by_slice(self.entropy_bottleneck.decompress(z_strings, z.shape[-2:]), coded)
        encoder = BufferedRansEncoder()
        encoder.encode_with_indexes(symbols, indexes, *self._tables())
        return {"strings": [[encoder.flush()], z_strings], "shape": z.shape[-2:]}

    def decompress(self, strings: list[list[bytes]], shape: Any) -> dict[str, Tensor]:
        tables = self._tables()
        decoder = RansDecoder()
        decoder.set_stream(strings[0][0])

        def read(k: int, mean: Tensor, scale: Tensor) -> Tensor:
            indexes = self.gaussian_conditional.build_indexes(scale).flatten().tolist()
            found = torch.tensor(decoder.decode_stream(indexes, *tables), device=mean.device)
            return self.gaussian_conditional.dequantize(found.view(mean.shape), mean)

        y_hat = self._slice_by_slice(self.entropy_bottleneck.decompress(strings[1], shape), read)
        return {"x_hat": self.g_s(y_hat).clamp_(0, 1)}

    def _slice_by_slice(self, z_hat: Tensor, code: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
        """y as the decoder has it; `code` gives slice k of it, by the mean and scale predicted for it."""
        means, scales = self.h_mean_s(z_hat), self.h_scale_s(z_hat)
        done: list[Tensor] = []
        for k, residual_of in enumerate(self.lrp_transforms):
            known = done[: self.most_support]
            support = torch.cat([means, *known], 1)
            mean = self.cc_mean_transforms[k](support)
            scale = self.cc_scale_transforms[k](torch.cat([scales, *known], 1))
            coded = code(k, mean, scale)
            done.append(coded + 0.5 * torch.tanh(residual_of(torch.cat([support, coded], 1))))
        return torch.cat(done, 1)

    def _tables(self) -> tuple[list[list[int]], list[int], list[int]]:
        """The CDFs as the range coder wants them: the tables, their lengths, their offsets."""
        gaussian = self.gaussian_conditional
        return gaussian.quantized_cdf.tolist(), gaussian.cdf_length.tolist(), gaussian.offset.tolist()


def evenly(first: int, last: int) -> list[int]:
    """Five numbers from first to last."""
    return [first + (last - first) * k // 4 for k in range(5)]


def _activated(layers: Sequence[nn.Module]) -> nn.Sequential:
    """With a GELU between any two."""
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.GELU())][:-1])


def _hyper_analysis(channels: Sequence[int]) -> nn.Sequential:
    strides = (1, 1, 2, 1, 2)
    return _activated(
        [conv3x3(*pair, stride=stride) for pair, stride in zip(pairwise(channels), strides, strict=True)]
    )


def _hyper_synthesis(channels: Sequence[int]) -> nn.Sequential:
    factors = (1, 2, 1, 2, 1)
    return _activated(
        [
            subpel_conv3x3(*pair, r=factor) if factor > 1 else conv3x3(*pair)
            for pair, factor in zip(pairwise(channels), factors, strict=True)
        ]
    )


def _prediction(inputs: int, width: int) -> nn.Sequential:
    """From the support of a slice to its mean, scale or residual, of `width` channels."""
    channels = (inputs, 7 * width, 11 * width // 2, 4 * width, 2 * width, width)
    return _activated([conv3x3(*pair) for pair in pairwise(channels)])
