"""What a forward returns: maps, and their container: a tuple, a list, a dict, a dataclass, or none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """The place of a result, by its number."""

    index: int


ALONE = Place(0)
"""A single result returned by itself."""


def taken_apart(value: Any, is_result: Callable[[Any], bool]) -> tuple[list[Any], Any]:
    """The results in a nested value, in order, and the same value with places instead of them."""
    results: list[Any] = []

    def emptied(inner: Any) -> Any:
        if is_result(inner):
            results.append(inner)
            return Place(len(results) - 1)
        return rebuilt(inner, emptied)

    return results, emptied(value)


def put_together(structure: Any, results: Sequence[Any]) -> Any:
    """A nested value with results in their places."""
    if isinstance(structure, Place):
        return results[structure.index]
    return rebuilt(structure, lambda inner: put_together(inner, results))


def rebuilt(value: Any, by: Callable[[Any], Any]) -> Any:
    """A value of the same kind, with each part replaced by the result of `by`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: by(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init
        }
        return type(value)(**fields)
    if isinstance(value, dict):
        return type(value)((key, by(item)) for key, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(by, value))
    if isinstance(value, tuple | list):
        return type(value)(map(by, value))
    return value


def paths(structure: Any) -> list[str]:
    """The dotted names of the results, by their places: "out", "features.2"; "" for a single result."""
    found: dict[int, str] = {}

    def note(value: Any, path: str) -> None:
        if isinstance(value, Place):
            found.setdefault(value.index, path)
            return
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            items: Any = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        elif isinstance(value, dict):
            items = value.items()
        elif isinstance(value, tuple | list):
            items = enumerate(value)
        else:
            return
        for key, item in items:
            note(item, f"{path}.{key}" if path else str(key))

    note(structure, "")
    return [found[index] for index in sorted(found)]
