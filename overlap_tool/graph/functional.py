"""In-place ops become functional: who reads after one reads its result."""

from __future__ import annotations

import operator

from torch import fx

from overlap_tool.errors import TraceError
from overlap_tool.graph.tracer import INPLACE_OPERATORS, Tracer, tensors
from overlap_tool.rules.pointwise import inplace_position


def functionalise(graph: fx.Graph, tracer: Tracer) -> None:
    """Let whatever is read after an in-place op read that op's result, so that none need work in place."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        tracer.stopped_in = node.meta["scope"]
        if not works_in_place(node, tracer):
            continue
        changed = node.kwargs.get("out") or node.all_input_nodes[0]
        for alias in _sharing_memory(changed, graph):
            if alias.op == "get_attr":
                _refuse_mutation(tracer, node, "changes its weights in place while it runs")
            later = [user for user in alias.users if order[user] > order[node]]
            if alias.op == "placeholder":
                _refuse_mutation(tracer, node, "changes the stage's own input in place")
            if later and alias is not changed and order[alias] < order[node]:
                _refuse_mutation(tracer, node, "changes a tensor in place of which a view is read later")
        for user in [user for user in changed.users if order[user] > order[node]]:
            user.replace_input_with(changed, node)


def works_in_place(node: fx.Node, tracer: Tracer) -> bool:
    if node.op == "call_module":
        return bool(getattr(tracer.root.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    if node.op != "call_function":
        return False
    name, home = getattr(node.target, "__name__", ""), getattr(node.target, "__module__", "")
    if node.target in INPLACE_OPERATORS or node.kwargs.get("out") is not None:
        return True
    if name.endswith("_") and not name.endswith("__") and home != operator.add.__module__:
        return True  # torch.clamp_, but not operator.and_
    # F.relu(x, True), F.leaky_relu(x, 0.2, True)
    position = inplace_position(node.target)
    given = node.args[position] if position is not None and position < len(node.args) else False
    return bool(node.kwargs.get("inplace", given))


def _sharing_memory(node: fx.Node, graph: fx.Graph) -> list[fx.Node]:
    """The nodes whose values lie in the same memory as this one's, itself among them."""
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
