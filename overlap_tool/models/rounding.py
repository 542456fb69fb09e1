"""Detects rounded maps while a model runs: they reveal a quantiser, whatever its class is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from overlap_tool.kernels.dispatching import DispatchMode

_aten = torch.ops.aten
ROUND = frozenset(
    (
        _aten.round.default,
        _aten.round_.default,
        _aten.floor.default,
        _aten.floor_.default,
        _aten.ceil.default,
        _aten.ceil_.default,
        _aten.trunc.default,
        _aten.trunc_.default,
    )
)
"""A straight-through estimator uses one of these, too: in an autograd function, or in a detached sum."""


class RoundingWatch(DispatchMode):
    """Inside, `note` is called with every tensor of real numbers that an op made by rounding."""

    def __init__(self, note: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in ROUND and made.is_floating_point():
            self.note(made)
        return made
