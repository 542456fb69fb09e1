"""Runs a traced network on the pieces that one rectangle of its output needs, op by op through the rules."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from overlap_tool.geometry import Span
from overlap_tool.geometry.axis import Axis
from overlap_tool.graph.network import Input, Network, Op
from overlap_tool.rules import Operand, Patch


class Functional(nn.Module):
    """A module that computes `compute(self, x)`, with the given modules, parameters and numbers."""

    def __init__(self, compute: Any, **members: Any) -> None:
        super().__init__()
        for name, member in members.items():
            setattr(self, name, nn.Parameter(member) if isinstance(member, Tensor) else member)
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


@dataclass
class Plan:
    """What one axis computes: lengths and spans, op by op."""

    sizes: tuple[int, ...]
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, axis: Axis, n: int, wanted: Span) -> Plan:
        sizes = axis.sizes(n)
        return cls(sizes, axis.needs({len(sizes) - 1: wanted}, sizes))


def run_on_pieces(network: Network, x: Tensor, rows: Span, columns: Span, layout: str = "view") -> Tensor:
    """The outputs `rows` x `columns`, from nothing but the samples that the geometries say they read.

    `layout` is how a piece lies in memory: a "view" of what was computed, a "copy", or "channels_last".
    """
    plans = Plan.of(network.rows, x.shape[-2], rows), Plan.of(network.columns, x.shape[-1], columns)
    known: dict[str, Tensor] = {}
    at = {op.id: index for index, op in enumerate(network.ops)}
    for constant in network.constants:
        known[constant.id] = (
            attrgetter(constant.source)(network.root)
            if constant.source is not None
            else constant.target(*_with(constant.args, known), **_with(constant.kwargs, known))
        )
    for index, op in enumerate(network.ops):
        spans = tuple(plan.spans[index] for plan in plans)
        if isinstance(op, Input):
            known[op.id] = _cut(x, spans)
        elif not any(span.empty for span in spans):
            known[op.id] = _computed(op, plans, spans, known, at, layout)
    return known[network.output]


def run_whole(network: Network, x: Tensor) -> Tensor:
    """The whole output, op by op through the rules."""
    sizes = network.rows.sizes(x.shape[-2])[-1], network.columns.sizes(x.shape[-1])[-1]
    return run_on_pieces(network, x, Span(0, sizes[0]), Span(0, sizes[1]))


def _computed(
    op: Op,
    plans: tuple[Plan, Plan],
    spans: tuple[Span, ...],
    known: dict[str, Tensor],
    at: dict[str, int],
    layout: str,
) -> Tensor:
    source = at[op.inputs[0]]
    rows, columns = (
        Patch(span, geometry.need(span), geometry.reads(span, plan.sizes[source]), plan.sizes[source])
        for geometry, span, plan in zip((op.rule.rows, op.rule.columns), spans, plans, strict=True)
    )

    def piece(operand: Operand) -> Tensor:
        if not operand.spatial:
            return known[operand.id]
        if rows.have.empty or columns.have.empty:
            some = next(iter(known.values()))
            return some.new_zeros((2, *operand.shape[1:-2], rows.have.length, columns.have.length))
        held = [plan.spans[at[operand.id]] for plan in plans]
        inner = (rows.have.shift(-held[0].start), columns.have.shift(-held[1].start))
        return _laid_out(_cut(known[operand.id], inner), layout)

    pieces = {o: piece(o) for o in _operands((op.args, op.kwargs))}
    before = {o: p.clone() for o, p in pieces.items()}
    arguments = ([op.module] if op.module is not None else []) + list(_with(op.args, pieces))
    made = op.rule.run((rows, columns), *arguments, **_with(op.kwargs, pieces))
    assert tuple(made.shape[-2:]) == (spans[0].length, spans[1].length)
    assert all(torch.equal(before[o], p) for o, p in pieces.items()), "a rule changed its input"
    return made


def _cut(x: Tensor, spans: tuple[Span, ...]) -> Tensor:
    rows, columns = spans
    assert 0 <= rows.start <= rows.stop <= x.shape[-2]
    assert 0 <= columns.start <= columns.stop <= x.shape[-1]
    return x[..., rows.start : rows.stop, columns.start : columns.stop]


def _laid_out(piece: Tensor, layout: str) -> Tensor:
    if layout == "copy":
        return piece.contiguous()
    return (
        piece.contiguous(memory_format=torch.channels_last)
        if layout == "channels_last" and piece.ndim == 4
        else piece
    )


def _operands(value: Any) -> list[Operand]:
    if isinstance(value, Operand):
        return [value]
    if isinstance(value, dict):
        return _operands(list(value.values()))
    return [o for item in value for o in _operands(item)] if isinstance(value, tuple | list) else []


def _with(value: Any, tensors: dict[Any, Tensor]) -> Any:
    """The arguments with tensors in place of operands, which are known by themselves or by their ids."""
    if isinstance(value, Operand):
        return tensors[value] if value in tensors else tensors[value.id]
    if isinstance(value, dict):
        return {key: _with(item, tensors) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_with(item, tensors) for item in value)
    return value
