"""Gives a closed loop its methods in bounded memory, and takes them away again.

As with stages, only the instance's methods are replaced, so the model keeps its class, weights and place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from overlap_tool.errors import OptionError, TrainingModeError
from overlap_tool.geometry.plan import whole
from overlap_tool.graph.trace import trace
from overlap_tool.kernels import engine, pieces
from overlap_tool.models.closed_loop import ClosedLoop
from overlap_tool.planning.cost import macs, op_costs
from overlap_tool.settings import ORDERS, Order, Settings, Size

METHODS = ("forward", "compress", "decompress")


@dataclass(frozen=True)
class LoopPlan:
    """How a closed loop runs on images of one size: its tiles are its blocks. Otherwise as for a stage."""

    schedule: Order
    tile: Size
    tiles: int
    macs: int
    working_bytes: int
    peak_bytes: int
    # what stages may have, and a loop has not
    uniform: bool = False
    segments: tuple[()] = ()
    store_bytes: int = 0


class LoopMethod:
    """A method of a closed loop, block by block and in an engine."""

    def __init__(self, model: nn.Module, name: str, settings: Settings) -> None:
        self.model = model
        self.name = name
        self.settings = settings

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.model.training:
            raise TrainingModeError(
                type(self.model).__name__,
                "blocks with what they read are for inference, and it is in training mode",
                "Call model.eval() first",
            )
        assert isinstance(self.model, ClosedLoop)
        with engine(self.settings.engine), pieces():
            return self.model.in_order(order_of(self.settings))[self.name](*args, **kwargs)


def order_of(settings: Settings) -> Order:
    return next(order for order in ORDERS if settings.schedule in (None, order))


def wrap(model: nn.Module, settings: Settings) -> None:
    assert isinstance(model, ClosedLoop)
    name, side = type(model).__name__, model.block
    if settings.tile != (side, side) or settings.store != "auto":
        raise OptionError(
            "`tile`, `memory`, `store`",
            f"{name} goes block by block, and its blocks of {side}x{side} pixels are its tiles",
            f"Leave them out; {' or '.join(ORDERS)} as `schedule` is the choice there is",
        )
    if settings.schedule not in (None, *ORDERS):
        raise OptionError(
            f"schedule={settings.schedule!r}",
            f"in {name} every block reads the reconstruction of others, so that it cannot be cut in tiles",
            f"Use {' or '.join(ORDERS)}",
        )
    for method in METHODS:
        setattr(model, method, LoopMethod(model, method, settings))


def unwrap(model: nn.Module) -> None:
    for name in METHODS:
        if isinstance(vars(model).get(name), LoopMethod):
            delattr(model, name)


def settings_of(model: nn.Module) -> Settings | None:
    """How a closed loop was wrapped, if it was."""
    method = vars(model).get("forward")
    return method.settings if isinstance(method, LoopMethod) else None


def plan(model: ClosedLoop, settings: Settings, size: Size, images: int = 1) -> LoopPlan:
    """How it runs on images of this size, of 32-bit floats, and what that takes."""
    columns, rows = (-(-side // model.block) for side in size)
    order = order_of(settings)
    networks = [trace(network, name) for name, network in model.networks.items()]
    arithmetic = sum(macs(op_costs(n), whole(n.rows, rows), whole(n.columns, columns)) for n in networks)
    working = model.working_bytes(order, rows, columns, images)
    image = 4 * model.colours * rows * columns * model.block**2
    return LoopPlan(
        schedule=order,
        tile=Size(model.block, model.block),
        tiles=rows * columns,
        macs=images * arithmetic,
        working_bytes=working,
        peak_bytes=working + 2 * images * image,
    )


def overlaps(model: ClosedLoop) -> Mapping[str, list[int]]:
    """Left, right, top and bottom of every network, in blocks."""
    return {reach.network: [reach.left, reach.right, reach.up, 0] for reach in model.causal_reaches()}
