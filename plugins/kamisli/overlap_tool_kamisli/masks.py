"""Which blocks the layers of a codec read, by masks. They come with the weights, so they are checked."""

from __future__ import annotations

from collections.abc import Iterable

from compressai.layers import MaskedConv2d
from torch import nn

from overlap_tool.errors import WeightsError
from overlap_tool_kamisli.causality import HERE, Reach, Tap, through


def taps_of(layer: MaskedConv2d) -> list[Tap]:
    """The blocks that a layer reads, row by row as its kernel goes through them."""
    height, width = layer.kernel_size
    seen = layer.mask.ne(0).flatten(0, 1).any(0).nonzero().tolist()
    return [(row - height // 2, column - width // 2) for row, column in seen]


def reach(name: str, layers: Iterable[nn.Module]) -> Reach:
    """What the output of these layers, one after the other, reads of the reconstruction."""
    taps: frozenset[Tap] = frozenset({HERE})
    for layer in layers:
        if isinstance(layer, MaskedConv2d):
            taps = through(taps, taps_of(layer))
    found = Reach(taps)
    if not (found.taps and found.causal):
        raise WeightsError(
            name,
            "its masks let a block read itself or a later one, so that nothing could be decoded",
            "Check that the file was written completely, and by the training code you expect",
        )
    return found
