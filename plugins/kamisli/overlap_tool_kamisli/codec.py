"""The codec as the paper defines it, on whole maps: plain, slow, and what everything else is held to.

F. Kamisli, "End-to-End Learned Block-Based Image Compression with Block-Level Masked Convolutions and
Asymptotic Closed Loop Training". Names of parts are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from compressai.entropy_models import GaussianConditional
from compressai.layers import GDN, MaskedConv2d
from compressai.models import CompressionModel
from torch import Tensor, nn

from overlap_tool.models.closed_loop import CausalReach
from overlap_tool.settings import Order
from overlap_tool_kamisli import blocks
from overlap_tool_kamisli.blockwise import BlockByBlock
from overlap_tool_kamisli.causality import Reach
from overlap_tool_kamisli.masks import reach
from overlap_tool_kamisli.rows import RowDecoder, RowEncoder, Tables, check_strings


def current(inputs: int, outputs: int) -> MaskedConv2d:
    """A layer that reads its own block only."""
    return MaskedConv2d(inputs, outputs, 1, mask_type="B")


def before(inputs: int, outputs: int) -> MaskedConv2d:
    """A layer that reads the neighbours to the left and above, and not its own block."""
    return MaskedConv2d(inputs, outputs, 3, padding=1, mask_type="A")


def normalised(inputs: int, wide: int, narrow: int, outputs: int, inverse: bool) -> nn.Sequential:
    """What follows on the first layer of both transforms: all of it within the block."""
    return nn.Sequential(
        GDN(inputs, inverse=inverse),
        current(inputs, wide),
        GDN(wide, inverse=inverse),
        current(wide, narrow),
        GDN(narrow, inverse=inverse),
        current(narrow, outputs),
    )


class Predictive(nn.Module):
    """A transform of a block that also reads the reconstructed blocks before it.

    It takes both as one map: the reconstruction's channels, then those of what is transformed.
    """

    def __init__(self, current: MaskedConv2d, before: MaskedConv2d, rest: nn.Sequential) -> None:
        super().__init__()
        self.current = current
        self.before = before
        self.rest = rest
        self.in_channels = before.in_channels + current.in_channels

    def forward(self, maps: Tensor) -> Tensor:
        known = maps.narrow(1, 0, self.before.in_channels)
        block = maps.narrow(1, self.before.in_channels, self.current.in_channels)
        return self.rest(self.current(block) + self.before(known))


class Coded(NamedTuple):
    """What one pass over a map of blocks gives. `symbols` are the integers that are coded."""

    symbols: Tensor
    scales: Tensor
    means: Tensor
    latents: Tensor
    """Before they are rounded."""
    reconstruction: Tensor


class BlockCodec(CompressionModel):
    """N is the width of the transforms, M that of the latents, `block` the side of a block in pixels.

    `kernel` is that of the second layer of the network for means and scales: 1 for HPS1, 3 for HPS2.
    """

    def __init__(self, N: int = 768, M: int = 96, block: int = 8, kernel: int = 1) -> None:
        super().__init__()
        pixels, wide, narrow = 3 * block**2, N // 8 * 7, N // 8 * 6
        self.block = block
        self.prtr_forward1 = current(pixels, N)
        self.prtr_forward2 = before(pixels, N)
        self.prtr_forward3 = normalised(N, wide, narrow, M, inverse=False)
        self.prtr_inverse1 = current(M, N)
        self.prtr_inverse2 = before(pixels, N)
        self.prtr_inverse3 = normalised(N, wide, narrow, pixels, inverse=True)
        first, second, third = N // 8 * 12, N // 8 * 10, N // 8 * 8
        self.get_meanscale = nn.Sequential(
            before(pixels, first),
            nn.LeakyReLU(),
            MaskedConv2d(first, second, kernel, padding=kernel // 2, mask_type="B"),
            nn.LeakyReLU(),
            current(second, third),
            nn.LeakyReLU(),
            current(third, 2 * M),
        )
        self.conditional_gaussian_model = GaussianConditional(None)
        # In a dictionary, so that these views of the parts above add no keys to the state dict.
        self.networks: dict[str, nn.Module] = {
            "analysis": Predictive(self.prtr_forward1, self.prtr_forward2, self.prtr_forward3),
            "mean_scale": self.get_meanscale,
            "synthesis": Predictive(self.prtr_inverse1, self.prtr_inverse2, self.prtr_inverse3),
        }

    def train(self, mode: bool = True) -> BlockCodec:
        for network in self.networks.values():
            network.train(mode)
        return super().train(mode)

    colours = 3
    stage_ends: ClassVar = {
        "prtr_forward3": (6.0, 0.0),
        "prtr_inverse3": (0.2, 0.0),
        "get_meanscale": (1.0, 1.5),
    }
    """Gains and biases with which seeded weights give symbols of several values, and unclipped pixels."""

    def causal_reaches(self) -> tuple[CausalReach, ...]:
        return tuple(
            CausalReach(name, self.block, reach.left, reach.right, reach.up, reach.slope)
            for name, reach in self.reaches.items()
        )

    def in_order(self, order: Order) -> Mapping[str, Callable[..., Any]]:
        run = BlockByBlock(self, together=order == "wavefront")
        return {"forward": run.forward, "compress": run.compress, "decompress": run.decompress}

    def working_bytes(self, order: Order, rows: int, columns: int, images: int) -> int:
        return BlockByBlock(self, together=order == "wavefront").working_bytes(rows, columns, images)

    @property
    def heads(self) -> tuple[MaskedConv2d, MaskedConv2d, MaskedConv2d]:
        """The layers that read the reconstruction: of analysis, synthesis, and means and scales."""
        return self.prtr_forward2, self.prtr_inverse2, self.get_meanscale[0]

    @property
    def latent_channels(self) -> int:
        return self.prtr_inverse1.in_channels

    @property
    def reaches(self) -> dict[str, Reach]:
        """The reconstructed blocks that each network reads for a block."""
        return {
            "analysis": reach("prtr_forward", [self.prtr_forward2, *self.prtr_forward3]),
            "mean_scale": reach("get_meanscale", self.get_meanscale),
            "synthesis": reach("prtr_inverse", [self.prtr_inverse2, *self.prtr_inverse3]),
        }

    @property
    def reach(self) -> Reach:
        """All that a block is computed from."""
        return Reach(frozenset(tap for reach in self.reaches.values() for tap in reach.taps))

    def analysis(self, known: Tensor, block: Tensor) -> Tensor:
        """Latents of the blocks, where `known` is what has been reconstructed before each."""
        return self.networks["analysis"](torch.cat([known, block], 1))

    def mean_scale(self, known: Tensor) -> tuple[Tensor, Tensor]:
        scales, means = self.networks["mean_scale"](known).chunk(2, 1)
        return scales, means

    def synthesis(self, known: Tensor, latents: Tensor) -> Tensor:
        """The reconstructed blocks, within the range of pixels."""
        return self.networks["synthesis"](torch.cat([known, latents], 1)).clamp(-blocks.GREY, blocks.GREY)

    def one_pass(self, known: Tensor, x: Tensor) -> Coded:
        """Every block of a map, each from what `known` says of the blocks before it."""
        scales, means = self.mean_scale(known)
        latents = self.analysis(known, x)
        symbols = self.conditional_gaussian_model.quantize(latents, "symbols", means)
        return Coded(symbols, scales, means, latents, self.synthesis(known, symbols + means))

    def closed_loop(self, image: Tensor) -> Coded:
        """Every block from the *reconstructed* blocks before it.

        Pass by pass over the whole map, until what comes out is what went in. The first block reads no other
        and is right after one pass; after another, so are those that read it only; and so on. What is right
        no longer changes. So it ends, and at the one map in which every block follows from those before it.
        """
        blocks.check(image, self.block)
        x = blocks.to_blocks(image - blocks.GREY, self.block)
        known, coded = torch.zeros_like(x), self.one_pass(torch.zeros_like(x), x)
        for _ in range(x.shape[2] * x.shape[3]):
            known, coded = coded.reconstruction, self.one_pass(coded.reconstruction, x)
            if torch.equal(coded.reconstruction, known):
                break
        return coded

    def forward(self, image: Tensor) -> dict[str, Any]:
        coded = self.closed_loop(image)
        _, likelihoods = self.conditional_gaussian_model(coded.latents, coded.scales, coded.means)
        return {"x_hat": self.to_image(coded.reconstruction), "likelihoods": {"y": likelihoods}}

    def compress(self, image: Tensor) -> dict[str, Any]:
        """A string for every row of blocks and every image. `shape` counts rows and columns of blocks."""
        coded, tables = self.closed_loop(image), Tables(self.conditional_gaussian_model)
        indexes = self.conditional_gaussian_model.build_indexes(coded.scales)
        strings: list[list[bytes]] = []
        for of_row in zip(coded.symbols.unbind(2), indexes.unbind(2), strict=True):
            encoders = []
            for symbols, of_symbols in zip(*of_row, strict=True):
                encoders.append(RowEncoder(tables))
                encoders[-1].add(symbols.T.flatten().cpu().numpy(), of_symbols.T.flatten().cpu().numpy())
            strings.append([encoder.string() for encoder in encoders])
        return {"strings": strings, "shape": tuple(indexes.shape[2:])}

    def decompress(self, strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> dict[str, Tensor]:
        """Block by block in raster order: for each, all networks on the whole map as it is known by then."""
        images, height, width = check_strings(strings, shape)
        tables, channels = Tables(self.conditional_gaussian_model), self.latent_channels
        known = self.prtr_inverse1.weight.new_zeros(images, 3 * self.block**2, height, width)
        latents = known.new_zeros(images, channels, height, width)
        for row in range(height):
            decoders = [RowDecoder(tables, string, channels * width) for string in strings[row]]
            for column in range(width):
                here = (..., row, column)
                scales, means = self.mean_scale(known)
                indexes = self.conditional_gaussian_model.build_indexes(scales[here])
                symbols = [decoder.decode(of.tolist()) for decoder, of in zip(decoders, indexes, strict=True)]
                latents[here] = torch.tensor(symbols, device=means.device) + means[here]
                known[here] = self.synthesis(known, latents)[here]
        return {"x_hat": self.to_image(known)}

    def to_image(self, reconstruction: Tensor) -> Tensor:
        return blocks.to_image(reconstruction, self.block) + blocks.GREY
