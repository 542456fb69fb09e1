"""`check_rule`: tests a rule of your own against the op that it describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from overlap_tool.errors import OptionError, RuleError
from overlap_tool.geometry import Span
from overlap_tool.geometry.axis import Axis
from overlap_tool.geometry.layout import Layout
from overlap_tool.graph.network import Network, Op
from overlap_tool.graph.trace import trace
from overlap_tool.planning.choose import require_uniform
from overlap_tool.rules import engine, exact_kernels
from overlap_tool.settings import Engine
from overlap_tool.wrapping.retrofit import wrap

LINES = {-2: "row", -1: "column"}
TILES = ((5, 7), (8, 3))
LARGE = (1e3, -1e3)
"""Added to samples to see which outputs read them. A sample that only NaN reveals is multiplied by 0."""


def check_rule(op: Callable[..., Tensor], *inputs: Any) -> None:
    """Raise `RuleError` unless the rule of an op describes what the op really does.

    `op` is a module, or a function with a registered rule, and `inputs` are its arguments, the map first:
    with odd sides of about 20. For smaller sizes, corners of it are used. These are compared with the op
    itself, in order:

    - geometry: the output size at every input size, and exactly which input lines each output line reads,
      found by changing the input line by line;
    - values: tiles of odd sizes agree with the whole map, by any kernels;
    - bits: under the exact engine they are the same, and close to those of PyTorch's own kernels.

    >>> import torch
    >>> from torch import nn
    >>> from overlap_tool.testing import check_rule
    >>> check_rule(nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.rand(1, 3, 17, 22))
    """
    whole, *others = inputs
    module = (op if isinstance(op, nn.Module) else _Called(op, others)).eval()
    network = trace(module, "", Layout.of_map(whole.shape[1]))
    with torch.no_grad(), exact_kernels():
        _check_sizes(network, module, whole)
        for dim, axis in ((-2, network.rows), (-1, network.columns)):
            _check_reads(network, axis, module, whole, dim)
    for kernels in ("stock", "exact"):
        _check_tiles(network, module, whole, kernels)
    with torch.no_grad():
        stock = module(whole.clone())
        with exact_kernels():
            exact = module(whole.clone())
    if differ := int((~_close(exact, stock)).sum()):
        told = f"under the exact engine, {differ} of {stock.numel()} numbers are others than without it"
        _refuse(network, f"bits: {told}; look at the function passed to register_rule as `exact`")


class _Called(nn.Module):
    """A function on a map and other values, as a network."""

    def __init__(self, function: Callable[..., Tensor], others: list[Any]) -> None:
        super().__init__()
        self.function = function
        self.others = others
        for i, other in enumerate(others):
            if isinstance(other, Tensor):
                self.register_buffer(f"other{i}", other)

    def forward(self, x: Tensor) -> Tensor:
        others = [getattr(self, f"other{i}", other) for i, other in enumerate(self.others)]
        return self.function(x, *others)


def _check_sizes(network: Network, module: nn.Module, whole: Tensor) -> None:
    for dim, axis in ((-2, network.rows), (-1, network.columns)):
        for n in range(1, whole.shape[dim] + 1):
            said = axis.sizes(n)[-1]
            try:
                real = module(whole.narrow(dim, 0, n).clone()).shape[dim]
            except Exception:  # the op refuses this size, so its rule is never asked about it
                continue
            if said > 0 and real != said:
                _refuse(network, f"geometry: of {n} {LINES[dim]}s it says {said}, and the op gave {real}")


def _check_reads(network: Network, axis: Axis, module: nn.Module, whole: Tensor, dim: int) -> None:
    line, n = LINES[dim], whole.shape[dim]
    sizes = axis.sizes(n)
    outputs = range(sizes[-1])
    named = [axis.needs({len(sizes) - 1: Span(o, o + 1)}, sizes)[0] for o in outputs]
    for output, seen in enumerate(_lines_read(module, whole, dim, LARGE)):
        missed = [i for i in seen if i not in range(*named[output])]
        if missed:
            reads = f"output {line} {output} reads {line} {missed[0]}, and its rule names"
            _refuse(network, f"geometry: {reads} {_text(named[output])}: too few")
    for output, seen in enumerate(_lines_read(module, whole, dim, (*LARGE, float("nan")))):
        if not named[output].empty and not {named[output].start, named[output].stop - 1} <= seen:
            reads = f"output {line} {output} reads {sorted(seen)}, and its rule names"
            _refuse(network, f"geometry: {reads} {_text(named[output])}: more than tiles need")


def _lines_read(module: nn.Module, whole: Tensor, dim: int, amounts: tuple[float, ...]) -> list[set[int]]:
    """For every output line, the input lines whose change changes it when one of `amounts` is added."""
    expected = module(whole.clone()).movedim(dim, 0)
    read: list[set[int]] = [set() for _ in expected]
    for line, amount in product(range(whole.shape[dim]), amounts):
        other = whole.clone()
        other.select(dim, line).add_(amount)
        found = module(other).movedim(dim, 0)
        for output, changed in enumerate((found != expected).flatten(1).any(1).tolist()):
            if changed:
                read[output].add(line)
    return read


def _check_tiles(network: Network, module: nn.Module, whole: Tensor, kernels: Engine) -> None:
    with torch.no_grad(), engine(kernels):
        expected = module(whole.clone())
        for tile, how in _ways(network):
            found = wrap(module, tile=tile, engine=kernels, **how)(whole.clone())
            way = f"in tiles of {tile[0]}x{tile[1]}, {how['schedule']}{', uniform' * how['uniform']}"
            differ = int((found != expected).sum())
            if kernels == "exact" and not torch.equal(found, expected):
                reason = "its kernel gives other bits for other shapes: register_rule takes an `exact` one"
                _refuse(network, f"bits: {way}, {differ} of {expected.numel()} numbers differ; {reason}")
            if kernels == "stock" and not _close(found, expected).all():
                _refuse(network, f"values: {way}, {differ} of {expected.numel()} numbers are others")


def _close(found: Tensor, expected: Tensor) -> Tensor:
    return torch.isclose(found, expected, 1e-4, 1e-5, equal_nan=True)


def _ways(network: Network) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    for tile in TILES:
        yield tile, {"schedule": "stream", "uniform": False}
        yield tile, {"schedule": "tiles", "uniform": False}
    with suppress(OptionError):  # the rule does not claim to support tiles of one shape
        require_uniform(network)
        yield TILES[0], {"schedule": "tiles", "uniform": True}


def _refuse(network: Network, reason: str) -> NoReturn:
    op = next(op for op in network.ops if isinstance(op, Op))
    raise RuleError(f"{op.name} ({op.kind})", reason, "Correct the rule")


def _text(span: Span) -> str:
    return f"{span.start} to {span.stop - 1}" if not span.empty else "none"
