"""Gives a closed loop methods that run in bounded memory, and restores its own.

As with stages, only the instance's methods are replaced, so the model keeps its class, weights and place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from overlap_tool.errors import OptionError, TrainingModeError
from overlap_tool.geometry.plan import whole
from overlap_tool.graph.standing_in import StandIn
from overlap_tool.graph.trace import trace
from overlap_tool.kernels import pieces
from overlap_tool.models.closed_loop import ClosedLoop
from overlap_tool.planning.choose import Plan
from overlap_tool.planning.cost import macs, op_costs
from overlap_tool.rules import engine
from overlap_tool.settings import ORDERS, Order, Settings, Size

METHODS = ("forward", "compress", "decompress")


class LoopMethod(StandIn):
    """A method of a closed loop, run block by block in one of the engines."""

    def __init__(self, model: ClosedLoop, name: str, settings: Settings) -> None:
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
        with engine(self.settings.engine), pieces():
            return self.model.in_order(order_of(self.settings))[self.name](*args, **kwargs)


def order_of(settings: Settings) -> Order:
    return next(order for order in ORDERS if settings.schedule in (None, order))


@dataclass(frozen=True)
class LoopTiling:
    """The `Tiling` of a closed loop, whose tiles are its blocks."""

    model: ClosedLoop

    @property
    def tile(self) -> Size:
        return Size(self.model.block, self.model.block)

    @property
    def settings(self) -> Settings | None:
        method = vars(self.model).get("forward")
        return method.settings if isinstance(method, LoopMethod) else None

    def begin(self, settings: Settings) -> None:
        name, orders = type(self.model).__name__, " or ".join(ORDERS)
        if settings.tile != self.tile or settings.store != "auto":
            raise OptionError(
                "`tile`, `memory`, `store`",
                f"{name} goes block by block, and its blocks of {self.tile} pixels are its tiles",
                f"Leave them out; {orders} as `schedule` is the choice there is",
            )
        if settings.schedule not in (None, *ORDERS):
            raise OptionError(
                f"schedule={settings.schedule!r}",
                f"in {name} every block reads the reconstruction of others: it cannot be cut in tiles",
                f"Use {orders}",
            )
        for method in METHODS:
            setattr(self.model, method, LoopMethod(self.model, method, settings))

    settle = begin

    def plans(self, size: Size, images: int) -> dict[str, Plan]:
        """One plan for the loop as a whole, for images of 32-bit floats."""
        model, settings = self.model, self.settings
        assert settings is not None
        columns, rows = (-(-side // model.block) for side in size)
        order = order_of(settings)
        networks = [trace(network, name) for name, network in model.networks.items()]
        arithmetic = sum(macs(op_costs(n), whole(n.rows, rows), whole(n.columns, columns)) for n in networks)
        working = model.working_bytes(order, rows, columns, images)
        image = 4 * model.colours * rows * columns * model.block**2
        plan = Plan(
            schedule=order,
            tile=self.tile,
            tiles=rows * columns,
            macs=images * arithmetic,
            working_bytes=working,
            peak_bytes=working + 2 * images * image,
        )
        return {"closed loop": plan}

    def overlaps(self) -> dict[str, list[int]]:
        """How far each network reads beyond a block, in blocks."""
        reaches = self.model.causal_reaches()
        return {reach.network: [reach.left, reach.right, reach.up, 0] for reach in reaches}
