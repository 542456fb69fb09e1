"""What a module's forward may have read while it was traced, and whether any of it has changed since.

A trace contains what Python read from the module: which parts it calls in which order, and every number, flag
and buffer that became a constant. All of it is reachable from the module by its parts, attributes and
classes. What a forward reads elsewhere, such as a global variable, is not observed.
"""

from __future__ import annotations

import operator
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

READ = {"_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"}
"""Attributes of every module on which its forward depends. The training mode is handled separately."""

NOT_READ = frozenset(vars(nn.Module()).keys() - READ)

PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, np.generic)
"""Types whose values are the same if they are equal."""

Reader = Callable[[Any], tuple[Any, ...]]


class Snapshot:
    """The state of a module at one moment."""

    def __init__(self, module: nn.Module, written: Iterable[str] = ()) -> None:
        """`written` are names of attributes that its forward writes before it reads them."""
        self.parts = tuple(module.modules())
        not_read: dict[int, set[str]] = {}
        for name in written:
            path, _, key = name.rpartition(".")
            not_read.setdefault(id(module.get_submodule(path)), set()).add(key)
        self._held: list[tuple[Any, Reader, tuple[Any, ...]]] = []
        self._numbers: list[tuple[Any, Reader, tuple[Any, ...]]] = []
        # the module's own hooks run around its forward, whatever that is
        seen = {id(module._forward_hooks), id(module._forward_pre_hooks)}
        to_do: list[Any] = [module]
        while to_do:
            thing = to_do.pop()
            reader = _reader(thing)
            if id(thing) in not_read:
                reader = partial(_of_module, but=frozenset(not_read[id(thing)]))
            if reader is None or id(thing) in seen:
                continue
            seen.add(id(thing))
            now = reader(thing)
            if reader in (_of_tensor, _of_array):
                self._numbers.append((thing, reader, now))
            else:
                self._held.append((thing, reader, now))
                to_do.extend(now)

    @property
    def attributes(self) -> list[Tensor]:
        """The tensors that are neither parameters nor buffers."""
        registered = {
            id(each) for part in self.parts for each in (*part._parameters.values(), *part._buffers.values())
        }
        return [
            thing
            for thing, reader, _ in self._numbers
            if reader is _of_tensor and id(thing) not in registered
        ]

    def holds(self) -> bool:
        """Whether nothing has changed."""
        return all(same_items(reader(thing), before) for thing, reader, before in self._held) and all(
            reader(thing) == before for thing, reader, before in self._numbers
        )

    def part_in_training(self) -> nn.Module | None:
        """A part in training mode that may compute something else there, if there is one."""
        return next((part for part in self.parts if part.training and _asks_for_its_mode(type(part))), None)


def _reader(thing: Any) -> Reader | None:
    """A function that reads a thing's content; None if it is immutable or opaque."""
    kind = type(thing)
    if kind in PLAIN or thing is None:
        return None
    if isinstance(thing, Tensor):
        return _of_tensor
    if isinstance(thing, nn.Module):
        return _of_module
    if isinstance(thing, np.ndarray):
        return _of_array
    if isinstance(thing, dict):
        return _of_dict
    if isinstance(thing, list | tuple | set | frozenset | deque):
        return tuple
    if isinstance(thing, type):
        return _of_class if _is_foreign(thing) else None
    if isinstance(thing, SimpleNamespace | Namespace) or (_is_foreign(kind) and hasattr(thing, "__dict__")):
        return _of_object
    return None


def _is_foreign(kind: type) -> bool:
    """Whether a class belongs to a model, not to Python, PyTorch or this package.

    Objects of those hold nothing that a forward reads, and may refer to half of a program: a logger, a graph.
    """
    home = str(kind.__module__).partition(".")[0]
    return home not in sys.stdlib_module_names and home not in ("torch", "overlap_tool")


def _is_ours(kind: type) -> bool:
    return str(kind.__module__).startswith("overlap_tool.")


def _of_tensor(tensor: Tensor) -> tuple[Any, ...]:
    """Where its numbers are and how often they were written; their values may have become constants."""
    version = 0 if tensor.is_inference() else tensor._version
    place = tensor.data_ptr() if tensor.layout is torch.strided else None
    return version, place, tensor.shape, tensor.dtype, tensor.device


def _of_module(module: nn.Module, but: frozenset[str] = frozenset()) -> tuple[Any, ...]:
    return type(module), *(
        value
        for key, value in vars(module).items()
        if key not in NOT_READ and key not in but and not _is_ours(type(value))
    )


def _of_array(array: Any) -> tuple[Any, ...]:
    return array.shape, array.dtype.str, array.tobytes()


def _of_dict(items: dict[Any, Any]) -> tuple[Any, ...]:
    return *items, *items.values()


def _of_class(kind: type) -> tuple[Any, ...]:
    return *vars(kind).values(), *kind.__bases__


def _of_object(thing: Any) -> tuple[Any, ...]:
    return type(thing), *vars(thing).values()


def same_items(now: tuple[Any, ...], before: tuple[Any, ...]) -> bool:
    """Whether these are the same objects, or equal plain values."""
    return len(now) == len(before) and (all(map(operator.is_, now, before)) or all(map(_same, now, before)))


def _same(now: Any, before: Any) -> bool:
    if now is before:
        return True
    if type(now) is not type(before):
        return False
    if isinstance(now, tuple):
        return same_items(now, before)
    return isinstance(now, PLAIN) and repr(now) == repr(before)


def _asks_for_its_mode(kind: type[nn.Module]) -> bool:
    """Whether a class may compute something else in training mode, as few of PyTorch's own layers do."""
    code = getattr(kind.forward, "__code__", None)
    return not kind.__module__.startswith("torch.nn.") or code is None or "training" in code.co_names
