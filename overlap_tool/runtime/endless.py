"""Runs a stage on sound that arrives in chunks, and whose length is unknown until it ends.

Until then the stream is that of a sound that is far too long: what it computes is the same, since none of it
is near the end. As much of the input is held back as any output reads, and as the end may mirror or cut off.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from overlap_tool.errors import TraceError
from overlap_tool.geometry import POINTWISE, Pad, Padding, Span
from overlap_tool.geometry.plan import AxisPlan, Endless, whole
from overlap_tool.graph.network import Constant, Network, Op, substituted
from overlap_tool.rules import Operand
from overlap_tool.runtime.execute import Execution, evaluate_constants

OF_LENGTHS = (
    operator.getitem, torch.narrow, "narrow", "view", "reshape", torch.reshape, "expand", "unflatten",
    torch.unflatten,
)  # fmt: skip
"""Ops whose arguments are lengths, and places in a map: their effect shows in their geometry and layout."""

AT_ONCE = "Give all of the sound to the model at once"


@dataclass
class _Given:
    """The input that is still to be read, and where it begins."""

    samples: Tensor
    begins: int = 0

    @property
    def stop(self) -> int:
        return self.begins + self.samples.shape[-1]

    def read(self, rows: Span, columns: Span) -> Tensor:
        return self.samples[..., columns.start - self.begins : columns.stop - self.begins]

    def expect(self, rows: Span, columns: Span) -> None:
        """Everything is in memory."""

    def drop_before(self, start: int) -> None:
        """Drop what nobody reads any more."""
        gone = min(max(0, start - self.begins), self.samples.shape[-1])
        self.samples, self.begins = self.samples[..., gone:].clone(), self.begins + gone


@dataclass
class _Made:
    parts: list[Tensor] = field(default_factory=list)

    def write(self, rows: Span, columns: Span, values: Tensor) -> None:
        self.parts.append(values)


class ChunkByChunk:
    """A network on sound chunk by chunk, as maps of one row. `network` is that of a sound of `n` samples,
    more than there will be."""

    def __init__(self, network: Network, n: int, first: Tensor) -> None:
        """`first` has no samples; it shows the number of images, the type and the device."""
        self.states: dict[str, Any] = {}
        """The states of ops that go through the sound step by step."""
        self.given, self.made = _Given(first), _Made()
        self.follow(network, n)
        self.outputs, self.place = 0, self.stream.at(0)
        rows, columns = whole(self.network.rows, 1), AxisPlan(self.stream.sizes, ())
        source, sink = {self.network.ops[0].id: self.given}, {self.network.output: self.made}
        self.row = rows.steps[0]
        values = evaluate_constants(self.network)
        self.run = Execution(self.network, rows, columns, (), source, sink, values, first)
        self.run.repeats = None  # while the length is unknown, no step is known to be like another

    def follow(self, network: Network, n: int) -> None:
        self.network = _with_states(network, self.states)
        scans = tuple(network.index[op.id] for op in network.wholes)
        self.stream = Endless(self.network.columns, n, scans)

    def add(self, chunk: Tensor) -> Tensor | None:
        """The outputs that can be computed now, if there are any."""
        self.given.samples = torch.cat([self.given.samples, chunk], -1)
        ready = self.given.stop - self.stream.held_back
        outputs = self.stream.outputs_of(ready, self.outputs)
        # nothing of what an end would cut off
        outputs = min(outputs, self.stream.axis.sizes(self.given.stop)[-1])
        return self.advance(outputs) if outputs > self.outputs else None

    def advance(self, outputs: int) -> Tensor:
        place = self.stream.at(outputs)
        step = self.stream.step(self.place, place)
        self.run.group = [step]
        self.run.tile(self.row, step)
        self.outputs, self.place = outputs, place
        self.given.drop_before(place.unread[0])
        made = torch.cat(self.made.parts, -1)
        self.made.parts.clear()
        return made

    def end(self, network: Network) -> Tensor | None:
        """The remaining outputs, by the network for a sound of the actual length."""
        require_alike(self.network, network)
        self.follow(network, self.given.stop)
        self.run.network, self.run.values = self.network, evaluate_constants(self.network)
        outputs = self.stream.sizes[-1]
        if outputs == self.outputs:
            return None
        place = self.stream.at(self.outputs)
        wanted = map(min, place.unread, place.done)
        if (
            outputs < self.outputs
            or place.done != self.place.done
            or any(map(int.__lt__, wanted, self.place.unread))
        ):
            raise _depends_on_length(network, "reads other samples near the end than")
        return self.advance(outputs)


def _with_states(network: Network, states: dict[str, Any]) -> Network:
    """The same network, with step-by-step ops that continue from their states. Raises for ops that need the
    whole sound."""
    around = next((op for op in network.ops if isinstance(op, Op) and _is_circular(op)), None)
    if around is not None:
        raise TraceError(
            f"{around.name} ({around.kind})", "pads a sound with its end, which has not come", AT_ONCE
        )
    graph = network.graph.copy()
    for node in network.need_whole_maps:
        if not isinstance(node, Op) or node.rule.scan is None:
            raise TraceError(
                f"{node.name} ({node.kind})", "needs the whole of the sound, which has not ended", AT_ONCE
            )
        rule = replace(node.rule, run=_going_on(node.id, node.rule.scan, states))
        graph.nodes[node.id]["op"] = replace(node, rule=replace(rule, rows=POINTWISE, columns=POINTWISE))
    return replace(network, graph=graph)


def _is_circular(op: Op) -> bool:
    return not op.rule.whole and op.rule.columns.padding is Padding.CIRCULAR


def _going_on(id: str, scan: Callable[..., tuple[Any, Any]], states: dict[str, Any]) -> Callable[..., Any]:
    def run(patches: Any, *args: Any, **kwargs: Any) -> Any:
        found, states[id] = scan(states.get(id), *args, **kwargs)
        return found

    return run


def require_alike(endless: Network, ended: Network) -> None:
    """Raise for a network that depends on the sound's length: all arguments must be equal, except where it
    pads or cuts."""
    nodes = list(endless.nodes.values()), list(ended.nodes.values())
    if [node.id for node in nodes[0]] != [node.id for node in nodes[1]]:
        raise _depends_on_length(ended, "computes other ops than")
    for own, other in zip(*nodes, strict=True):
        if isinstance(own, Op | Constant) and _arguments(own) != _arguments(other):
            raise _depends_on_length(
                ended, f"computes {getattr(own, 'name', own.id)} with other numbers than"
            )


def _arguments(node: Any) -> str:
    """What identifies an op, apart from the lengths of its maps and the places where it pads and cuts."""
    given = substituted((node.args, node.kwargs), Operand, lambda operand: operand.id)
    if isinstance(node, Op) and (isinstance(node.rule.columns, Pad) or node.target in OF_LENGTHS):
        given = substituted(given, int, lambda length: 0)
    return repr((node.target, getattr(node, "layout", None), given))


def _depends_on_length(network: Network, what: str) -> TraceError:
    return TraceError(
        network.name or type(network.root).__name__,
        f"{what} of a longer sound, so that nothing can be computed before it has ended",
        AT_ONCE,
    )
