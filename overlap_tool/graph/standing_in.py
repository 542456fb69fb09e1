"""What `wrap` puts on the parts of a model, in the place of methods of their classes."""

from __future__ import annotations

from torch import nn


class StandIn:
    """An attribute of an instance that came there by wrapping it or a part of it."""


def stands_in(model: nn.Module) -> bool:
    """Whether some part of it, or all of it, is wrapped."""
    return any(isinstance(value, StandIn) for part in model.modules() for value in vars(part).values())


def put_back(model: nn.Module) -> None:
    """Every part computes by its own class again, whatever it was wrapped as a part of."""
    for part in model.modules():
        for name in [name for name, value in vars(part).items() if isinstance(value, StandIn)]:
            delattr(part, name)
