"""Merges two traces of one module, at two input sizes, into one that knows what follows the size.

In a trace at one size every number is plain: those of channels as well as those of columns. A number that is
the same at another size is a constant, and one that differs follows the size. If the ops differ, the module
computes something else at the other size, and no single trace holds for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx

from overlap_tool.errors import SizeDependenceError
from overlap_tool.graph.aftermath import same_values
from overlap_tool.graph.network import leaves
from overlap_tool.graph.tracer import REGISTER, Tracer
from overlap_tool.rules import SizeArgument


def pair_traces(first: Tracer, second: Tracer) -> None:
    """Give every node of the first trace its values in both.

    A differing number among its arguments becomes a `SizeArgument`. Where tracing stopped, the common part is
    paired, and the rest is dropped.
    """
    counterparts: dict[fx.Node, fx.Node] = {}
    outputs = [node for tracer in (first, second) for node in tracer.graph.nodes if node.op == "output"]
    if len(outputs) == 2 and first.returns != second.returns:
        raise refusal(outputs[0], first)
    others = iter(second.graph.nodes)
    for node in list(first.graph.nodes):
        other = next(others, None)
        if other is None or ("values" not in other.meta and other.op != "output"):
            _drop_from(node, first)
            break
        args, kwargs = (
            _paired(own, its, counterparts, node, first)
            for own, its in ((node.args, other.args), (node.kwargs, other.kwargs))
        )
        if (node.op, node.target) != (other.op, other.target) or not _same_made(node, first, second):
            raise refusal(node, first)
        node.args, node.kwargs = args, kwargs
        if node.op != "output":
            node.meta["values"] = (*node.meta["values"], *other.meta["values"])
        counterparts[node] = other
    first.sizes = (*first.sizes, *second.sizes)
    first.trials = (*first.trials, *second.trials)


def are_the_same(first: Tracer, second: Tracer) -> bool:
    """Whether two traces at one size have the same ops with the same numbers."""
    counterparts: dict[fx.Node, fx.Node] = {}
    if len(first.graph.nodes) != len(second.graph.nodes) or first.returns != second.returns:
        return False
    try:
        for node, other in zip(first.graph.nodes, second.graph.nodes, strict=True):
            paired = [
                _paired(own, its, counterparts, node, first)
                for own, its in ((node.args, other.args), (node.kwargs, other.kwargs))
            ]
            same = (node.op, node.target) == (other.op, other.target) and _same_made(node, first, second)
            if not same or any(isinstance(leaf, SizeArgument) for leaf in leaves(paired)):
                return False
            counterparts[node] = other
    except SizeDependenceError:
        return False
    return True


def refusal(node: fx.Node, tracer: Tracer) -> SizeDependenceError:
    kind = "output" if node.op == "output" else tracer.kind(node)
    _, height, width = tracer.sizes[0]
    return SizeDependenceError(
        f"{tracer.dotted(node.meta.get('scope', ''))} ({kind})",
        f"is another op, or takes other values, where the input is {width}x{height} and where it is larger",
        f"Move the choice out of the stage, or {REGISTER[0].lower()}{REGISTER[1:]} that makes it one op",
    )


def _paired(own: Any, other: Any, counterparts: dict[fx.Node, fx.Node], node: fx.Node, tracer: Tracer) -> Any:
    """The nested arguments of a node, merged with those of its counterpart."""
    if isinstance(own, fx.Node):
        if counterparts.get(own) is not other:
            raise refusal(node, tracer)
        return own
    if type(own) is not type(other):
        raise refusal(node, tracer)
    if isinstance(own, tuple | list):
        if len(own) != len(other):
            raise refusal(node, tracer)
        items = [_paired(*both, counterparts, node, tracer) for both in zip(own, other, strict=True)]
        return items if isinstance(own, list) else tuple(items)
    if isinstance(own, dict):
        if list(own) != list(other):
            raise refusal(node, tracer)
        return {key: _paired(own[key], other[key], counterparts, node, tracer) for key in own}
    if isinstance(own, slice):
        bounds = (
            _paired(getattr(own, end), getattr(other, end), counterparts, node, tracer)
            for end in ("start", "stop", "step")
        )
        return slice(*bounds)
    if own == other or (own != own and other != other):
        return own
    if isinstance(own, int | float) and not isinstance(own, bool):
        return SizeArgument((own, other))
    raise refusal(node, tracer)


def _same_made(node: fx.Node, first: Tracer, second: Tracer) -> bool:
    """Whether the modules and tensors that the forward creates are the same in both."""
    if node.op == "get_attr" and node.target in first.made:
        own, other = first.made[node.target], second.made.get(str(node.target))
        return isinstance(other, Tensor) and own.dtype == other.dtype and same_values(own, other)
    if node.op == "call_module" and node.target in first.made_modules:
        return repr(first.made_modules[node.target]) == repr(second.made_modules.get(str(node.target)))
    return True


def _drop_from(node: fx.Node, tracer: Tracer) -> None:
    for later in reversed(list(_from(node, tracer))):
        tracer.graph.erase_node(later)


def _from(node: fx.Node, tracer: Tracer) -> Iterator[fx.Node]:
    found = False
    for each in tracer.graph.nodes:
        found = found or each is node
        if found:
            yield each
