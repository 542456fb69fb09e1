"""Codecs that are closed loops: every block is computed from the *reconstruction* of the blocks before it.

No part of such a model can be cut in tiles by itself: what it reads is not there until other blocks went
through all other parts. So the model brings its own way to run in bounded memory. Everything else is as for
any model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from overlap_tool.settings import Order


@dataclass(frozen=True)
class CausalReach:
    """How far a network reads the reconstruction, in blocks: to the left, up, and to the right in rows above.

    `behind` is how many blocks a row has to be behind the row above it, so that all that it reads is there.
    """

    network: str
    block: int
    left: int
    right: int
    up: int
    behind: int


@runtime_checkable
class ClosedLoop(Protocol):
    """A codec whose own methods compute on whole maps, which others are held to.

    `networks` are what it runs for every block, by name. Each takes one map and returns one, on a grid of
    blocks: the reconstruction, and behind it as further channels whatever else it reads.
    """

    training: bool
    block: int
    """The side of a block in pixels."""
    colours: int
    networks: Mapping[str, nn.Module]

    def causal_reaches(self) -> tuple[CausalReach, ...]:
        """How far each network reads the reconstruction, in their order."""
        ...

    def in_order(self, order: Order) -> Mapping[str, Callable[..., Any]]:
        """Its methods by name, with no more of the maps at hand than later blocks read."""
        ...

    def working_bytes(self, order: Order, rows: int, columns: int, images: int) -> int:
        """What that takes on a grid of so many blocks, in 32-bit floats, with weights made ready for it."""
        ...
