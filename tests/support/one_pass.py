"""Running a stage that has no barriers."""

from __future__ import annotations

from collections.abc import Callable

from overlap_tool.geometry.plan import AxisPlan
from overlap_tool.graph.network import Network
from overlap_tool.runtime.execute import evaluate_constants, execute_pass
from overlap_tool.runtime.stores import Sink, Source


def execute(
    network: Network,
    rows: AxisPlan,
    columns: AxisPlan,
    source: Source,
    sink: Sink,
    batch: int = 1,
    after_tile: Callable[[], None] = lambda: None,
) -> None:
    """Compute a stage without barriers on all of `source` into `sink`, in one pass."""
    values = evaluate_constants(network)
    sources, sinks = {network.ops[0].id: source}, {network.output: sink}
    execute_pass(network, rows, columns, sources, sinks, values, batch, after_tile)
