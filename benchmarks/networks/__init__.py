"""Networks that others wrote, unedited: `python -m benchmarks reach` tries them all.

Each list needs the library that it is named after, which is no dependency of the project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

LISTS = ("spandrel", "torchvision", "diffusers")


@dataclass(frozen=True)
class Foreign:
    """A network, and what it takes."""

    build: Callable[[], nn.Module]
    channels: int = 3
    small: bool = False
    """Whether it takes latents, so that a map of a few samples is an image of many."""
    example: tuple[Any, ...] | None = None
    """The arguments of a call, if it takes more than an image."""


class Part(nn.Module):
    """A model as its user calls it: another method, or one of several results."""

    def __init__(self, model: nn.Module, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, image: Tensor) -> Any:
        return self.call(self.model, image)


def picked(model: nn.Module, key: Any) -> Part:
    return Part(model, lambda model, image: model(image)[key])
