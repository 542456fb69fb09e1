"""Rewrites ops over all positions of a map as the barriers and pointwise ops that they consist of.

Which dimensions are positions is known only once a map has its layout, so this is done op by op while the
network is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from overlap_tool.geometry.layout import COLUMNS, ROWS, Layout
from overlap_tool.graph.network import at_trial
from overlap_tool.graph.tracer import Tracer
from overlap_tool.kernels.compositions import NEGLIGIBLE
from overlap_tool.rules.products import MATRIX_PRODUCTS, beside, over_positions

SOFTMAX = (torch.softmax, F.softmax, "softmax")


IsMap = Callable[[fx.Node], bool]


def maps_among(nodes: list[fx.Node], is_map: IsMap) -> list[fx.Node]:
    return [node for node in nodes if is_map(node) and "layout" in node.meta]


def inserted(target: Callable[..., Any], args: tuple[Any, ...], before: fx.Node, tracer: Tracer) -> fx.Node:
    """A new node before another."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args)
    node.meta["scope"] = before.meta["scope"]
    values = []
    for trial in range(len(tracer.sizes)):
        node.args = at_trial(args, trial)
        values.append(tracer.evaluate(node, trial))
    node.args, node.meta["values"] = args, tuple(values)
    tracer.nodes[node.name] = node
    tracer.of_input.add(node)
    return node


def rewritten(node: fx.Node, is_map: IsMap, tracer: Tracer) -> list[fx.Node]:
    """Rewrite a product or softmax over all positions as known ops; return the new nodes before it."""
    maps = maps_among(node.all_input_nodes, is_map)
    if node.target in MATRIX_PRODUCTS and len(maps) == len(node.args) == 2:
        return _product(node, maps, tracer)
    dim = _softmax_along(node, tracer)
    if maps and dim is not None and _is_positions(maps[0].meta["layout"], dim):
        return list(_softmax(node, maps[0], dim, tracer))
    return []


def _is_positions(layout: Layout, dim: int) -> bool:
    return layout.dims[dim] == (ROWS, COLUMNS)


def _product(node: fx.Node, maps: list[fx.Node], tracer: Tracer) -> list[fx.Node]:
    first, second = (map.meta["layout"] for map in maps)
    if min(len(first.dims), len(second.dims)) < 3 or not (
        _is_positions(first, -1) and _is_positions(second, -2)
    ):
        return []
    layouts = first, second
    both = inserted(beside, (*node.args, layouts), node, tracer)
    # there all positions are in one row, and in a map they are rows and columns
    values = zip(both.meta["values"], maps[0].meta["sizes"], strict=True)
    both.meta["values"] = tuple(value.unflatten(-1, size[1:]).squeeze(-3) for value, size in values)
    node.op, node.target, node.args, node.kwargs = "call_function", over_positions, (both, layouts), {}
    return [both]


def _softmax_along(node: fx.Node, tracer: Tracer) -> int | None:
    if node.op == "call_module":
        module = tracer.submodule(str(node.target))
        return module.dim if isinstance(module, nn.Softmax) else None
    if node.target not in SOFTMAX or node.kwargs.get("dtype") is not None:
        return None
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return dim if isinstance(dim, int) else None


def _softmax(node: fx.Node, map: fx.Node, dim: int, tracer: Tracer) -> Iterator[fx.Node]:
    """As the exact engine computes it, step by step."""
    largest = inserted(torch.amax, (map, dim, True), node, tracer)
    yield largest
    less = inserted(torch.sub, (map, largest), node, tracer)
    yield less
    powers = inserted(torch.exp, (less,), node, tracer)
    yield powers
    weights = inserted(F.threshold, (powers, NEGLIGIBLE, 0.0), node, tracer)
    yield weights
    total = inserted(torch.sum, (weights, dim, True), node, tracer)
    yield total
    node.op, node.target, node.args, node.kwargs = "call_function", torch.div, (weights, total), {}
