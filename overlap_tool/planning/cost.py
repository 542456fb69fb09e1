"""The cost of a plan: multiply-accumulates, and bytes in use at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from overlap_tool.geometry import Patch
from overlap_tool.geometry.plan import AxisPlan, Step
from overlap_tool.geometry.walk import Reads, walk
from overlap_tool.graph.network import Network, Op, Summary, operands
from overlap_tool.graph.segments import Segment


@dataclass(frozen=True)
class OpCost:
    """The cost of one op per position, the size of its weights, and the ops that it reads."""

    channels: int
    scratch: int
    macs: int
    weights: int
    in_place: bool
    reads: Reads


def op_costs(network: Network) -> tuple[OpCost, ...]:
    return tuple(
        OpCost(
            op.channels,
            op.rule.scratch * op.channels if isinstance(op, Op) else 0,
            op.rule.macs if isinstance(op, Op) else 0,
            weights(op) if isinstance(op, Op) else 0,
            isinstance(op, Op) and op.in_place,
            reads,
        )
        for op, reads in zip(network.ops, network.reads, strict=True)
    )


def weights(op: Op | Summary) -> int:
    """The number of weights in an op's kernels; one-dimensional ones are biases or factors, not counted."""
    module = op.module if isinstance(op, Op) else op.target
    own = module.parameters() if isinstance(module, nn.Module) else ()
    given = (
        operand.shape[1:] if operand.summary else operand.shape
        for operand in operands((op.args, op.kwargs))
        if not operand.spatial
    )
    return sum(prod(shape) for shape in (*(weight.shape for weight in own), *given) if len(shape) > 1)


def macs(costs: Sequence[OpCost], rows: AxisPlan, columns: AxisPlan) -> int:
    """Multiply-accumulates over all steps, per image."""
    return sum(
        cost.macs * height * width
        for cost, height, width in zip(costs, rows.computed, columns.computed, strict=True)
    )


def peak_macs(costs: Sequence[OpCost], rows: AxisPlan, columns: AxisPlan) -> int:
    """Multiply-accumulates of the most expensive tile, per image."""
    heights, widths = (
        {tuple(span.length for span in run.first.compute) for run in plan.runs} for plan in (rows, columns)
    )
    return max(
        sum(cost.macs * a * b for cost, a, b in zip(costs, height, width, strict=True))
        for height in heights
        for width in widths
    )


def store_sizes(network: Network, segments: Sequence[Segment], areas: Sequence[int]) -> list[dict[str, int]]:
    """The numbers per image that lie in stores at the end of each segment, by map.

    `areas` are the positions of every op's map.
    """
    alive: dict[str, int] = {}
    found = []
    for segment in segments:
        for map in segment.stored:
            if map not in network.wanted:  # a wanted map lies in the stage's output
                place = network.index[map]
                alive[map] = network.ops[place].channels * areas[place]
        found.append(dict(alive))
        for op in segment.reduced:
            if isinstance(op, Op):  # computed at the end of the pass
                alive[op.id] = op.channels * areas[network.index[op.id]]
        for map in segment.dropped:
            alive.pop(map, None)
    return found


def full_bytes(costs: Sequence[OpCost], rows: AxisPlan, columns: AxisPlan, itemsize: int = 4) -> int:
    """The most bytes in use when the model itself computes the whole map, input and output included.

    Its in-place ops take no memory of their own.
    """
    sizes = [
        cost.channels * height * width
        for cost, height, width in zip(costs, rows.sizes, columns.sizes, strict=True)
    ]
    alive: dict[int, int] = {}
    total = peak = 0
    for op, cost in enumerate(costs):
        if cost.in_place and costs[cost.reads.inputs[0]].reads.last == op:
            alive[op] = alive.pop(cost.reads.inputs[0])
        else:
            alive[op] = sizes[op]
            total += sizes[op]
        scratch = cost.scratch * rows.sizes[op] * columns.sizes[op]
        peak = max(peak, total + scratch)
        for done in [done for done in alive if done and costs[done].reads.last == op]:
            total -= alive.pop(done)
    return itemsize * peak


def working_bytes(
    costs: Sequence[OpCost],
    rows: AxisPlan,
    columns: AxisPlan,
    itemsize: int = 4,
    images: int = 1,
    packed: bool = False,
) -> int:
    """The most bytes that the executor holds at once, beside the stage's whole input and output.

    Where weights are `packed`, each op's kernel is copied when it first runs, and the copy stays.
    """
    above = [
        # given maps are read again, not kept
        cost.channels * kept * extent.length if cost.reads.inputs else 0
        for cost, kept, extent in zip(costs, rows.kept, columns.extents, strict=True)
    ]
    row, column = rows.runs[0].first, columns.runs[0].first
    first = _tile(costs, row, column, above, images, packed, first=True)
    # Steps in the middle of the image have the same shape, so few distinct shapes remain.
    later_columns = {_shape(step): step for step in columns.later}.values()
    later_rows = {_shape(step): step for step in rows.later}.values()
    row_steps = {_shape(step): step for step in (row, *rows.later)}.values()
    later = [
        *((row, column) for row in row_steps for column in later_columns),
        *((row, column) for row in later_rows),
    ]
    return itemsize * max(
        [first, *(_tile(costs, row, column, above, images, packed, first=False) for row, column in later)]
    )


def _tile(
    costs: Sequence[OpCost],
    row: Step,
    column: Step,
    above: Sequence[int],
    images: int,
    packed: bool,
    *,
    first: bool,
) -> int:
    """The most bytes held during one tile.

    What the bands above keep, and packed weights, are counted from the moment at which the first tile makes
    them.
    """
    weights = 0 if first or not packed else sum(cost.weights for cost in costs)
    turns = list(walk([cost.reads for cost in costs], row, column))
    # what the tile to the left kept is there from the start, and is replaced op by op
    kept_left = [
        cost.channels * turn.held.rows.length * turn.before if turn.held and cost.reads.inputs else 0
        for cost, turn in zip(costs, turns, strict=True)
    ]
    kept = sum(kept_left) + (0 if first else sum(above))
    held: dict[int, int] = {}
    peak = 0
    for cost, turn in zip(costs, turns, strict=True):
        block = 0 if turn.held is None else cost.channels * turn.held.size
        if not cost.reads.inputs:
            held[turn.op] = block
            continue
        new = cost.channels * turn.computed.size
        scratch = cost.scratch * turn.computed.size + _extended(
            costs[cost.reads.inputs[0]].channels, turn.patches
        )
        weights += cost.weights if first and packed else 0
        peak = max(peak, images * (kept + sum(held.values()) + new + scratch) + weights)
        for done in turn.dropped:
            held.pop(done, None)
        if turn.held is not None:
            joining = new + (block if turn.joins else 0)
            peak = max(peak, images * (kept + sum(held.values()) + joining) + weights)
            held[turn.op] = block
            kept += cost.channels * turn.held.rows.length * turn.kept.columns.length - kept_left[turn.op]
            kept += above[turn.op] if first else 0
            peak = max(peak, images * (kept + sum(held.values())) + weights)
    return peak


def _extended(channels: int, patches: tuple[Patch, Patch] | None) -> int:
    """The size of the copy that an op makes of its input where it adds its own padding."""
    if patches is None or all(patch.complete for patch in patches):
        return 0
    return channels * prod(patch.need.length for patch in patches)


def _shape(step: Step) -> tuple[tuple[int, int, int, int, int], ...]:
    """What distinguishes two steps by their memory: lengths, not positions."""
    return tuple(
        (
            compute.length,
            hold.length,
            keep.length,
            compute.start - hold.start,
            0 if patch is None or patch.complete else patch.need.length,
        )
        for compute, hold, keep, patch in zip(step.compute, step.hold, step.keep, step.patches, strict=True)
    )
