"""Coding y in slices, each predicted from a hyperprior and from slices before it, whatever predicts them.

Minnen and Singh 2020 describe it (arXiv 2007.08739): besides mean and scale, what rounding takes away is
predicted, too (latent residual prediction). Other plugins build on this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from compressai.ans import BufferedRansEncoder
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.layers import conv3x3
from compressai.models import CompressionModel
from compressai.ops import quantize_ste
from torch import Tensor, nn

from overlap_tool.models.range_coding import decode_in_pieces, decoder_of, encode_in_pieces


class SlicedCodec(CompressionModel):
    """A subclass brings these parts; `predict_slices` makes the last three."""

    g_a: nn.Module
    g_s: nn.Module
    h_a: nn.Module
    h_mean_s: nn.Module
    h_scale_s: nn.Module
    entropy_bottleneck: EntropyBottleneck
    gaussian_conditional: GaussianConditional
    cc_mean_transforms: nn.ModuleList
    cc_scale_transforms: nn.ModuleList
    lrp_transforms: nn.ModuleList

    most_support: int
    """How many slices at most a later one is predicted from: the first ones."""
    string_per_image: bool
    """Whether y of every image has a string of its own, or one string has those of a whole batch."""

    def predict_slices(self, width: int, support: Sequence[int], between: Sequence[int]) -> None:
        """Of `width` channels each, from as many as `support` has, by convolutions with `between` inside."""

        def predictors(more: int = 0) -> nn.ModuleList:
            channels = [(inputs + more, *between, width) for inputs in support]
            return nn.ModuleList(activated(conv3x3(*pair) for pair in pairwise(one)) for one in channels)

        self.cc_mean_transforms = predictors()
        self.cc_scale_transforms = predictors()
        self.lrp_transforms = predictors(more=width)

    def attended(self, k: int, of_mean: Tensor, of_scale: Tensor) -> tuple[Tensor, Tensor]:
        """What slice k is predicted from, before its predictors see it: hyperprior and slices at hand."""
        return of_mean, of_scale

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
        """A string for y has slice after slice."""
        y = self.g_a(x)
        z = self.h_a(y)
        z_strings = self.entropy_bottleneck.compress(z)
        parts = y.chunk(len(self.lrp_transforms), 1)
        encoders = [BufferedRansEncoder() for _ in range(y.shape[0] if self.string_per_image else 1)]
        tables = self._tables()

        def coded(k: int, mean: Tensor, scale: Tensor) -> Tensor:
            found = self.gaussian_conditional.quantize(parts[k], "symbols", mean)
            indexes = self.gaussian_conditional.build_indexes(scale)
            of_each = zip(encoders, _shared(found, encoders), _shared(indexes, encoders), strict=True)
            for encoder, symbols, where in of_each:
                encode_in_pieces(encoder, symbols, where, *tables)
            return found + mean

        self._slice_by_slice(self.entropy_bottleneck.decompress(z_strings, z.shape[-2:]), coded)
        return {"strings": [[encoder.flush() for encoder in encoders], z_strings], "shape": z.shape[-2:]}

    def decompress(self, strings: list[list[bytes]], shape: Any) -> dict[str, Tensor]:
        wanted = len(strings[1]) if self.string_per_image else 1
        if len(strings[0]) != wanted:
            raise ValueError(f"{len(strings[0])} strings for y, which has {wanted}")
        decoders: list[Any] = []
        tables = self._tables()

        def read(k: int, mean: Tensor, scale: Tensor) -> Tensor:
            if k == 0:  # only now it is known how many symbols there are
                count = mean.numel() * len(self.lrp_transforms) // wanted
                decoders.extend(decoder_of(string, count) for string in strings[0])
            indexes = _shared(self.gaussian_conditional.build_indexes(scale), decoders)
            symbols = [
                decode_in_pieces(decoder, of_one, *tables)
                for decoder, of_one in zip(decoders, indexes, strict=True)
            ]
            found = torch.cat(symbols).to(mean.device).reshape(mean.shape)
            return self.gaussian_conditional.dequantize(found, mean)

        y_hat = self._slice_by_slice(self.entropy_bottleneck.decompress(strings[1], shape), read)
        return {"x_hat": self.g_s(y_hat).clamp_(0, 1)}

    def _slice_by_slice(self, z_hat: Tensor, code: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
        """y as the decoder has it; `code` gives slice k of it, by the mean and scale predicted for it."""
        means, scales = self.h_mean_s(z_hat), self.h_scale_s(z_hat)
        done: list[Tensor] = []
        for k, residual_of in enumerate(self.lrp_transforms):
            known = done[: self.most_support]
            of_mean, of_scale = self.attended(
                k, torch.cat([means, *known], 1), torch.cat([scales, *known], 1)
            )
            mean = self.cc_mean_transforms[k](of_mean)
            coded = code(k, mean, self.cc_scale_transforms[k](of_scale))
            done.append(coded + 0.5 * torch.tanh(residual_of(torch.cat([of_mean, coded], 1))))
        return torch.cat(done, 1)

    def _tables(self) -> tuple[list[list[int]], list[int], list[int]]:
        """The CDFs as the range coder wants them: the tables, their lengths, their offsets."""
        gaussian = self.gaussian_conditional
        return gaussian.quantized_cdf.tolist(), gaussian.cdf_length.tolist(), gaussian.offset.tolist()


def supports(channels: int, slices: int, most: int) -> list[int]:
    """How many channels each slice is predicted from: those of the hyperprior, and of slices before it."""
    if channels % slices:
        raise ValueError(f"{channels} channels cannot be cut into {slices} slices")
    return [channels + channels // slices * min(k, most) for k in range(slices)]


def activated(layers: Iterable[nn.Module]) -> nn.Sequential:
    """With a GELU between any two."""
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.GELU())][:-1])


def _shared(numbers: Tensor, coders: Sequence[object]) -> Tensor:
    """The numbers of a batch, in a row for each coder: of one image, or of all."""
    return numbers.reshape(len(coders), -1)
