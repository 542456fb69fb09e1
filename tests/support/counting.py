"""Multiply-accumulates, counted as they run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from compressai.layers import GDN
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Executed:
    """One convolution as it ran: positions of its output, images included, and its weight."""

    positions: int
    weight: tuple[int, ...]
    open_taps: int
    """Those that are not masked to zero in every channel."""

    @property
    def macs(self) -> int:
        """Output elements x taps x input channels per group, zeros between the inputs of a transposed one
        included; in either layout of the weight that is one product."""
        return self.positions * self.per_tap * self.weight[2] * self.weight[3]

    @property
    def open_macs(self) -> int:
        return self.positions * self.per_tap * self.open_taps

    @property
    def per_tap(self) -> int:
        return self.weight[0] * self.weight[1]


@dataclass
class Counter(TorchDispatchMode):
    """Sees every convolution that reaches the kernels, from whatever function or module it comes."""

    executed: list[Executed] = field(default_factory=list)
    paused: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default and not self.paused:
            weight = args[1]
            open_taps = int(weight.ne(0).flatten(0, 1).any(0).sum())
            positions = result.shape[0] * result.shape[2] * result.shape[3]
            self.executed.append(Executed(positions, tuple(weight.shape), open_taps))
        return result

    @property
    def macs(self) -> int:
        return sum(conv.macs for conv in self.executed)

    @property
    def open_macs(self) -> int:
        return sum(conv.open_macs for conv in self.executed)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, gdn: bool) -> Iterator[Counter]:
    """Counts what runs inside; without `gdn`, not the 1x1 convolution within each GDN."""
    counter = Counter()

    def uncounted(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def quietly(module: nn.Module, x: Tensor) -> Tensor:
            counter.paused = True
            try:
                return forward(module, x)
            finally:
                counter.paused = False

        return quietly

    with monkeypatch.context() as patched, torch.no_grad(), counter:
        if not gdn:
            patched.setattr(GDN, "forward", uncounted(GDN.forward))
        yield counter


def products_of_convolutions(module: nn.Module, x: Tensor) -> int:
    """As the module itself calls its layers: outputs, times the weights that each of them reads."""
    found = 0

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal found
        found += output.shape[-2] * output.shape[-1] * layer.weight.numel()

    module = copy.deepcopy(module).to("meta")
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module(x)
    return found
