"""Records on a model what it was built from, so that it can be saved without being told again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

_ATTRIBUTE = "_overlap_tool_origin"


@dataclass(frozen=True)
class Origin:
    """What builds a model: a registered architecture or `pkg.module:Class`, and its arguments."""

    architecture: str
    arguments: Mapping[str, Any]


def remember(model: nn.Module, origin: Origin) -> None:
    """Record a model's origin; copies of the model keep it."""
    setattr(model, _ATTRIBUTE, origin)


def origin_of(model: nn.Module) -> Origin | None:
    """The origin of a model; None if it was built by the user's own code."""
    return vars(model).get(_ATTRIBUTE)
