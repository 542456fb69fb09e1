"""Cuts a stage where it needs a whole map: the segments that run pass by pass, and what is stored."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx

from overlap_tool.graph.network import (
    Barrier,
    Constant,
    Input,
    Network,
    Node,
    Op,
    Summary,
    maps_read,
    operands,
)


@dataclass(frozen=True)
class Segment:
    """A part of a stage that runs in one pass over its maps, as a network of its own.

    Its inputs are the stage's input and maps that earlier segments stored; it stores the maps that it passes
    on. `reduced` are computed at its end: barriers and what follows from them, and parts kept whole, whose
    maps are stored, too. A stage without any of these is a single segment.
    """

    network: Network
    stored: tuple[str, ...] = ()
    """Maps of this segment that later ones or its barriers read."""
    reduced: tuple[Barrier | Summary | Op, ...] = ()
    dropped: tuple[str, ...] = ()
    """Stored maps that nobody reads from here on."""

    @property
    def computes(self) -> bool:
        """Whether it has any op: a barrier on the stage's input itself needs none before it."""
        return any(isinstance(op, Op) for op in self.network.ops)


def cut(network: Network) -> tuple[Segment, ...]:
    """The segments of a stage, in execution order."""
    if not network.need_whole_maps:
        return (Segment(network),)
    at = _passes(network)
    last_read: dict[str, int] = {}
    for id, node in network.nodes.items():
        for map in maps_read(node):
            last_read[map] = max(last_read.get(map, 0), at[id])
    passes = range(max(at[id] for id in (*network.wanted, *network.results)) + 1)
    given = _given(network)
    segments = [_segment(network, given, at, number) for number in passes]
    stored = {map: number for number in passes for map in segments[number].stored}
    stored |= {op.id: at[op.id] for op in network.wholes}
    return tuple(
        Segment(
            segment.network,
            segment.stored,
            segment.reduced,
            tuple(map for map in stored if last_read[map] == number),
        )
        for number, segment in enumerate(segments)
    )


def _passes(network: Network) -> dict[str, int]:
    """The pass in which each op runs, or at whose end a value is computed.

    A barrier ends the pass of its map, and ops that read its value run in a later one. An op that could run
    early waits for the pass of its first reader if all its inputs are stored by then anyway, so that its
    output need not be stored.
    """
    earliest = _earliest(network)
    latest = dict.fromkeys(network.nodes, max(earliest[map] for map in network.wanted))
    for id, node in reversed(network.nodes.items()):
        by = earliest[id] if _ends_a_pass(node) else latest[id]
        for map in maps_read(node):
            latest[map] = min(latest[map], by)
    at = dict(earliest)
    for id, node in network.nodes.items():
        if isinstance(node, Op) and not node.rule.whole:
            waits = all(at[map] == latest[id] or _stored(network, map, at, earliest) for map in node.inputs)
            made = (at[map] + network.is_whole(map) for map in node.inputs)
            at[id] = latest[id] if waits else max(earliest[id], *made)
    return at


def _earliest(network: Network) -> dict[str, int]:
    earliest: dict[str, int] = {}
    for id, node in network.nodes.items():
        if isinstance(node, Input | Constant):
            earliest[id] = 0 if isinstance(node, Input) else -1
            continue
        maps = [earliest[map] + network.is_whole(map) for map in maps_read(node)]
        values = [earliest[value.id] for value in operands((node.args, node.kwargs)) if not value.spatial]
        if isinstance(node, Op):
            values = [value + 1 for value in values]
        # a summary of the number of images alone is available from the start
        earliest[id] = max([-1 if isinstance(node, Summary) else 0, *maps, *values])
    return earliest


def _stored(network: Network, map: str, at: dict[str, int], earliest: dict[str, int]) -> bool:
    """Whether a map is stored for later passes anyway, whoever else reads it."""
    return (
        isinstance(network.nodes[map], Input)
        or network.is_whole(map)
        or any(
            _ends_a_pass(network.nodes[reader]) or earliest[reader] > at[map]
            for reader in network.graph.successors(map)
        )
    )


def _ends_a_pass(node: Node) -> bool:
    return isinstance(node, Barrier) or (isinstance(node, Op) and node.rule.whole)


def _segment(network: Network, given: dict[str, Input], at: dict[str, int], number: int) -> Segment:
    graph = nx.DiGraph()
    ops = [op for op in network.ops if isinstance(op, Op) and not op.rule.whole and at[op.id] == number]
    for op in ops:
        for map in op.inputs:
            if map not in graph:  # a given map is read where it is first needed
                graph.add_node(map, op=given[map])
        graph.add_node(op.id, op=op)
        graph.add_edges_from((map, op.id) for map in op.inputs)
    reduced = tuple(
        node
        for id, node in network.nodes.items()
        if at[id] == number
        and (isinstance(node, Barrier | Summary) or (isinstance(node, Op) and node.rule.whole))
    )
    if not ops:
        first = network.ops[0]
        graph.add_node(first.id, op=first)
        return Segment(Network(network.name, graph, first.id, network.root), (), reduced)
    stored = tuple(
        op.id
        for op in ops
        if any(
            _ends_a_pass(network.nodes[reader]) or at[reader] > number
            for reader in network.graph.successors(op.id)
        )
    )
    output = ops[-1].id
    kept = tuple(op.id for op in ops if (op.id in stored or op.id in network.wanted) and op.id != output)
    return Segment(Network(network.name, graph, output, network.root, kept), stored, reduced)


def _given(network: Network) -> dict[str, Input]:
    """Every map as an input of a segment that reads it and does not compute it."""
    scales = zip(network.rows.reaches(), network.columns.reaches(), strict=True)
    return {
        op.id: Input(op.id, op.name, op.layout, (rows.scale, columns.scale))
        for op, (rows, columns) in zip(network.ops, scales, strict=True)
    }
