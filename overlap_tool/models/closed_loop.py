"""Codecs that are closed loops: every block is computed from the *reconstruction* of earlier blocks.

No part of such a model can be tiled by itself: its input does not exist until other blocks have gone through
all parts. So the model provides its own methods for bounded memory. Everything else is as for any model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from overlap_tool.settings import Order


@dataclass(frozen=True)
class CausalReach:
    """How far a network reads the reconstruction, in blocks: left, up, and right in the rows above.

    `behind` is how many blocks a row must lag the row above it, so that all that it reads is computed.
    """

    network: str
    block: int
    left: int
    right: int
    up: int
    behind: int


@runtime_checkable
class ClosedLoop(Protocol):
    """A codec whose own whole-map methods are the reference for its block-by-block methods.

    `networks` are those that it runs for every block, by name. Each maps one map to one map, on a grid of
    blocks: the reconstruction, followed by further channels with whatever else it reads.
    """

    training: bool
    block: int
    """The side of a block in pixels."""
    colours: int
    networks: Mapping[str, nn.Module]

    def causal_reaches(self) -> tuple[CausalReach, ...]:
        """How far each network reads the reconstruction, in the order of `networks`."""
        ...

    def in_order(self, order: Order) -> Mapping[str, Callable[..., Any]]:
        """Its methods by name, which hold no more of the maps than later blocks read."""
        ...

    def working_bytes(self, order: Order, rows: int, columns: int, images: int) -> int:
        """The memory of these methods on a grid of blocks, in 32-bit floats, with prepared weights."""
        ...
