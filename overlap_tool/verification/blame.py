"""Finds the first op of a stage that differs in tiles, and whether its overlap or its kernel is at fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from overlap_tool.errors import RuleError
from overlap_tool.geometry import Patch, Span
from overlap_tool.geometry.plan import AxisPlan, whole
from overlap_tool.graph.lowering import OURS
from overlap_tool.graph.network import Barrier, Op, Summary, leaves, maps_read, substituted
from overlap_tool.planning.choose import SegmentPlan, StagePlan
from overlap_tool.rules import Operand, Patches, SizeArgument, exact_kernels
from overlap_tool.rules.pieces import as_kept
from overlap_tool.runtime import passes
from overlap_tool.runtime.execute import (
    EndlessSource,
    as_the_model_has_it,
    compute_piece,
    evaluate_constants,
)
from overlap_tool.runtime.stores import TensorSource
from overlap_tool.verification.observing import largest_difference

Culprit = Literal["overlap", "kernel", "schedule"]
"""What is at fault: "overlap", when the rule claims that too few inputs are read; "kernel", when the same
numbers give other bits in another shape; "schedule", when every op is right by itself, and samples are handed
from tile to tile wrongly."""


@dataclass(frozen=True)
class Blame:
    fault: Culprit
    op: str
    kind: str
    message: str


@torch.no_grad()
def find_fault(plan: StagePlan, given: Tensor) -> Blame:
    """Find the first op, in execution order, whose tiles differ from what the model's own op computes.

    Every op is computed twice from the same numbers: whole, by what the model itself calls, and tile by tile,
    by its rule, from pieces of the whole maps. So no op is blamed for an error of an earlier one. If a tile
    differs, the model's own op runs again on whole maps, with every sample outside the inputs that the rule
    names replaced by another number; shape and kernel are the same. If the tile's outputs change, they depend
    on samples that the rule does not name: the overlap is too small. If not, the piece held all that is
    needed, and the kernel gave other bits for its shape.
    """
    network = plan.network
    plans = whole(network.rows, given.shape[-2]), whole(network.columns, given.shape[-1])
    values: dict[str, Any] = {**evaluate_constants(network), network.ops[0].id: given}
    parts = {op.id: part for part in plan.segments for op in part.segment.network.ops if isinstance(op, Op)}
    # on a rolled map the model has fewer windows: there, the rule is compared with itself on the whole map
    on_rolled = {id for pair in network.shifted for id in (*pair.inside, pair.back.id)}
    last_readers = {map: node.id for node in network.nodes.values() for map in maps_read(node)}

    def value(operand: Operand) -> Any:
        return values[operand.id]

    with exact_kernels():
        for node in network.nodes.values():
            found: Blame | None = None
            if isinstance(node, Op):
                everything = _patches(plans, network.index[node.id])
                full = (
                    compute_piece(node, everything, partial(_piece, value=value, patches=everything))
                    if node.id in on_rolled
                    else _by_the_model(node, value, everything)
                )
                if not node.rule.whole:
                    found = _first_difference(node, parts[node.id], value, full, everything)
                values[node.id] = full
            elif isinstance(node, Barrier):
                values[node.id] = _called(node.target, *_given(node, as_the_model_has_it(value)))
                found = _barrier_difference(node, plan, values)
            elif isinstance(node, Summary):
                values[node.id] = _called(node.target, *_given(node, value))
            if found is not None:
                return found
            for map in maps_read(node):
                if last_readers[map] == node.id and map != network.ops[0].id:
                    values.pop(map, None)
    return Blame(
        "schedule",
        "",
        "",
        "every op gives the same bits in tiles: the schedule passes on other samples than were computed",
    )


def _first_difference(
    op: Op,
    part: SegmentPlan,
    value: Callable[[Operand], Any],
    full: Tensor,
    everything: Patches,
) -> Blame | None:
    index = part.segment.network.index[op.id]
    for row in part.rows.steps:
        for column in part.columns.steps:
            vertical, horizontal = row.patches[index], column.patches[index]
            if vertical is None or horizontal is None:
                continue
            patches = vertical, horizontal
            outputs = vertical.out.clip(full.shape[-2]), horizontal.out.clip(full.shape[-1])
            expected = _part(full, *outputs)
            where = f"rows {_text(vertical.out)}, columns {_text(horizontal.out)} of {op.name} ({op.kind})"
            try:
                found = compute_piece(op, patches, partial(_piece, value=value, patches=patches))
            except RuleError as error:
                return Blame("overlap", op.name, op.kind, f"{where}: {error.reason}")
            found = _part(
                found, outputs[0].shift(-vertical.out.start), outputs[1].shift(-horizontal.out.start)
            )
            if torch.equal(found, expected):
                continue
            largest = largest_difference(found, expected)
            if _reads_outside(op, patches, outputs, value, expected, everything):
                reason = (
                    f"depend on inputs outside of the rows {_text(vertical.need)} and columns "
                    f"{_text(horizontal.need)} that its rule names: the overlap is too small"
                )
                return Blame("overlap", op.name, op.kind, f"{where} {reason} (off by {largest:.3g})")
            reason = (
                "read no other inputs than the rule names, and yet have other bits: the kernel is at fault"
            )
            return Blame("kernel", op.name, op.kind, f"{where} {reason} (off by {largest:.3g})")
    return None


def _barrier_difference(barrier: Barrier, plan: StagePlan, values: Mapping[str, Any]) -> Blame | None:
    bands = next(part.bands[barrier.id] for part in plan.segments if barrier.id in part.bands)
    whole = values[barrier.source]
    found = passes.reduced(barrier, values, TensorSource(whole, whole.device), bands)
    if torch.equal(found, values[barrier.id]):
        return None
    largest = largest_difference(found, values[barrier.id])
    return Blame(
        "kernel",
        barrier.name,
        barrier.kind,
        f"{barrier.name} ({barrier.kind}) gives other bits when it reads its map in bands of {bands.rows} "
        f"rows (off by {largest:.3g})",
    )


def _reads_outside(
    op: Op,
    patches: Patches,
    outputs: tuple[Span, Span],
    value: Callable[[Operand], Any],
    expected: Tensor,
    everything: Patches,
) -> bool:
    """Whether the model's own op gives this tile other outputs once all inputs outside of it are replaced.

    They are replaced by large numbers of both signs, not by NaN, which would get past a mask that multiplies
    taps by 0.
    """
    vertical, horizontal = patches

    def disturbed(sign: float) -> Callable[[Operand], Any]:
        def give(operand: Operand) -> Any:
            given = value(operand)
            if not operand.spatial:
                return given
            strange = torch.full_like(given, sign * (1 + 16 * float(given.abs().max())))
            named = vertical.have.clip(vertical.n), horizontal.have.clip(horizontal.n)
            _part(strange, *named).copy_(_part(given, *named))
            return strange

        return give

    return any(
        not torch.equal(_part(_by_the_model(op, disturbed(sign), everything), *outputs), expected)
        for sign in (1.0, -1.0)
    )


def _by_the_model(op: Op, value: Callable[[Operand], Any], everything: Patches) -> Tensor:
    """The op on whole maps, as the model calls it.

    An argument that follows the size of the image is not stored in a network; such an op is run by its rule.
    """

    if op.target in OURS or any(isinstance(leaf, SizeArgument) for leaf in leaves((op.args, op.kwargs))):
        return compute_piece(op, everything, value)
    rows, columns = (patch.out.length for patch in everything)
    made = _called(op.target, *_given(op, as_the_model_has_it(value)))
    return as_kept(made, op.layout, rows, columns)


def _given(
    op: Op | Barrier | Summary, value: Callable[[Operand], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The op's arguments, copied if the model may change them in place."""

    def own(operand: Operand) -> Any:
        given = value(operand)
        return given.clone() if operand.spatial and isinstance(given, Tensor) else given

    args, kwargs = substituted((op.args, op.kwargs), Operand, own)
    return args, kwargs


def _called(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if isinstance(target, str):
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def _piece(operand: Operand, value: Callable[[Operand], Any], patches: Patches) -> Any:
    given = value(operand)
    if not operand.spatial:
        return given
    source = EndlessSource(TensorSource(given, given.device), given.shape[-2], given.shape[-1])
    return source.read(patches[0].have, patches[1].have)


def _part(whole: Tensor, rows: Span, columns: Span) -> Tensor:
    return whole[..., rows.start : rows.stop, columns.start : columns.stop]


def _patches(plans: tuple[AxisPlan, AxisPlan], index: int) -> Patches:
    vertical, horizontal = (plan.steps[0].patches[index] for plan in plans)
    assert isinstance(vertical, Patch)
    assert isinstance(horizontal, Patch)
    return vertical, horizontal


def _text(span: Span) -> str:
    return f"{span.start} to {span.stop - 1}"
