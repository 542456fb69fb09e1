"""Building a model whose weights are about to be replaced: no random initialisation, no unchecked size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from overlap_tool.randomness import OwnRandomness

_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.eye)


class TooLargeError(Exception):
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
                raise TooLargeError
        return func(*args, **kwargs)


@contextmanager
def blank_weights(budget: int | None = None) -> Iterator[None]:
    """Modules built inside have zeros for convolution and linear weights, and take at most `budget` bytes.

    The global random state is left as it was.
    """
    with OwnRandomness(), _Blank(budget):
        yield
