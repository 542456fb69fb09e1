"""The codec front by front, with only those blocks at hand that later ones still read.

Every value is computed once, from the same numbers by the same operations as on the whole map. So it has the
same bits under the exact engine, whatever the order and however many blocks are computed together.

The blocks of a front go through the layers side by side, as one row: (1, channels, 1, images * blocks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from compressai.entropy_models import GaussianConditional
from compressai.layers import GDN, MaskedConv2d
from torch import Tensor, nn

from overlap_tool_kamisli import blocks
from overlap_tool_kamisli.causality import HERE, Front, Tap, fronts
from overlap_tool_kamisli.masks import taps_of
from overlap_tool_kamisli.rows import RowDecoder, RowEncoder, Tables, check_strings

if TYPE_CHECKING:
    from overlap_tool_kamisli.codec import BlockCodec

Step = Callable[[Front, Tensor], Tensor]
"""Something done to the blocks of a front."""


class History:
    """What the last fronts gave of one map, as far back as later blocks read it."""

    def __init__(self, taps: Sequence[Tap], slope: int, nothing: Tensor) -> None:
        """`nothing` stands where there is no block, as (images, channels)."""
        self.taps = taps
        self.lags = [slope * -row - column for row, column in taps]
        """How many fronts ago the block at each tap was computed."""
        self.nothing = nothing
        self.past: dict[int, tuple[Front, Tensor]] = {}

    def add(self, front: Front, values: Tensor) -> None:
        self.past[front.time] = front, blocks.spread(values, front)
        while (oldest := next(iter(self.past))) < front.time - max(self.lags):
            del self.past[oldest]

    def around(self, front: Front) -> Tensor:
        """What a layer with these taps reads, a row for each tap: (1, channels, taps, images * blocks)."""
        found = self.nothing.repeat(len(self.taps), len(front.rows), 1, 1)
        for place, (row, _), lag in zip(found, self.taps, self.lags, strict=True):
            if front.time - lag not in self.past:
                continue
            then, values = self.past[front.time - lag]
            start, stop = max(front.start + row, then.start), min(front.stop + row, then.stop)
            if start < stop:
                place[start - row - front.start : stop - row - front.start] = values[
                    start - then.start : stop - then.start
                ]
        return found.flatten(1, 2).permute(2, 0, 1).unsqueeze(0)


def kernel(layer: MaskedConv2d, taps: Sequence[Tap]) -> Callable[[Tensor], Tensor]:
    """A masked convolution of what `History.around` gives for these taps, which go row by row."""
    height, width = layer.kernel_size
    places = [(..., height // 2 + row, width // 2 + column) for row, column in taps]
    weight = torch.stack([layer.weight[place] * layer.mask[place] for place in places], 2).unsqueeze(3)
    return lambda read: F.conv2d(read, weight, layer.bias)


def normalisation(layer: GDN) -> Step:
    """GDN with its parameters made ready once, and not for every block."""
    channels = layer.beta.shape[0]
    beta = layer.beta_reparam(layer.beta)
    gamma = layer.gamma_reparam(layer.gamma).reshape(channels, channels, 1, 1)
    root = torch.sqrt if layer.inverse else torch.rsqrt
    return lambda front, x: x * root(F.conv2d(x**2, gamma, beta))


def step(layer: nn.Module, slope: int, images: int) -> Step:
    if isinstance(layer, GDN):
        return normalisation(layer)
    if not isinstance(layer, MaskedConv2d):
        return lambda front, x: layer(x)
    taps = taps_of(layer)
    convolve = kernel(layer, taps)
    if taps == [HERE]:
        return lambda front, x: convolve(x)
    history = History(taps, slope, layer.weight.new_zeros(images, layer.in_channels))

    def remembering(front: Front, x: Tensor) -> Tensor:
        history.add(front, x)
        return convolve(history.around(front))

    return remembering


def steps(layers: nn.Sequential, slope: int, images: int) -> Step:
    each = [step(layer, slope, images) for layer in layers]

    def run(front: Front, x: Tensor) -> Tensor:
        for one in each:
            x = one(front, x)
        return x

    return run


SymbolsOf = Callable[[Front, Tensor, Tensor, Tensor], Tensor]
"""The symbols of a front, from what it reads of the reconstruction, and from its scales and means."""


def remembered(codec: BlockCodec) -> list[tuple[list[Tap], int]]:
    """The maps of which blocks are kept: taps of who reads them, and channels. The reconstruction first."""
    known = sorted({tap for head in codec.heads for tap in taps_of(head)})
    hidden = [layer for layer in codec.get_meanscale[1:] if isinstance(layer, MaskedConv2d)]
    wide = [(taps_of(layer), layer.in_channels) for layer in hidden if taps_of(layer) != [HERE]]
    return [(known, codec.heads[0].in_channels), *wide]


class Loop:
    """The closed loop over a grid of blocks, for one batch of images."""

    def __init__(self, codec: BlockCodec, slope: int, images: int, height: int, width: int) -> None:
        self.images, self.height, self.width, self.slope = images, height, width, slope
        (taps, channels), *_ = remembered(codec)
        self.known = History(taps, slope, codec.prtr_inverse1.weight.new_zeros(images, channels))
        self.analysis_before, self.synthesis_before, self.mean_scale_before = (
            kernel(head, taps) for head in codec.heads
        )
        self.analysis_block = step(codec.prtr_forward1, slope, images)
        self.analysis_rest = steps(codec.prtr_forward3, slope, images)
        self.synthesis_block = step(codec.prtr_inverse1, slope, images)
        self.synthesis_rest = steps(codec.prtr_inverse3, slope, images)
        self.mean_scale_rest = steps(codec.get_meanscale[1:], slope, images)

    def latents(self, front: Front, read: Tensor, block: Tensor) -> Tensor:
        return self.analysis_rest(front, self.analysis_block(front, block) + self.analysis_before(read))

    def reconstructions(self, symbols_of: SymbolsOf) -> Iterator[tuple[Front, Tensor]]:
        for front in fronts(self.height, self.width, self.slope):
            read = self.known.around(front)
            scales, means = self.mean_scale_rest(front, self.mean_scale_before(read)).chunk(2, 1)
            latents = symbols_of(front, read, scales, means) + means
            block = self.synthesis_block(front, latents) + self.synthesis_before(read)
            found = self.synthesis_rest(front, block).clamp(-blocks.GREY, blocks.GREY)
            self.known.add(front, found)
            yield front, found


class BlockByBlock:
    """The codec's own methods, front by front: the blocks of a wavefront together, or one after another."""

    def __init__(self, codec: BlockCodec, together: bool) -> None:
        self.codec = codec
        self.together = together

    @torch.no_grad()
    def forward(self, image: Tensor) -> dict[str, Any]:
        model, loop, image = self.codec.conditional_gaussian_model, self._loop_over(image), image.contiguous()
        x_hat = torch.empty_like(image)
        likelihoods = image.new_empty(loop.images, self.codec.latent_channels, loop.height, loop.width)

        def symbols_of(front: Front, read: Tensor, scales: Tensor, means: Tensor) -> Tensor:
            latents = loop.latents(front, read, self._pixels(image, front))
            _, likely = model(latents, scales, means)
            blocks.put(likely, likelihoods, 1, front)
            return model.quantize(latents, "symbols", means)

        for front, found in loop.reconstructions(symbols_of):
            blocks.put(found + blocks.GREY, x_hat, self.codec.block, front)
        return {"x_hat": x_hat, "likelihoods": {"y": likelihoods}}

    @torch.no_grad()
    def compress(self, image: Tensor) -> dict[str, Any]:
        model, loop, image = self.codec.conditional_gaussian_model, self._loop_over(image), image.contiguous()
        tables, started, strings = Tables(model), dict[int, list[RowEncoder]](), dict[int, list[bytes]]()

        def symbols_of(front: Front, read: Tensor, scales: Tensor, means: Tensor) -> Tensor:
            symbols = model.quantize(loop.latents(front, read, self._pixels(image, front)), "symbols", means)
            of_rows, indexes = (
                blocks.spread(part, front).cpu().numpy() for part in (symbols, indexes_of(model, scales))
            )
            for row, *of_row in zip(front.rows, of_rows, indexes, strict=True):
                encoders = started.setdefault(row, [RowEncoder(tables) for _ in range(loop.images)])
                for encoder, *of_block in zip(encoders, *of_row, strict=True):
                    encoder.add(*of_block)
                if front.column(row) == loop.width - 1:
                    strings[row] = [encoder.string() for encoder in started.pop(row)]
            return symbols

        for _ in loop.reconstructions(symbols_of):
            pass
        return {"strings": [strings[row] for row in range(loop.height)], "shape": (loop.height, loop.width)}

    @torch.no_grad()
    def decompress(self, strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> dict[str, Tensor]:
        images, height, width = check_strings(strings, shape)
        model, loop = self.codec.conditional_gaussian_model, self._loop(images, height, width)
        tables, started = Tables(model), dict[int, list[RowDecoder]]()
        symbols_in_row = self.codec.latent_channels * width
        x_hat = loop.known.nothing.new_empty(images, 3, height * self.codec.block, width * self.codec.block)

        def symbols_of(front: Front, read: Tensor, scales: Tensor, means: Tensor) -> Tensor:
            found = []
            indexes = blocks.spread(indexes_of(model, scales), front).tolist()
            for row, of_row in zip(front.rows, indexes, strict=True):
                if row not in started:
                    started[row] = [RowDecoder(tables, string, symbols_in_row) for string in strings[row]]
                found += [
                    decoder.decode(of_block) for decoder, of_block in zip(started[row], of_row, strict=True)
                ]
                if front.column(row) == width - 1:
                    del started[row]
            return torch.tensor(found, device=means.device).T[None, :, None]

        for front, reconstruction in loop.reconstructions(symbols_of):
            blocks.put(reconstruction + blocks.GREY, x_hat, self.codec.block, front)
        return {"x_hat": x_hat}

    def working_bytes(self, rows: int, columns: int, images: int) -> int:
        """What is held at most beside images, strings and outputs, in 32-bit floats."""
        slope = self._slope(columns)
        at_once = images * max(len(front.rows) for front in fronts(rows, columns, slope))
        convolutions = [layer for layer in self.codec.modules() if isinstance(layer, MaskedConv2d)]
        kernels = [(layer.out_channels, layer.in_channels * len(taps_of(layer))) for layer in convolutions]
        kernels += [tuple(layer.gamma.shape) for layer in self.codec.modules() if isinstance(layer, GDN)]
        # made ready, and once more as the exact engine reads them
        weights = sum((outputs + _whole_vectors(outputs)) * inputs + outputs for outputs, inputs in kernels)
        kept = read = 0
        for taps, channels in remembered(self.codec):
            kept += channels * (1 + max(slope * -row - column for row, column in taps))
            read = max(read, channels * len(taps))
        widest = max(layer.out_channels for layer in convolutions)
        return 4 * (weights + at_once * (kept + read + 5 * widest))

    def _slope(self, columns: int) -> int:
        return self.codec.reach.slope if self.together else columns

    def _loop_over(self, image: Tensor) -> Loop:
        blocks.check(image, self.codec.block)
        height, width = (side // self.codec.block for side in image.shape[2:])
        return self._loop(image.shape[0], height, width)

    def _loop(self, images: int, height: int, width: int) -> Loop:
        return Loop(self.codec, self._slope(width), images, height, width)

    def _pixels(self, image: Tensor, front: Front) -> Tensor:
        return blocks.take(image, self.codec.block, front) - blocks.GREY


def _whole_vectors(channels: int) -> int:
    """Channels as the exact engine fills them up, with the longest vectors there are."""
    return -(-channels // 16) * 16


def indexes_of(model: GaussianConditional, scales: Tensor) -> Tensor:
    """CompressAI's `build_indexes` by one binary search: how many scales of the table are smaller."""
    bounded = model.lower_bound_scale(scales)
    return torch.bucketize(bounded.contiguous(), model.scale_table[:-1].to(bounded.dtype), out_int32=True)
