"""Builds a model whose weights are about to be replaced: no random initialisation, no unchecked
allocation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import inf, prod
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from overlap_tool.graph.randomness import OwnRandomness
from overlap_tool.kernels.dispatching import DispatchMode
from overlap_tool.kernels.work import tensors_among
from overlap_tool.plugins import importing

_SMALL = 1 << 20
"""Up to this many numbers are allocated without counting them first."""

_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.eye)


def _like_eye(n: int, m: int | None = None, **kwargs: Any) -> Tensor:
    """As large: of `eye` on the meta device, PyTorch imports its compiler."""
    return torch.empty(n, n if m is None else m, **kwargs)


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
            # every convolution and linear layer does this, at nearly all of the cost of building a model
            return (args[0] if args else kwargs["tensor"]).detach().zero_()
        if self.budget is not None and func in _FACTORIES:
            # on the meta device a tensor has a size but takes no memory
            request = (_like_eye if func is torch.eye else func)(*args, **{**kwargs, "device": "meta"})
            self.asked += request.numel() * request.element_size()
            if self.asked > self.budget:
                raise OverBudgetError
        return func(*args, **kwargs)


class _Counted(DispatchMode):
    """Counts live tensors, whoever made them. Those over `most` bytes, and all that is made of them, are on
    the meta device, where they have a size and no memory."""

    def __init__(self, budget: int, tensors: int, most: float) -> None:
        super().__init__()
        self.budget = budget
        self.tensors = tensors
        self.most = most
        self.made: list[tuple[StorageWeakRef, int]] = []
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        form = _form(func)
        real = self.most == inf or not any(
            tensor.is_meta for tensor in tensors_among([*args, *kwargs.values()])
        )
        if real and not any(form.new):
            return func(*args, **kwargs)
        made = None
        if not (real and form.follows_inputs and prod(map(Tensor.numel, tensors_among(args))) <= _SMALL):
            asked = {**kwargs, "device": "meta", "pin_memory": None} if form.on_device else kwargs
            try:
                made = func(*tree_map(_on_meta, args), **tree_map(_on_meta, asked))
            except RuntimeError:
                if not real:
                    raise  # otherwise the result's size depends on values
            else:
                self._make_room(form.size(made))
        if made is None or (real and form.size(made) <= self.most):
            made = func(*args, **kwargs)
            if form.size(made) > self.most:
                made = tree_map(_on_meta, made)
        for tensor in form.tensors(made):
            self.made.append((StorageWeakRef(tensor.untyped_storage()), _bytes(tensor)))
        self.bytes += form.size(made)
        self._make_room(0)
        return made

    def _make_room(self, size: int) -> None:
        """Count `size` more bytes; raises if they are over budget even without tensors that are gone."""
        if self.bytes + size > self.budget or len(self.made) > self.tensors:
            self.made = [(storage, bytes) for storage, bytes in self.made if not storage.expired()]
            self.bytes = sum(bytes for _, bytes in self.made)
            if self.bytes + size > self.budget or len(self.made) > self.tensors:
                raise OverBudgetError


@dataclass(frozen=True)
class _Form:
    """What an op's schema says about its results."""

    new: tuple[bool, ...]
    """For each result, whether it is a new tensor rather than a view."""
    on_device: bool
    """Whether the op has a device argument."""
    follows_inputs: bool
    """Whether no result can exceed the product of all inputs' sizes: the op has no size argument."""

    def tensors(self, made: Any) -> list[Tensor]:
        """The results that are new."""
        results = made if isinstance(made, tuple) else (made,)
        return [
            result
            for result, new in zip(results, self.new, strict=False)
            if new and isinstance(result, Tensor)
        ]

    def size(self, made: Any) -> int:
        """Their size in bytes."""
        return sum(map(_bytes, self.tensors(made)))


@cache
def _form(func: Any) -> _Form:
    names = {argument.name for argument in func._schema.arguments}
    sizes = any("int" in str(argument.type).lower() for argument in func._schema.arguments)
    new = tuple(returned.alias_info is None for returned in func._schema.returns)
    return _Form(new, "device" in names, not ("device" in names or sizes))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


@contextmanager
def counted_weights(budget: int, tensors: int, most: float = inf) -> Iterator[None]:
    """Inside, modules are built as their classes build them, within `budget` bytes and so many tensors.

    Tensors of more than `most` bytes have a size only.
    """
    with _Counted(budget, tensors, most):
        yield


@contextmanager
def blank_weights(budget: int | None = None) -> Iterator[None]:
    """Inside, new convolutions and linear layers have zeros as weights, and take at most `budget` bytes in
    all.

    The global random state is left unchanged.
    """
    with importing(), OwnRandomness(), _Blank(budget):  # the first meta tensor makes PyTorch import much
        yield
