"""The protocol of what can be wrapped: models with stages, and closed loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn

from overlap_tool.graph.standing_in import StandIn
from overlap_tool.planning.choose import Plan
from overlap_tool.settings import Settings, Size

SHOWN = "extra_repr"
"""The module method whose result `repr` shows beside the parts."""


class Tiling(Protocol):
    """How one model is tiled, wrapped or not."""

    @property
    def tile(self) -> Size:
        """The default size of a tile."""
        ...

    @property
    def settings(self) -> Settings | None:
        """The settings that the model is wrapped with, if it is wrapped."""
        ...

    def begin(self, settings: Settings) -> None:
        """Give the model its tiled methods."""
        ...

    def settle(self, settings: Settings) -> None:
        """Change the settings of a wrapped model."""
        ...

    def plans(self, size: Size, images: int) -> Mapping[str, Plan]:
        """The plan of each of its parts for images of this size."""
        ...

    def overlaps(self) -> dict[str, list[int]]:
        """Left, right, top and bottom overlap of its parts, where they are finite."""
        ...


class Description(StandIn):
    """Adds the settings to the `repr` of a wrapped model."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.model = model
        self.settings = settings

    def __call__(self) -> str:
        own = type(self.model).extra_repr(self.model)
        return f"{own}{', ' if own else ''}in {self.settings}"


def show_settings(model: nn.Module, settings: Settings) -> None:
    """Show these settings in the model's `repr`."""
    setattr(model, SHOWN, Description(model, settings))
