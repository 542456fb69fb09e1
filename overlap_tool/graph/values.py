"""Compares a trace with the module itself: both compute a small map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from overlap_tool.errors import CopyError, GlobalOpError, TraceError
from overlap_tool.geometry.layout import ROWS, MapSize
from overlap_tool.graph.copying import copied
from overlap_tool.graph.network import Network, Op
from overlap_tool.graph.returned import taken_apart
from overlap_tool.graph.shifted import mixing
from overlap_tool.graph.tracer import REGISTER, Tracer
from overlap_tool.rules import exact_kernels

SIDE = 16
"""The height of the first map to try, or of its output if that is larger; the width is twice that."""

TIMES = 1, 2, 4, 8, 16, 32
"""Multiples of this size that are tried until the module takes one; if it takes none, then multiples that its
windows fit in. In the last two, shifted windows occur that have no neighbours in smaller maps."""


@torch.no_grad()
def check_values(network: Network, tracer: Tracer, traced_at: Callable[[MapSize], Tracer | None]) -> None:
    """Raise for a module that computes something else than its trace. `traced_at` returns the trace for a
    map's size.

    Its code may branch on something that a trace answers differently, such as the type of its input. A copy
    of the module runs, since a forward may change it, as MaskedConv2d's does.
    """
    if any(tensor.is_meta for tensor in (*tracer.root.parameters(), *tracer.root.buffers())):
        return
    try:
        module = copied(tracer.root)
    except CopyError:
        if network.shifted:
            raise
        return
    side = max(1, int(SIDE / max(Fraction(1), network.rows.scale, network.columns.scale)))
    periods = (network.rows.period, network.columns.period)
    for fitting in ((1, 1), periods) if max(periods) <= SIDE * TIMES[-1] else ((1, 1),):
        small, larger = (_small_maps(tracer, side, tried, fitting) for tried in (TIMES[:-2], TIMES[-2:]))
        pairs = ((x, _own_result(module, x)) for x in small)
        x, own = next(((x, own) for x, own in pairs if own is not None), (None, None))
        if x is not None:
            break
    recorded = None if x is None else traced_at(_size(tracer, x))
    if recorded is not None:
        _require_equal(tracer, _AsTraced(module, recorded), recorded.returns, x, own)
    if network.shifted:
        first = next(_small_maps(tracer, side, (1,), fitting)) if x is None else x
        traces = ((traced_at(_size(tracer, x)), x) for x in chain([first], larger))
        _require_masks(network, ((_AsTraced(module, trace), x) for trace, x in traces if trace is not None))


def _require_equal(tracer: Tracer, again: _AsTraced, returns: Any, x: Any, own: Any) -> None:
    results, structure = taken_apart(own, lambda value: isinstance(value, Tensor))
    if structure != returns or not all(map(_nearly_equal, again.run(x), results)):
        raise TraceError(
            f"{tracer.dotted('')} ({type(tracer.root).__name__})",
            "computes something else when it is traced, perhaps since its code asks for its input's type",
            f"Do not ask it there, or {REGISTER[0].lower()}{REGISTER[1:]} that makes it one op",
        )


def _nearly_equal(first: Tensor, second: Tensor) -> bool:
    """Uses operations that the exact engine has, too, since tracing may happen while it is on."""
    near = 1e-3 * float(second.nan_to_num(0, 0, 0).abs().max())
    if first.shape != second.shape:
        return False
    same = (first == second) | (first.isnan() & second.isnan())
    return bool((same | ((first - second).abs() <= near)).all())


def _small_maps(
    tracer: Tracer, side: int, multiples: Iterable[int], fitting: tuple[int, int]
) -> Iterator[Tensor]:
    """Maps of so many rows and twice as many columns, rounded up to whole periods, drawn one by one as they
    are needed: the largest takes a second and a GiB."""
    like, (_, rows, columns) = tracer.trials[0], tracer.sizes[0]
    of_squares = rows == columns  # it takes no other images
    for times in multiples:
        n = side * times
        size = (1, 2 * SIDE * n) if ROWS in tracer.layout.missing else (n, n if of_squares else 2 * n)
        height, width = (-(-n // period) * period for n, period in zip(size, fitting, strict=True))
        x = torch.rand(tracer.layout.shape((1, height, width)), generator=torch.Generator().manual_seed(0))
        yield x.to(like.device, like.dtype)


def _size(tracer: Tracer, x: Tensor) -> MapSize:
    size = tracer.layout.size_of(x.shape)
    assert size is not None
    return size


def _own_result(module: nn.Module, x: Tensor) -> Any:
    """The module's result for a map, if it takes this size."""
    try:
        result = module(x.clone())
    except Exception:
        return None
    maps = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
    return result if maps and all(map.numel() > 0 for map in maps) else None


def _require_masks(network: Network, runs: Iterable[tuple[_AsTraced, Tensor]]) -> None:
    """Raise for a roll that is tiled as if nothing crossed the border, unless nothing does.

    A map with a single window may not be rolled, so each roll is checked on the first small map in which it
    occurs.
    """
    left = {pair.roll.name: pair for pair in network.shifted}
    for again, x in runs:
        if not left:
            return
        try:
            again.run(x)
        except Exception:  # third-party modules may raise anything for so small a map
            continue
        places = again.places()
        for pair in list(left.values()):
            first, last = places.get(pair.roll.name), places.get(pair.back.name)
            if first is None or last is None or _how(first) != _how(pair.roll):
                continue
            with exact_kernels():
                if mixing(pair, again.env[first], partial(again.between, first, last)):
                    raise UnmaskedRoll(pair.roll)
            del left[pair.roll.name]
    for pair in left.values():
        raise UnmaskedRoll(pair.roll)


def _how(roll: fx.Node | Op) -> Any:
    """The rows and columns by which it rolls."""
    named = {name: value for name, value in roll.kwargs.items() if name != "input"}
    return tuple(roll.args[1:]), named


class UnmaskedRoll(GlobalOpError):
    """A roll brings in samples that are then mixed with the rest."""

    def __init__(self, roll: Op) -> None:
        super().__init__(
            f"{roll.name} ({roll.kind})",
            "rolls the map, and what comes in from the opposite border is not kept apart from the rest, so "
            "that tiles at one border would need the other",
            "Mask what the roll brings in, as in shifted windows, or analyze the parts around it",
        )
        self.id = roll.id


class _AsTraced(fx.Interpreter):
    def __init__(self, module: nn.Module, tracer: Tracer) -> None:
        super().__init__(module, garbage_collect_values=False, graph=tracer.graph)
        self.tracer = tracer
        self.made, self.made_modules = tracer.made, tracer.made_modules

    def places(self) -> dict[str, fx.Node]:
        """Its nodes, by the names of their ops in a network."""
        places: dict[str, fx.Node] = {}
        counts: Counter[str] = Counter()
        for node in self.graph.nodes:
            if node.op in ("call_function", "call_method") and self.tracer.depends_on_input(node):
                name = self.tracer.dotted(
                    f"{node.meta['scope']}.{self.tracer.kind(node).strip('_')}".strip(".")
                )
                counts[name] += 1
                places[name if counts[name] == 1 else f"{name}#{counts[name]}"] = node
        return places

    def between(self, first: fx.Node, last: fx.Node, value: Tensor) -> Tensor:
        """The value of `last` if `first` had another value than it did."""
        values = {**self.env, first: value}
        nodes = list(self.graph.nodes)
        for node in nodes[nodes.index(first) + 1 : nodes.index(last) + 1]:
            if any(values[source] is not self.env[source] for source in node.all_input_nodes):
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                args, kwargs = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
                values[node] = getattr(self, node.op)(node.target, args, kwargs)
        made: Tensor = values[last]
        return made

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        made = self.made_modules.get(target)
        return super().call_module(target, args, kwargs) if made is None else made(*args, **kwargs)

    def fetch_attr(self, target: str) -> Any:
        if target == "":
            return self.module
        return self.made[target] if target in self.made else super().fetch_attr(target)
