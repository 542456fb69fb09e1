"""What a forward leaves behind in its modules when it is traced: tensors and attributes that it changed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn

Collection = dict[Any, Any] | list[Any] | set[Any]


class Aftermath:
    """A module and its parts as they are before the forward is traced."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.tensors = [
            (f"{path}.{key}".strip("."), tensor, tensor.detach().clone())
            for path, part in module.named_modules()
            for key, value in (*vars(part).items(), *part._buffers.items())
            if key not in ("_buffers", "_parameters")
            for tensor in _inside(value)
            if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter) and not tensor.is_meta
        ]
        self.attributes = [
            (value, value.copy())
            for _, part in module.named_modules()
            for value in _inside(vars(part))
            if isinstance(value, dict | list | set)
        ]

    def numbers(self) -> dict[str, list[int | float]]:
        """What attributes hold of plain numbers now, by their dotted names."""
        return {
            f"{path}.{key}".strip("."): [each for each in _inside(value) if isinstance(each, int | float)]
            for path, part in self.module.named_modules()
            for key, value in vars(part).items()
            if not isinstance(value, Tensor)
        }

    def undo(self, from_input: Callable[[fx.Proxy], bool]) -> list[str]:
        """The dotted names of tensors that changed, and of attributes that hold what was made of the input.

        All are again what they were.
        """
        changed = [
            f"{path}.{key}".strip(".")
            for path, part in self.module.named_modules()
            for key, value in vars(part).items()
            if any(from_input(inside) for inside in _inside(value) if isinstance(inside, fx.Proxy))
        ]
        buffers = dict(self.module.named_buffers())
        for name, tensor, before in self.tensors:
            if buffers.get(name, tensor) is not tensor or not same_values(tensor, before):
                changed.append(name)
                tensor.data = before
        for collection, items in self.attributes:
            if not _same_items(collection, items):
                _restore(collection, items)
        return changed


def _inside(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """A value, and if it is a collection, everything that it holds."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    yield value
    if isinstance(value, dict | list | tuple | set):
        for item in _items(value):
            yield from _inside(item, seen)


def _items(collection: Any) -> list[Any]:
    return list(collection.values()) if isinstance(collection, dict) else list(collection)


def _same_items(collection: Collection, before: Collection) -> bool:
    both = (list(collection), list(before)), (_items(collection), _items(before))
    return all(len(a) == len(b) and all(map(operator.is_, a, b)) for a, b in both)


def _restore(collection: Collection, before: Collection) -> None:
    if isinstance(collection, list):
        collection[:] = before
    else:
        collection.clear()
        collection.update(before)


def same_values(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    differ = (first != second) & ~(first.isnan() & second.isnan())
    return not bool(differ.any())
