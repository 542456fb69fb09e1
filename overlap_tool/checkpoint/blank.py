"""Building a model whose weights are about to be replaced: no random initialisation, no unchecked size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from overlap_tool.graph.randomness import OwnRandomness

_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.eye)


class OverBudgetError(Exception):
    """The constructor asked for more memory than the weights at hand can account for."""


class _Blank(TorchFunctionMode):
    def __init__(self, budget: int | None) -> None:
        super().__init__()
        self.budget = budget
        self.asked = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.init.kaiming_uniform_:
            # What every convolution and linear layer does, and nearly all of the cost of building a model.
            return (args[0] if args else kwargs["tensor"]).detach().zero_()
        if self.budget is not None and func in _FACTORIES:
            # On the meta device the request has a size but takes no memory.
            request = func(*args, **{**kwargs, "device": "meta"})
            self.asked += request.numel() * request.element_size()
            if self.asked > self.budget:
                raise OverBudgetError
        return func(*args, **kwargs)


class _Counted(TorchDispatchMode):
    """Counts the tensors that are there, whoever made them, and how. Those of more than `most`
    bytes, and what is made of them, are on the meta device, where they have sizes alone."""

    def __init__(self, budget: int, tensors: int, most: float) -> None:
        super().__init__()
        self.budget = budget
        self.tensors = tensors
        self.most = most
        self.made: list[tuple[StorageWeakRef, int]] = []
        self.bytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Or PyTorch imports its compiler, which takes more time and memory than most models."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        real = not any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs)))
        if real and all(returned.alias_info is not None for returned in func._schema.returns):
            return func(*args, **kwargs)
        asked = dict(kwargs)
        if any(argument.name == "device" for argument in func._schema.arguments):
            asked.update(device="meta", pin_memory=None)
        try:
            made = func(*tree_map(_on_meta, args), **tree_map(_on_meta, asked))
        except (RuntimeError, NotImplementedError):
            if not real:
                raise
            made = func(*args, **kwargs)  # how large it is follows from numbers
        else:
            size = sum(map(_bytes, _new(func, made)))
            self._make_room(size)
            if real and size <= self.most:
                made = func(*args, **kwargs)
        for tensor in _new(func, made):
            self.made.append((StorageWeakRef(tensor.untyped_storage()), _bytes(tensor)))
            self.bytes += _bytes(tensor)
        self._make_room(0)
        return made

    def _make_room(self, size: int) -> None:
        """For so many bytes more, if there is room when what is gone does not count."""
        if self.bytes + size > self.budget or len(self.made) > self.tensors:
            self.made = [(storage, bytes) for storage, bytes in self.made if not storage.expired()]
            self.bytes = sum(bytes for _, bytes in self.made)
            if self.bytes + size > self.budget or len(self.made) > self.tensors:
                raise OverBudgetError


def _new(func: Any, made: Any) -> list[Tensor]:
    """The tensors that an op returns and that are no views of others."""
    results = made if isinstance(made, tuple) else (made,)
    return [
        result
        for result, returned in zip(results, func._schema.returns, strict=False)
        if returned.alias_info is None and isinstance(result, Tensor)
    ]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


@contextmanager
def counted_weights(budget: int, tensors: int, most: float = inf) -> Iterator[None]:
    """Modules built inside are as their class makes them, of so many bytes and so many tensors at most. Of
    tensors of more than `most` bytes, there are the sizes alone."""
    with _Counted(budget, tensors, most):
        yield


@contextmanager
def blank_weights(budget: int | None = None) -> Iterator[None]:
    """Modules built inside have zeros for convolution and linear weights, and take at most `budget` bytes.

    The global random state is left as it was.
    """
    with OwnRandomness(), _Blank(budget):
        yield
