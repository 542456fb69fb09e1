"""How an output is cut into pieces that workers compute alone, and what their halos cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from overlap_tool.errors import OptionError
from overlap_tool.geometry import Span
from overlap_tool.geometry.walk import Area
from overlap_tool.planning.choose import Shape, plan_part
from overlap_tool.planning.cost import macs, op_costs
from overlap_tool.wrapping.retrofit import TiledForward

SIDE = 4096
"""Rows and columns of a piece: a halo of 30 pixels around it is recomputed at 3 % of its cost."""

PIECES = 8
"""A scene of fewer is cut into smaller ones, so that there is work for several workers."""


def refuse_whole_maps(stage: TiledForward) -> None:
    """A network of which no piece can be computed without all of the map."""
    if stage.network.need_whole_maps:
        barrier = stage.network.need_whole_maps[0]
        raise OptionError(
            f"{barrier.name} ({barrier.kind})",
            "needs the whole map, which no worker has",
            "Run the network in one process: memory is bounded there, too",
        )


def refuse_other_networks(stage: TiledForward, shape: Shape) -> None:
    """A network whose ops follow the size of the image, which a piece does not show."""
    if stage.fitted(shape.images, shape.rows, shape.columns) is not stage.network:
        raise OptionError(
            stage.name, "its ops follow the size of the image", "Run the network in one process"
        )


def refuse_other_bits(stage: TiledForward) -> None:
    """The library's kernels, whose last bits would follow the pieces."""
    if stage.settings.engine != "exact":
        raise OptionError(
            f"engine={stage.settings.engine!r}",
            "its last bits depend on where a piece begins",
            'Wrap the model without `engine="stock"`',
        )


def grid(rows: Sequence[int], columns: Sequence[int]) -> list[Area]:
    """The rectangles between these edges, from left to right and from the top down."""
    return [Area(Span(*down), Span(*across)) for down in pairwise(rows) for across in pairwise(columns)]


def edges(size: int, side: int) -> list[int]:
    return [*range(0, size, side), size]


def cut_scene(size: tuple[int, int], chunk: tuple[int, int], side: int | None) -> list[Area]:
    """The pieces of an output: whole chunks of its file, so that no two workers write one."""
    height, width = size

    def pieces(side: int) -> list[Area]:
        high, wide = (max(1, round(side / of)) * of for of in chunk)
        return grid(edges(height, high), edges(width, wide))

    if side is not None:
        return pieces(side)
    side = SIDE
    while len(pieces(side)) < PIECES and side > max(chunk):
        side //= 2
    return pieces(side)


def recomputed(stage: TiledForward, shape: Shape, areas: Sequence[Area]) -> float:
    """The share of the arithmetic of one process that pieces add to it by their halos."""
    plan = stage.plan(shape)
    costs = op_costs(stage.network)
    parts = [plan_part(stage.input_scale, plan, area)[0] for area in areas]
    return sum(macs(costs, part.rows, part.columns) for part in parts) / max(1, plan.macs) - 1
