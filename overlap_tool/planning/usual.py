"""Default tiles and sizes, for images, volumes and sound."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, lcm

from overlap_tool.graph import segments
from overlap_tool.graph.network import Network
from overlap_tool.settings import USUAL_SIZE, Samples, Size

SIDE = 256
SIDE_OF_VOLUMES = 64
"""The default tile of a volume, which has all of its depth."""

LEAST_PERIODS = 8
LEAST_OVERLAPS = 4
"""A tile of sound holds at least this many overlaps of the model, and at least `LEAST_PERIODS` of its
periods."""

Scaled = tuple[Network, Fraction]
"""A stage, and the samples of its input per pixel of the image."""


def as_taken(size: Size, network: Network) -> Size:
    """A size as the network uses it: of sound, only the width."""
    return Samples(size.width, 1) if network.takes_sound else size


def square(side: int, stages: Sequence[Scaled]) -> Size:
    """A square tile; for sound, a tile of `side * side` samples at the finest scale of the network."""
    if not any(network.takes_sound for network, _ in stages):
        return Size(side, side)
    finest = max(reach.scale * scale for network, scale in stages for reach in network.columns.reaches())
    return Samples(max(1, int(side * side / finest)), 1)


def usual_tile(stages: Sequence[Scaled]) -> Size:
    """The default tile. For sound it is some seconds, more where the overlap is long, in whole periods."""
    tile = square(SIDE_OF_VOLUMES if any(network.depth for network, _ in stages) else SIDE, stages)
    if not isinstance(tile, Samples):
        return tile
    period = lcm(*(ceil(network.columns.period / scale) for network, scale in stages))
    least = max(LEAST_PERIODS * period, LEAST_OVERLAPS * max(map(_overlap, stages)))
    return Samples(ceil(max(tile.width, least) / period) * period, 1)


def usual_size(stages: Sequence[Scaled]) -> Size:
    """The default size for an analysis: a 4K image, or several tiles of a sound or volume."""
    tile = usual_tile(stages)
    if isinstance(tile, Samples):
        return Samples(16 * tile.width, 1)
    if any(network.depth for network, _ in stages):
        return Size(8 * tile.width, 8 * tile.height)
    squares = any(network.of_squares for network, _ in stages)
    return Size(USUAL_SIZE.width, USUAL_SIZE.width) if squares else USUAL_SIZE


def _overlap(stage: Scaled) -> int:
    """How far a tile of any pass reads beyond its own samples, in samples of the model's input."""
    network, scale = stage
    axes = [part.network.columns for part in segments.cut(network)]
    given = [
        (each.before + each.after) / op.scale
        for axis in axes
        for op, each in zip(axis.ops, axis.overlaps(), strict=True)
        if op.geometry is None
    ]
    return ceil(max(given) / scale)
