"""Small composable conditions on a state dict: how an architecture recognises its checkpoints.

    has_key("g_a.0.weight") & size("h_s.4.weight").matches(2 * size("g_a.6.weight")) & ~has_prefix("codec.")

A condition answers yes or no, and can say what it missed: that is the text of "nearest architecture" errors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

StateDict: TypeAlias = dict[str, Tensor]


class Condition(ABC):
    """A pure predicate over a state dict; combine with `&`, `|` and `~`."""

    @abstractmethod
    def __call__(self, state: StateDict) -> bool: ...

    @abstractmethod
    def missed(self, state: StateDict) -> tuple[str, ...]:
        """What stands in the way, in words; empty exactly if the condition holds."""

    @abstractmethod
    def __invert__(self) -> Condition: ...

    @property
    def weight(self) -> int:
        """How many single facts are asked for: the measure of what was missed."""
        return 1

    def __and__(self, other: Condition) -> Condition:
        return All((self, other))

    def __or__(self, other: Condition) -> Condition:
        return AnyOf((self, other))


@dataclass(frozen=True)
class All(Condition):
    parts: tuple[Condition, ...]

    def __call__(self, state: StateDict) -> bool:
        return all(part(state) for part in self.parts)

    def missed(self, state: StateDict) -> tuple[str, ...]:
        return tuple(text for part in self.parts for text in part.missed(state))

    def __invert__(self) -> Condition:
        return AnyOf(tuple(~part for part in self.parts))

    @property
    def weight(self) -> int:
        return sum(part.weight for part in self.parts)


@dataclass(frozen=True)
class AnyOf(Condition):
    parts: tuple[Condition, ...]

    def __call__(self, state: StateDict) -> bool:
        return any(part(state) for part in self.parts)

    def missed(self, state: StateDict) -> tuple[str, ...]:
        # The alternative that came closest is the one worth telling about.
        return min((part.missed(state) for part in self.parts), key=len)

    def __invert__(self) -> Condition:
        return All(tuple(~part for part in self.parts))

    @property
    def weight(self) -> int:
        return max(part.weight for part in self.parts)


class Fact(Condition):
    """A single fact; it also words the complaint for the case that it should *not* hold."""

    @abstractmethod
    def complaint(self, state: StateDict) -> str: ...

    @property
    @abstractmethod
    def surplus(self) -> str: ...

    def missed(self, state: StateDict) -> tuple[str, ...]:
        return () if self(state) else (self.complaint(state),)

    def __invert__(self) -> Condition:
        return Not(self)


@dataclass(frozen=True)
class Not(Condition):
    fact: Fact

    def __call__(self, state: StateDict) -> bool:
        return not self.fact(state)

    def missed(self, state: StateDict) -> tuple[str, ...]:
        return () if self(state) else (self.fact.surplus,)

    def __invert__(self) -> Condition:
        return self.fact


@dataclass(frozen=True)
class HasKey(Fact):
    key: str

    def __call__(self, state: StateDict) -> bool:
        return self.key in state

    def complaint(self, state: StateDict) -> str:
        return f"missing {self.key}"

    @property
    def surplus(self) -> str:
        return f"unexpected {self.key}"


@dataclass(frozen=True)
class HasPrefix(Fact):
    prefix: str

    def __call__(self, state: StateDict) -> bool:
        return any(key.startswith(self.prefix) for key in state)

    def complaint(self, state: StateDict) -> str:
        return f"missing {self.prefix}*"

    @property
    def surplus(self) -> str:
        return f"unexpected {self.prefix}*"


@dataclass(frozen=True)
class HasShape(Fact):
    """The tensor is there, with these sizes; `None` stands for any positive size."""

    key: str
    sizes: tuple[int | None, ...]

    def __call__(self, state: StateDict) -> bool:
        if self.key not in state:
            return False
        found = state[self.key].shape
        return len(found) == len(self.sizes) and all(
            have == want or (want is None and have > 0) for have, want in zip(found, self.sizes, strict=True)
        )

    def complaint(self, state: StateDict) -> str:
        if self.key not in state:
            return f"missing {self.key}"
        return f"{self.key} is {_times(state[self.key].shape)}, expected {_times(self.sizes)}"

    @property
    def surplus(self) -> str:
        return f"unexpected {self.key} of {_times(self.sizes)}"


@dataclass(frozen=True)
class DimensionSize:
    """One size of one tensor, perhaps times a factor: `2 * size("g_a.6.weight")`."""

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
        return SameSize(self, other)

    def __str__(self) -> str:
        name = f"size {self.axis} of {self.key}"
        return name if self.factor == 1 else f"{self.factor} times {name}"


@dataclass(frozen=True)
class SameSize(Fact):
    left: DimensionSize
    right: DimensionSize

    def __call__(self, state: StateDict) -> bool:
        left = self.left(state)
        return left is not None and left == self.right(state)

    def complaint(self, state: StateDict) -> str:
        left, right = self.left(state), self.right(state)
        if left is None or right is None:
            return f"missing {(self.left if left is None else self.right).key}"
        return f"{self.left} is {left}, expected {right} ({self.right})"

    @property
    def surplus(self) -> str:
        return f"{self.left} is that of {self.right}"


def has_key(*keys: str) -> Condition:
    return HasKey(keys[0]) if len(keys) == 1 else All(tuple(HasKey(key) for key in keys))


def has_prefix(prefix: str) -> Condition:
    return HasPrefix(prefix)


def shape(key: str, *sizes: int | None) -> Condition:
    return HasShape(key, sizes)


def size(key: str, axis: int = 0) -> DimensionSize:
    return DimensionSize(key, axis)


def _times(sizes: tuple[int | None, ...]) -> str:
    return "x".join("?" if size is None else str(size) for size in sizes) or "a scalar"
