"""What a forward changes in its modules while it is traced: tensors and attributes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

Holder = dict[Any, Any] | list[Any] | set[Any]


class Aftermath:
    """A module and its parts, recorded before the forward is traced."""

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
        """The plain numbers that attributes hold now, by dotted name."""
        return {
            f"{path}.{key}".strip("."): [each for each in _inside(value) if isinstance(each, int | float)]
            for path, part in self.module.named_modules()
            for key, value in vars(part).items()
            if not isinstance(value, Tensor)
        }

    def left_behind(self, made: Collection[str]) -> dict[str, Any] | None:
        """The attributes that the forward set to plain numbers, by dotted name; None if it left anything
        else.

        The tensors in `made` are attributes of the module only while it is traced, and are ignored.
        """
        before: dict[int, Any] = {id(collection): items for collection, items in self.attributes}
        left: dict[str, Any] = {}
        for path, part in self.module.named_modules():
            old = before.pop(id(vars(part)), {})
            for key, value in vars(part).items():
                if (key not in old or old[key] is not value) and (path or key not in made):
                    if not _is_of_numbers(value):
                        return None
                    left[f"{path}.{key}".strip(".")] = value
        others = [collection for collection, _ in self.attributes if id(collection) in before]
        return left if all(_same_items(each, before[id(each)]) for each in others) else None

    def undo(self, from_input: Callable[[fx.Proxy], bool]) -> list[str]:
        """Restore everything; return the names of changed tensors, and of attributes that depend on the
        input."""
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


@contextmanager
def with_attributes(module: nn.Module, values: Mapping[str, Any]) -> Iterator[None]:
    """Inside, attributes of the module's parts have these values."""
    held = [(attributes, attributes.copy()) for attributes, _, _ in _attributes(module, values)]
    set_attributes(module, values)
    try:
        yield
    finally:
        for attributes, before in held:
            _restore(attributes, before)


def set_attributes(module: nn.Module, values: Mapping[str, Any]) -> None:
    for attributes, key, value in _attributes(module, values):
        attributes[key] = value


def _attributes(module: nn.Module, values: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str, Any]]:
    for name, value in values.items():
        path, _, key = name.rpartition(".")
        yield vars(module.get_submodule(path)), key, value


def _is_of_numbers(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_of_numbers, value))
    return isinstance(value, int | float)


def _inside(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """A value and, for a collection, everything that it contains."""
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


def _same_items(collection: Holder, before: Holder) -> bool:
    both = (list(collection), list(before)), (_items(collection), _items(before))
    return all(len(a) == len(b) and all(map(operator.is_, a, b)) for a, b in both)


def _restore(collection: Holder, before: Holder) -> None:
    if isinstance(collection, list):
        collection[:] = before
    else:
        collection.clear()
        collection.update(before)


def same_values(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    first, second = (_as_numbers(each) for each in (first, second))
    differ = (first != second) & ~(first.isnan() & second.isnan())
    return not bool(differ.any())


def _as_numbers(tensor: Tensor) -> Tensor:
    """A dense tensor of the same values: sparse and quantized ones cannot be compared."""
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()
