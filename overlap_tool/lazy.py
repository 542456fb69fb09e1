"""Maps that are not in memory: a tensor's shape and type, with numbers that are read piece by piece.

A model's own code can be given one in place of a tensor. What computes every position by itself is put off
until a piece is read. Anything else gets the whole map: that is right, but takes the memory, so it is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from overlap_tool.errors import ExactnessError
from overlap_tool.geometry import Span
from overlap_tool.stores import Sink


class Numbers(Protocol):
    """Where the numbers of a map come from."""

    def read(self, rows: Span, columns: Span) -> Tensor:
        """A piece, which nobody else writes to."""
        ...

    def pour(self, sink: Sink, start: int) -> None:
        """Everything from row `start` on, in order."""
        ...


LOCAL = frozenset(
    """
    abs neg sign round clamp clamp_min clamp_max relu float double to
    add sub mul div true_divide radd rsub rmul rtruediv truediv iadd isub imul itruediv
    chunk split cat concat
    """.split()
)
"""What computes every position from the same position of its operands, as long as rows and columns stay."""

ATTRIBUTES = frozenset("shape dtype device ndim is_cuda is_meta is_sparse layout requires_grad".split())
QUESTIONS = frozenset("size dim ndimension numel nelement element_size is_floating_point is_complex".split())


class LazyMap(Tensor):
    """A map by its shape, type and device; its `numbers` are elsewhere.

    `tell` is called before all of it is brought into memory.
    """

    numbers: Numbers
    tell: Callable[[LazyMap], None]

    @staticmethod
    def __new__(
        cls: type[LazyMap],
        numbers: Numbers,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        tell: Callable[[LazyMap], None],
    ) -> LazyMap:
        made: LazyMap = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        made.numbers = numbers
        made.tell = tell
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"LazyMap{tuple(self.shape)}"

    @property
    def bytes(self) -> int:
        return self.numel() * self.element_size()

    def read(self, rows: Span, columns: Span) -> Tensor:
        return self.numbers.read(rows, columns)

    def expect(self, rows: Span, columns: Span) -> None:
        """As a source of the executor: nothing is fetched ahead."""

    def whole(self) -> Tensor:
        """All of it, in memory from now on."""
        if not isinstance(self.numbers, InMemory):
            self.tell(self)
            self.numbers = InMemory(self.read(Span(0, self.shape[-2]), Span(0, self.shape[-1])))
        return self.numbers.values

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in QUESTIONS or (name == "__get__" and func.__self__.__name__ in ATTRIBUTES):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if name.startswith("new_") and isinstance(args[0], LazyMap):
            like = torch.empty(0, dtype=args[0].dtype, device=args[0].device)
            return func(like, *args[1:], **kwargs)
        if name.strip("_") in LOCAL and (put_off := _put_off(func, args, kwargs)) is not None:
            return put_off
        args, kwargs = tree_map(
            lambda leaf: leaf.whole() if isinstance(leaf, LazyMap) else leaf, (args, kwargs)
        )
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise ExactnessError(
            str(func),
            "it was given a map that is not in memory by code that goes past torch's functions",
            "Use the model on a tensor",
        )


@dataclass(frozen=True)
class InMemory:
    values: Tensor

    def read(self, rows: Span, columns: Span) -> Tensor:
        return self.values[..., rows.start : rows.stop, columns.start : columns.stop]

    def pour(self, sink: Sink, start: int) -> None:
        rows, columns = Span(start, self.values.shape[-2]), Span(0, self.values.shape[-1])
        if not rows.empty:
            sink.write(rows, columns, self.read(rows, columns))


@dataclass(frozen=True)
class _Fixed:
    """An operand that is a tensor: spread over the map, or as large as it."""

    values: Tensor
    version: int

    def piece(self, rows: Span, columns: Span) -> Tensor:
        if self.values._version != self.version:
            raise ExactnessError(
                "a tensor that a lazily computed map reads", "it was changed in place", "Clone it before"
            )
        if self.values.ndim < 2 or self.values.shape[-2:] == (1, 1):
            return self.values
        return InMemory(self.values).read(rows, columns)


@dataclass(frozen=True)
class _PutOff:
    """What a function makes of pieces of its operands. `item` picks one of several results."""

    function: Any
    leaves: list[Any]
    spec: Any
    item: int | None
    in_place: bool
    size: tuple[int, int]
    inner: list[Numbers] = field(default_factory=list)

    def read(self, rows: Span, columns: Span) -> Tensor:
        return self.of([numbers.read(rows, columns) for numbers in self.inner], rows, columns)

    def of(self, pieces: list[Tensor], rows: Span, columns: Span) -> Tensor:
        following = iter(pieces)
        leaves = [
            next(following)
            if leaf is _PIECE
            else leaf.piece(rows, columns)
            if isinstance(leaf, _Fixed)
            else leaf
            for leaf in self.leaves
        ]
        if self.in_place:
            leaves[0] = leaves[0].clone()
        args, kwargs = tree_unflatten(leaves, self.spec)
        found = self.function(*args, **kwargs)
        return found if self.item is None else found[self.item]

    def pour(self, sink: Sink, start: int) -> None:
        if len(self.inner) == 1:
            self.inner[0].pour(_Through(self, sink), start)
            return
        height, width = self.size
        for row in range(start, height, ROWS_AT_ONCE):
            rows = Span(row, min(row + ROWS_AT_ONCE, height))
            sink.write(rows, Span(0, width), self.read(rows, Span(0, width)))


ROWS_AT_ONCE = 64
"""Of a map that is made of several others, when all of it is wanted in order."""

_PIECE = object()


@dataclass(frozen=True)
class _Through:
    """A sink that computes with what passes."""

    put_off: _PutOff
    sink: Sink

    def write(self, rows: Span, columns: Span, values: Tensor) -> None:
        self.sink.write(rows, columns, self.put_off.of([values], rows, columns))


def _put_off(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The function's results as maps, or None if it does not keep every position to itself."""
    leaves, spec = tree_flatten((args, kwargs))
    maps = [leaf for leaf in leaves if isinstance(leaf, LazyMap)]
    size = maps[0].shape[-2], maps[0].shape[-1]
    spread = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, LazyMap)]
    if any(one.ndim != 4 or tuple(one.shape[-2:]) != size for one in maps):
        return None
    if any(one.numel() != 1 and tuple(one.shape[-2:]) not in ((1, 1), size) for one in spread):
        return None
    shapes = [_shape_only(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    args, kwargs = tree_unflatten(shapes, spec)
    with torch._C.DisableTorchFunctionSubclass():
        found = func(*args, **kwargs)
    several = isinstance(found, tuple | list)
    parts = list(found) if several else [found]
    if any(part.ndim != 4 or tuple(part.shape[-2:]) != size for part in parts):
        return None
    name = func.__name__
    in_place = (name.endswith("_") and not name.startswith("__")) or name in _IN_PLACE
    if in_place and not (leaves and leaves[0] is maps[0]):
        return None
    inner = [one.numbers for one in maps]
    held = [
        _PIECE
        if isinstance(leaf, LazyMap)
        else _Fixed(leaf, leaf._version)
        if isinstance(leaf, Tensor)
        else leaf
        for leaf in leaves
    ]
    made = [
        _PutOff(func, held, spec, i if several else None, in_place, size, inner) for i in range(len(parts))
    ]
    if in_place:
        maps[0].numbers = made[0]
        return maps[0]
    results = [
        LazyMap(numbers, tuple(part.shape), part.dtype, maps[0].device, maps[0].tell)
        for numbers, part in zip(made, parts, strict=True)
    ]
    return tuple(results) if several else results[0]


_IN_PLACE = frozenset(("__iadd__", "__isub__", "__imul__", "__itruediv__"))


def _shape_only(value: Tensor) -> Tensor:
    return torch.empty(tuple(value.shape), dtype=value.dtype, device="meta")
