"""What a plan costs: multiply-accumulates, and bytes alive at once. Pure integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlap_tool.network import Network, Op
from overlap_tool.schedule.plan import AxisPlan


@dataclass(frozen=True)
class OpCost:
    """What one op costs per position, and when its output is last read."""

    channels: int
    scratch: int
    macs: int
    in_place: bool
    inputs: tuple[int, ...]
    last_read: int


def op_costs(network: Network) -> tuple[OpCost, ...]:
    index = {op.id: i for i, op in enumerate(network.ops)}
    last_read = dict.fromkeys(index.values(), len(network.ops))
    sources = [tuple(index[i] for i in op.inputs) if isinstance(op, Op) else () for op in network.ops]
    for reader, inputs in enumerate(sources):
        last_read.update(dict.fromkeys(inputs, reader))
    last_read[len(network.ops) - 1] = len(network.ops)
    return tuple(
        OpCost(
            op.channels,
            op.rule.scratch * op.channels if isinstance(op, Op) else 0,
            op.rule.macs if isinstance(op, Op) else 0,
            isinstance(op, Op) and op.in_place,
            inputs,
            last_read[i],
        )
        for i, (op, inputs) in enumerate(zip(network.ops, sources, strict=True))
    )


def macs(costs: Sequence[OpCost], rows: AxisPlan, columns: AxisPlan) -> int:
    """Multiply-accumulates over all steps, per image."""
    return sum(
        cost.macs * height * width
        for cost, height, width in zip(costs, rows.computed, columns.computed, strict=True)
    )


def peak_bytes(costs: Sequence[OpCost], rows: AxisPlan, columns: AxisPlan, itemsize: int = 4) -> int:
    """The most bytes of maps alive at once in any step, the step's own input and output included."""
    # Steps in the middle of the image are alike, so few pairs of heights and widths differ.
    heights = {tuple(span.length for span in step.compute) for step in rows.steps}
    widths = {tuple(span.length for span in step.compute) for step in columns.steps}
    return itemsize * max(_peak(costs, height, width) for height in heights for width in widths)


def _peak(costs: Sequence[OpCost], heights: Sequence[int], widths: Sequence[int]) -> int:
    sizes = [cost.channels * h * w for cost, h, w in zip(costs, heights, widths, strict=True)]
    alive: dict[int, int] = {}
    total = peak = 0
    for op, cost in enumerate(costs):
        if cost.in_place and costs[cost.inputs[0]].last_read == op:
            alive[op] = alive.pop(cost.inputs[0])
        else:
            alive[op] = sizes[op]
            total += sizes[op]
        scratch = cost.scratch * heights[op] * widths[op]
        peak = max(peak, total + scratch)
        for done in [i for i in cost.inputs if costs[i].last_read == op and i in alive]:
            total -= alive.pop(done)
    return peak
