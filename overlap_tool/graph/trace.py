"""`trace`: from a module to a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from overlap_tool.errors import TraceError
from overlap_tool.graph.aftermath import Aftermath
from overlap_tool.graph.copying import modes, put_in_modes
from overlap_tool.graph.explaining import explained
from overlap_tool.graph.functional import functionalise
from overlap_tool.graph.lowering import check_sizes, lowered
from overlap_tool.graph.network import Network
from overlap_tool.graph.randomness import OwnRandomness
from overlap_tool.graph.replacing import ONE_AT_A_TIME
from overlap_tool.graph.tracer import SMALLER, TRIALS, Sizes, TooLargeError, Tracer, TrialError
from overlap_tool.graph.values import check_values


def trace(module: nn.Module, name: str, channels: int | None = None) -> Network:
    """The network of a module that takes one map and returns one.

    `channels` is the number of input channels; left out, it is read from the module's layers. Of several
    threads, one traces at a time.
    """
    with ONE_AT_A_TIME, OwnRandomness():
        return _trace_with(module, name, channels)


def _trace_with(module: nn.Module, name: str, channels: int | None) -> Network:
    if channels is not None:
        return _trace(module, name, channels)
    refusals: list[TrialError] = []
    for candidate in input_channels(module):
        try:
            return _trace(module, name, candidate)
        except TrialError as refusal:
            refusals.append(refusal)
    first = refusals[0]
    raise TraceError(first.where, first.reason, first.way_out) from first


def _trace(module: nn.Module, name: str, channels: int) -> Network:
    try:
        return _trace_at(TRIALS, module, name, channels)
    except TooLargeError:
        return _trace_at(SMALLER, module, name, channels)


def _trace_at(sizes: Sizes, module: nn.Module, name: str, channels: int) -> Network:
    tracer = Tracer(name, module, channels, sizes)
    with _in_eval_mode(module):
        aftermath = Aftermath(module)
        try:
            graph = tracer.trace(module)
        except TraceError as error:
            if isinstance(error, TooLargeError) and sizes != SMALLER:
                raise
            first = _obstacle_before(tracer) or error
            raise explained(first, tracer) from error
        finally:
            changed = aftermath.undo(lambda proxy: tracer.depends_on_input(proxy.node))
        if changed:
            raise TraceError(
                tracer.dotted(changed[0]),
                "changes while the module runs, which tiles could not do alike",
                "Do not change it in eval mode",
            )
        try:
            functionalise(graph, tracer)
            network = lowered(graph, tracer)
        except TraceError as error:
            raise explained(error, tracer) from error
        check_sizes(network, tracer)
        check_values(graph, network, tracer)
        return network


def _obstacle_before(tracer: Tracer) -> TraceError | None:
    """The first refusal among the ops that were recorded before tracing stopped."""
    stopped_in = tracer.stopped_in
    for node in reversed(tracer.graph.nodes):
        if "values" not in node.meta:  # it failed, so nothing reads it
            tracer.graph.erase_node(node)
    try:
        functionalise(tracer.graph, tracer)
        lowered(tracer.graph, tracer)
    except TraceError as error:
        return error
    tracer.stopped_in = stopped_in
    return None


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    before = modes(module)
    module.eval()
    try:
        yield
    finally:
        put_in_modes(module, before)


def input_channels(module: nn.Module) -> list[int]:
    """The input channels to try: those of the layers, in order, then of a colour and a grey image."""
    found = [getattr(m, "in_channels", None) for m in module.modules()]
    counts = [count for count in found if isinstance(count, int) and count > 0]
    return list(dict.fromkeys([*counts, 3, 1]))
