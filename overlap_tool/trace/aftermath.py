"""What a forward leaves behind in its modules when it is traced: buffers and attributes that it changed."""

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
        self.buffers = [
            (path, owner, key, buffer, buffer.detach().clone())
            for path, owner in module.named_modules()
            for key, buffer in owner._buffers.items()
            if buffer is not None and not buffer.is_meta
        ]
        self.attributes = [
            (value, value.copy())
            for _, part in module.named_modules()
            for value in _inside(vars(part))
            if isinstance(value, dict | list | set)
        ]

    def undo(self, from_input: Callable[[fx.Proxy], bool]) -> list[str]:
        """The dotted names of the buffers that changed, and of the attributes that hold what was made of the
        input; all are again what they were."""
        changed = [
            f"{path}.{key}".strip(".")
            for path, part in self.module.named_modules()
            for key, value in vars(part).items()
            if any(from_input(inside) for inside in _inside(value) if isinstance(inside, fx.Proxy))
        ]
        for path, owner, key, buffer, value in self.buffers:
            if owner._buffers.get(key) is buffer and same_values(buffer, value):
                continue
            changed.append(f"{path}.{key}".strip("."))
            buffer.data = value
            owner._buffers[key] = buffer
        for collection, before in self.attributes:
            if not _same_items(collection, before):
                _restore(collection, before)
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
