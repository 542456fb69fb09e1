"""Counts the layers of a kind in a state dict, by keys that differ in a number."""

from __future__ import annotations

from itertools import count, takewhile

from overlap_tool.checkpoint.conditions import StateDict


def numbered(state: StateDict, key: str, start: int = 0) -> list[int]:
    """The consecutive numbers from `start` on for which the key, such as `blocks.{}.weight`, exists."""
    return list(takewhile(lambda number: key.format(number) in state, count(start)))
