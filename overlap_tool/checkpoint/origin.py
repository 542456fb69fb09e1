"""Where a model came from, kept on the model itself, so that it can be written without being told again."""

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
    """Copies of the model remember it, too."""
    setattr(model, _ATTRIBUTE, origin)


def origin_of(model: nn.Module) -> Origin | None:
    """None for a model that was built by the user's own code."""
    return vars(model).get(_ATTRIBUTE)
