"""The tile and the size that are taken where nobody gives one, of images, volumes and sound."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, lcm

from overlap_tool.graph import segments
from overlap_tool.graph.network import Network
from overlap_tool.settings import USUAL_SIZE, Samples, Size

SIDE = 256
SIDE_OF_VOLUMES = 64
"""A tile of a volume has all of its depth."""

LEAST_PERIODS = 8
LEAST_OVERLAPS = 4
"""How many periods of a model, and how many of its overlaps, a tile of sound holds at least."""

Scaled = tuple[Network, Fraction]
"""A stage, and the samples of its input per pixel of the image."""


def as_taken(size: Size, network: Network) -> Size:
    """A size as the network has it: of sound, the width counts."""
    return Samples(size.width, 1) if network.takes_sound else size


def square(side: int, stages: Sequence[Scaled]) -> Size:
    """A square tile; of sound, one with as many samples, where maps are finest, as that has pixels."""
    if not any(network.takes_sound for network, _ in stages):
        return Size(side, side)
    finest = max(reach.scale * scale for network, scale in stages for reach in network.columns.reaches())
    return Samples(max(1, int(side * side / finest)), 1)


def usual_tile(stages: Sequence[Scaled]) -> Size:
    """Of sound, some seconds, or more where the overlap is long, and a multiple of the model's period."""
    tile = square(SIDE_OF_VOLUMES if any(network.depth for network, _ in stages) else SIDE, stages)
    if not isinstance(tile, Samples):
        return tile
    period = lcm(*(ceil(network.columns.period / scale) for network, scale in stages))
    least = max(LEAST_PERIODS * period, LEAST_OVERLAPS * max(map(_overlap, stages)))
    return Samples(ceil(max(tile.width, least) / period) * period, 1)


def usual_size(stages: Sequence[Scaled]) -> Size:
    """What is analysed: an image of 4K, or sound and volumes of so many tiles."""
    tile = usual_tile(stages)
    if isinstance(tile, Samples):
        return Samples(16 * tile.width, 1)
    if any(network.depth for network, _ in stages):
        return Size(8 * tile.width, 8 * tile.height)
    squares = any(network.of_squares for network, _ in stages)
    return Size(USUAL_SIZE.width, USUAL_SIZE.width) if squares else USUAL_SIZE


def _overlap(stage: Scaled) -> int:
    """How much a tile of any pass reads beyond its own samples, in samples of the model's input."""
    network, scale = stage
    axes = [part.network.columns for part in segments.cut(network)]
    given = [
        (each.before + each.after) / op.scale
        for axis in axes
        for op, each in zip(axis.ops, axis.overlaps(), strict=True)
        if op.geometry is None
    ]
    return ceil(max(given) / scale)
