"""Makes in-place ops functional: whatever is read later reads the op's result."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from overlap_tool.errors import TraceError
from overlap_tool.graph.tracer import INPLACE_OPERATORS, Tracer, tensors
from overlap_tool.rules import Patches
from overlap_tool.rules.assigning import assign
from overlap_tool.rules.pointwise import inplace_position


def functionalise(graph: fx.Graph, tracer: Tracer) -> None:
    """Make everything that is read after an in-place op read its result, so that none works in place."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        tracer.stopped_in = node.meta["scope"]
        if not works_in_place(node, tracer):
            continue
        changed = node.kwargs.get("out") or node.all_input_nodes[0]
        if _changes_a_part(node, changed, order):
            with graph.inserting_after(node):
                written = graph.call_function(assign, (*changed.args, node))
            whole = written.all_input_nodes[0]
            written.meta |= {"values": whole.meta["values"], "scope": node.meta["scope"]}
            tracer.nodes[written.name] = written
            if any(map(tracer.depends_on_input, written.all_input_nodes)):
                tracer.of_input.add(written)
            order = {node: i for i, node in enumerate(graph.nodes)}
        for alias in _sharing_memory(changed, graph):
            if alias.op == "get_attr":
                _refuse_mutation(tracer, node, "changes its weights in place while it runs")
            later = [user for user in alias.users if order[user] > order[node]]
            if alias.op == "placeholder" and tracer.name:
                _refuse_mutation(tracer, node, "changes the stage's own input in place")
            if later and _puts_back(min(later, key=order.__getitem__), node, changed):
                continue  # `x[:, :8] *= 2` writes the part into x, and later reads use the result of that
            if later and alias is not changed and order[alias] < order[node]:
                _refuse_mutation(tracer, node, "changes a tensor in place of which a view is read later")
        for user in [user for user in changed.users if order[user] > order[node]]:
            user.replace_input_with(changed, node)


def _changes_a_part(node: fx.Node, changed: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether it is like `x[:8].zero_()` with x read later: then the part is written into x as a separate
    step."""
    whole = changed.args[0] if changed.target is operator.getitem else None
    if not isinstance(whole, fx.Node) or not isinstance(whole.meta["values"][0], Tensor):
        return False
    later = [user for user in whole.users if order[user] > order[node]]
    return bool(later) and not _puts_back(min(later, key=order.__getitem__), node, changed)


def _puts_back(user: fx.Node, node: fx.Node, part: fx.Node) -> bool:
    """Whether `user` writes what `node` computed of a part to where the part was taken from."""
    taken = part.target is operator.getitem and user.target is assign
    return taken and (user.args[0], user.args[1], user.args[2]) == (*part.args, node)


def works_in_place(node: fx.Node, tracer: Tracer) -> bool:
    if node.op == "call_module":
        return bool(getattr(tracer.submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op != "call_function":
        return False
    name, home = getattr(node.target, "__name__", ""), getattr(node.target, "__module__", "")
    if node.target in (*INPLACE_OPERATORS, assign) or node.kwargs.get("out") is not None:
        return True
    if name.endswith("_") and not name.endswith("__") and home != operator.add.__module__:
        return True  # torch.clamp_, but not operator.and_
    # F.relu(x, True), F.leaky_relu(x, 0.2, True)
    position = inplace_position(node.target)
    given = node.args[position] if position is not None and position < len(node.args) else False
    return bool(node.kwargs.get("inplace", given))


def out_of_place(target: Any) -> Any:
    """The out-of-place form of an in-place op such as `Tensor.add_` or `+=`; other functions are returned
    unchanged.

    The result may have another type than the tensor that the op would change. Ops that change how their
    tensor lies in memory, such as `unsqueeze_`, have no such form.
    """
    if target in INPLACE_OPERATORS:
        return INPLACE_OPERATORS[target]
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if not name.endswith("_") or name.endswith("__") or _relays(name):
        return target
    plain = name[:-1]
    if isinstance(target, str):
        return plain if hasattr(Tensor, plain) else target
    homes = (home for home in (torch, F) if getattr(home, name, None) is target)
    return next((getattr(home, plain) for home in homes if hasattr(home, plain)), target)


def _relays(name: str) -> bool:
    """Whether an in-place op changes its tensor's dimensions or strides."""
    packet = getattr(torch.ops.aten, name, None)
    overloads = [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
    return any(torch.Tag.inplace_view in overload.tags for overload in overloads)


def in_type_of_first(run: Callable[..., Any]) -> Callable[..., Any]:
    """A rule's `run` for an in-place op: the result has the type of the first tensor, as with `x.gt_(0)`."""

    @wraps(run)  # keeps the module name, by which our own rules are known
    def typed(patches: Patches, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()))
        return run(patches, *args, **kwargs).to(first.dtype)

    return typed


def on_copies(compute: Callable[..., Any]) -> Callable[..., Any]:
    """An in-place op on copies of its arguments, which may be read later."""

    def copying(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
        return compute(*args, **kwargs)

    return copying


def _sharing_memory(node: fx.Node, graph: fx.Graph) -> list[fx.Node]:
    """The nodes whose values share memory with this one's, itself included."""
    own = _memory(node)
    return [other for other in graph.nodes if other.op != "output" and not own.isdisjoint(_memory(other))]


def _memory(node: fx.Node) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors(node.meta["values"][0])}


def _refuse_mutation(tracer: Tracer, node: fx.Node, reason: str) -> None:
    raise TraceError(
        f"{tracer.dotted(node.meta['scope'])} ({tracer.kind(node)})",
        reason,
        "Use the op that is not in place, which gives the same values",
    )
