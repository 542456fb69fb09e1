"""Ops without an exact kernel: PyTorch's own kernel computes them, on whole tensors only.

Between its stages, a tiled model has the same tensors as the untouched one, so any kernel will do that gives
equal bits for equal tensors. Memory layout cannot make a difference: the kernel gets tensors as they are when
newly allocated. On pieces of maps, such an op raises.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map_only

from overlap_tool.settings import inside

ALIGNMENT = 64
"""The alignment of PyTorch's own memory, in bytes. Libraries may treat other addresses differently."""

_pieces: ContextVar[bool] = ContextVar("pieces", default=False)
_told: ContextVar[dict[str, None] | None] = ContextVar("told", default=None)


def pieces() -> AbstractContextManager[bool]:
    """Inside, tensors are pieces of maps, whose shape depends on the tiles."""
    return inside(_pieces, True)


def on_pieces() -> bool:
    return _pieces.get()


def ops_of_the_library() -> AbstractContextManager[dict[str, None]]:
    """The ops that PyTorch's own kernels compute inside, in this thread, in order."""
    return inside(_told, dict[str, None]())


def by_the_library(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """PyTorch's own result for whole tensors, whatever their memory layout."""
    if (told := _told.get()) is not None:
        told[func._schema.name] = None
    given: tuple[Any, dict[str, Any]] = tree_map_only(Tensor, _laid_out, (args, kwargs))
    result = func(*given[0], **given[1])
    for place, argument in enumerate(func._schema.arguments[: len(args)]):
        if argument.alias_info is not None and argument.alias_info.is_write:
            if given[0][place] is not args[place]:
                args[place].copy_(given[0][place])
            result = args[place] if result is given[0][place] else result
    return result


def _laid_out(tensor: Tensor) -> Tensor:
    if tensor.is_contiguous() and (isinstance(tensor, FakeTensor) or tensor.data_ptr() % ALIGNMENT == 0):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
