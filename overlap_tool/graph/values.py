"""Holds a trace to the module itself: what both compute of a small map."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from overlap_tool.errors import CopyError, TraceError
from overlap_tool.graph.copying import copied
from overlap_tool.graph.network import Network
from overlap_tool.graph.returned import taken_apart
from overlap_tool.graph.tracer import REGISTER, MapSize, Tracer

SIDE = 16
"""The height of the first map to try, or of what is made of it if that is larger. The width is twice that."""


@torch.no_grad()
def check_values(network: Network, tracer: Tracer, traced_at: Callable[[MapSize], Tracer | None]) -> None:
    """Refuse a module that computes something else when it is traced. `traced_at` gives the trace that holds
    for a map of this size.

    Its code may ask what no trace answers as the module itself would, such as whether its input is a tensor.
    It is a copy that runs, since a forward may change its module, as MaskedConv2d's does.
    """
    try:
        module = copied(tracer.root)
    except CopyError:
        return
    side = max(1, int(SIDE / max(Fraction(1), network.rows.scale)))
    maps = (_small_map(tracer, side * times) for times in (1, 2, 4, 8))
    pairs = ((x, _own_result(module, x)) for x in maps)
    x, own = next(((x, own) for x, own in pairs if own is not None), (None, None))
    if x is None or own is None:
        return
    recorded = traced_at((1, *x.shape[2:]))
    if recorded is None:
        return
    results, structure = taken_apart(own, lambda value: isinstance(value, Tensor))
    traced = _AsTraced(module, recorded).run(x)
    if structure != recorded.returns or not all(map(_nearly_equal, traced, results)):
        raise TraceError(
            f"{tracer.dotted('')} ({type(tracer.root).__name__})",
            "computes something else when it is traced, perhaps since its code asks whether its input is a "
            "torch.Tensor",
            f"Do not ask it there, or {REGISTER[0].lower()}{REGISTER[1:]} that makes it one op",
        )


def _nearly_equal(first: Tensor, second: Tensor) -> bool:
    """In operations that the exact engine has, too, since a trace may be made while it is on."""
    near = 1e-3 * float(second.nan_to_num(0, 0, 0).abs().max())
    if first.shape != second.shape:
        return False
    same = (first == second) | (first.isnan() & second.isnan())
    return bool((same | ((first - second).abs() <= near)).all())


def _small_map(tracer: Tracer, side: int) -> Tensor:
    like = tracer.trials[0]
    x = torch.rand(1, tracer.channels, side, 2 * side, generator=torch.Generator().manual_seed(0))
    return x.to(like.device, like.dtype)


def _own_result(module: nn.Module, x: Tensor) -> Any:
    """What the module makes of a map, if it takes one of this size."""
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        return None
    try:
        result = module(x.clone())
    except Exception:
        return None
    maps = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
    return result if maps and all(map.numel() > 0 for map in maps) else None


class _AsTraced(fx.Interpreter):
    def __init__(self, module: nn.Module, tracer: Tracer) -> None:
        super().__init__(module, graph=tracer.graph)
        self.made, self.made_modules = tracer.made, tracer.made_modules

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        made = self.made_modules.get(target)
        return super().call_module(target, args, kwargs) if made is None else made(*args, **kwargs)

    def fetch_attr(self, target: str) -> Any:
        if target == "":
            return self.module
        return self.made[target] if target in self.made else super().fetch_attr(target)
