"""Small composable conditions on a state dict, by which an architecture recognises its checkpoints.

    has_key("g_a.0.weight") & size("h_s.4.weight").matches(2 * size("g_a.6.weight")) & ~has_prefix("codec.")

A condition can also list what it missed, for the text of "nearest architecture" errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

StateDict: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Condition:
    """A pure predicate over a state dict; combine with `&`, `|` and `~`."""

    missed: Callable[[StateDict], tuple[str, ...]]
    """What the state dict lacks, in words; empty exactly if the condition holds."""
    opposite: Callable[[], Condition]
    weight: int = 1
    """How many facts the condition asks for, to compare what was missed with."""

    def __call__(self, state: StateDict) -> bool:
        return not self.missed(state)

    def __and__(self, other: Condition) -> Condition:
        return _all(self, other)

    def __or__(self, other: Condition) -> Condition:
        return _any(self, other)

    def __invert__(self) -> Condition:
        return self.opposite()


def _all(*parts: Condition) -> Condition:
    return Condition(
        lambda state: tuple(text for part in parts for text in part.missed(state)),
        lambda: _any(*(~part for part in parts)),
        sum(part.weight for part in parts),
    )


def _any(*parts: Condition) -> Condition:
    return Condition(
        # report the alternative that came closest
        lambda state: min((part.missed(state) for part in parts), key=len),
        lambda: _all(*(~part for part in parts)),
        max(part.weight for part in parts),
    )


def _fact(
    holds: Callable[[StateDict], bool], complaint: Callable[[StateDict], str], surplus: str
) -> Condition:
    """A single fact, with the words to report when it fails, and when it holds but should not."""
    return Condition(
        lambda state: () if holds(state) else (complaint(state),),
        lambda: Condition(
            lambda state: (surplus,) if holds(state) else (), lambda: _fact(holds, complaint, surplus)
        ),
    )


def has_key(*keys: str) -> Condition:
    return _all(*map(_has, keys))


def _has(key: str) -> Condition:
    return _fact(lambda state: key in state, lambda state: f"missing {key}", f"unexpected {key}")


def has_prefix(prefix: str) -> Condition:
    return _fact(
        lambda state: any(key.startswith(prefix) for key in state),
        lambda state: f"missing {prefix}*",
        f"unexpected {prefix}*",
    )


def shape(key: str, *sizes: int | None) -> Condition:
    """The tensor exists and has these sizes; `None` stands for any positive size."""

    def holds(state: StateDict) -> bool:
        if key not in state:
            return False
        found = state[key].shape
        return len(found) == len(sizes) and all(
            have == want or (want is None and have > 0) for have, want in zip(found, sizes, strict=True)
        )

    def complaint(state: StateDict) -> str:
        if key not in state:
            return f"missing {key}"
        return f"{key} is {_times(state[key].shape)}, expected {_times(sizes)}"

    return _fact(holds, complaint, f"unexpected {key} of {_times(sizes)}")


@dataclass(frozen=True)
class DimensionSize:
    """One size of one tensor, optionally times a factor: `2 * size("g_a.6.weight")`."""

    key: str
    axis: int = 0
    factor: int = 1

    def __rmul__(self, factor: int) -> DimensionSize:
        return replace(self, factor=factor * self.factor)

    def __call__(self, state: StateDict) -> int | None:
        tensor = state.get(self.key)
        if tensor is None or tensor.ndim <= self.axis:
            return None
        return tensor.shape[self.axis] * self.factor

    def matches(self, other: DimensionSize) -> Condition:
        def holds(state: StateDict) -> bool:
            found = self(state)
            return found is not None and found == other(state)

        def complaint(state: StateDict) -> str:
            found, expected = self(state), other(state)
            if found is None or expected is None:
                return f"missing {(self if found is None else other).key}"
            return f"{self} is {found}, expected {expected} ({other})"

        return _fact(holds, complaint, f"{self} is that of {other}")

    def __str__(self) -> str:
        name = f"size {self.axis} of {self.key}"
        return name if self.factor == 1 else f"{self.factor} times {name}"


def size(key: str, axis: int = 0) -> DimensionSize:
    return DimensionSize(key, axis)


def _times(sizes: tuple[int | None, ...]) -> str:
    return "x".join("?" if size is None else str(size) for size in sizes) or "a scalar"
