"""The ways to compute a network in tiles: planners, and how many tiles at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from overlap_tool.geometry import plan
from overlap_tool.geometry.axis import Axis
from overlap_tool.graph.network import Network
from overlap_tool.graph.trace import fitted
from overlap_tool.runtime.stores import TensorSink, TensorSource
from overlap_tool.settings import Store
from support.one_pass import execute

Planner = Callable[[Axis, int, int], plan.AxisPlan]


def stream(axis: Axis, n: int, tile: int) -> plan.AxisPlan:
    return plan.stream(axis, n, plan.cut(axis.sizes(n)[-1], tile))


def tiles(axis: Axis, n: int, tile: int) -> plan.AxisPlan:
    return plan.tiles(axis, n, plan.cut(axis.sizes(n)[-1], tile))


WAYS: dict[str, tuple[Planner, int]] = {
    "stream": (stream, 1),
    "tiles": (tiles, 1),
    "tiles, three at once": (tiles, 3),
    # the first and the last of a row have their own masks, and run alone
    "uniform tiles, two at once": (plan.uniform, 2),
}


def plans(
    network: Network, x: Tensor, tile: tuple[int, int], planner: Planner
) -> tuple[plan.AxisPlan, plan.AxisPlan]:
    """For rows and for columns; a tile is so many rows and columns of the output."""
    return (
        planner(network.rows, x.shape[-2], tile[0]),
        planner(network.columns, x.shape[-1], tile[1]),
    )


def in_tiles(
    network: Network,
    x: Tensor,
    tile: tuple[int, int],
    planner: Planner,
    batch: int = 1,
    device: str = "cpu",
    store: Store = "device",
) -> Tensor:
    network = fitted(network, x.shape[0], *x.shape[2:])
    rows, columns = plans(network, x, tile, planner)
    sink = TensorSink(rows.sizes[-1], columns.sizes[-1], store)
    execute(network, rows, columns, TensorSource(x, torch.device(device)), sink, batch)
    return sink.result()
