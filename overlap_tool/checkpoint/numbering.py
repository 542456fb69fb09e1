"""How many layers of a kind a state dict has: keys that differ by a number."""

from __future__ import annotations

from itertools import count, takewhile

from overlap_tool.checkpoint.conditions import StateDict


def numbered(state: StateDict, key: str, start: int = 0) -> list[int]:
    """The numbers from `start` on, up to a gap, that give a key: of `blocks.{}.weight`, for instance."""
    return list(takewhile(lambda number: key.format(number) in state, count(start)))
