"""Building a model whose weights are about to be replaced: no random initialisation, no unchecked size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

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
    """Sees every tensor that is made from nothing, whoever makes it, and how."""

    def __init__(self, budget: int, tensors: int) -> None:
        super().__init__()
        self.budget = budget
        self.tensors = tensors

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(argument.name == "device" for argument in func._schema.arguments) and not any(
            isinstance(argument, torch.Tensor) for argument in args
        ):
            request = func(*args, **{**kwargs, "device": "meta", "pin_memory": None})
            self.budget -= request.numel() * request.element_size()
            self.tensors -= 1
            if self.budget < 0 or self.tensors < 0:
                raise OverBudgetError
        return func(*args, **kwargs)


@contextmanager
def counted_weights(budget: int, tensors: int) -> Iterator[None]:
    """Modules built inside are as their class makes them, of so many bytes and so many tensors at most."""
    with _Counted(budget, tensors):
        yield


@contextmanager
def blank_weights(budget: int | None = None) -> Iterator[None]:
    """Modules built inside have zeros for convolution and linear weights, and take at most `budget` bytes.

    The global random state is left as it was.
    """
    with OwnRandomness(), _Blank(budget):
        yield
