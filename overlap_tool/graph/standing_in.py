"""What `wrap` puts on the parts of a model in place of their own methods."""

from __future__ import annotations

from torch import nn


class StandIn:
    """An attribute that an instance was given by wrapping it or a model that it belongs to."""


def stands_in(model: nn.Module) -> bool:
    """Whether the model, or any part of it, is wrapped."""
    return any(isinstance(value, StandIn) for part in model.modules() for value in vars(part).values())


def put_back(model: nn.Module) -> None:
    """Make every part compute by its own class again, whatever it was wrapped as a part of."""
    for part in model.modules():
        for name in [name for name, value in vars(part).items() if isinstance(value, StandIn)]:
            delattr(part, name)
