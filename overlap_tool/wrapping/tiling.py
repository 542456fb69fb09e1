"""What can be wrapped: one protocol, for models with stages and for closed loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn

from overlap_tool.graph.standing_in import StandIn
from overlap_tool.planning.choose import Plan
from overlap_tool.settings import Settings, Size

SHOWN = "extra_repr"
"""The method of a module that says what `repr` shows beside its parts."""


class Tiling(Protocol):
    """The tiles of one model, wrapped or not."""

    @property
    def tile(self) -> Size:
        """The size of a tile if nothing else is asked for."""
        ...

    @property
    def settings(self) -> Settings | None:
        """How the model is wrapped, if it is."""
        ...

    def begin(self, settings: Settings) -> None:
        """Give the model its tiled methods."""
        ...

    def settle(self, settings: Settings) -> None:
        """Run a wrapped model by other settings."""
        ...

    def plans(self, size: Size, images: int) -> Mapping[str, Plan]:
        """What each of its parts does on images of this size."""
        ...

    def overlaps(self) -> dict[str, list[int]]:
        """Left, right, top and bottom of its parts, where they are finite."""
        ...


class Description(StandIn):
    """Says in the `repr` of a wrapped model that it is wrapped, and how."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.model = model
        self.settings = settings

    def __call__(self) -> str:
        own = type(self.model).extra_repr(self.model)
        return f"{own}{', ' if own else ''}in {self.settings}"


def show_settings(model: nn.Module, settings: Settings) -> None:
    """`repr` shows them, too."""
    setattr(model, SHOWN, Description(model, settings))
