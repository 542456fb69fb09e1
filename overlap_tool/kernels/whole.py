"""Ops that have no exact kernel: on whole tensors, PyTorch's own kernel computes them.

Between its stages, a model in tiles has the tensors that the untouched one has. There any kernel serves that
gives equal bits for equal tensors. What a kernel could make of how a tensor lies in memory is the same, too:
it is given tensors that lie as new ones do. On pieces of maps, such an op is refused.
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
"""Bytes: where PyTorch's own memory begins. Libraries may take another way through what begins elsewhere."""

_pieces: ContextVar[bool] = ContextVar("pieces", default=False)
_told: ContextVar[dict[str, None] | None] = ContextVar("told", default=None)


def pieces() -> AbstractContextManager[bool]:
    """Inside, tensors are pieces of maps, whose shape depends on the tiles."""
    return inside(_pieces, True)


def on_pieces() -> bool:
    return _pieces.get()


def ops_of_the_library() -> AbstractContextManager[dict[str, None]]:
    """The ops that PyTorch's own kernels compute inside, in this thread, in their order."""
    return inside(_told, dict[str, None]())


def by_the_library(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What PyTorch's own kernel gives for whole tensors, wherever these lie in memory."""
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
