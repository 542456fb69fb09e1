"""Shifted windows: a map is rolled, cut in windows, and rolled back.

The roll brings samples from the opposite border into the last windows, where a mask separates them from the
rest. They can as well have a window of their own: the map is padded before and after to one more window, and
results in the padding are cropped. Then no tile reads the opposite border. A value per window, such as the
mask, has for each of the two windows what it has for the one in which the model combines both.

That nothing passes between them does not follow from geometry. It is tested: `mixing` changes the samples
that were brought in, and checks whether anything else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

import networkx as nx
import torch
from torch import Tensor

from overlap_tool.geometry import AT_ITS_PLACE, POINTWISE, Expand, Geometry, Pad, Shrink, roll
from overlap_tool.geometry.layout import COLUMNS, ROWS, Following
from overlap_tool.graph.network import Op, Shifted
from overlap_tool.rules.borders import filled
from overlap_tool.rules.placing import placed, placing

AXES = ROWS, COLUMNS


def fill_up(graph: nx.DiGraph, results: tuple[str, ...]) -> tuple[Shifted, ...]:
    """Replace the rolls of shifted windows in a network's graph by pads and crops."""
    found = tuple(pair for pair in _pairs(graph) if not {*results} & {*pair.inside})
    for pair in found:
        blocks = _blocks(graph, pair)
        amounts = zip(_rolled_by(pair.roll), _windows(blocks), strict=True)
        (down, above), (across, left) = (_filling(amount, window) for amount, window in amounts)
        for op, rows, columns in ((pair.roll, down, across), (pair.back, _undone(down), _undone(across))):
            graph.nodes[op.id]["op"] = replace(op, rule=filled(op.layout, rows, columns))
        for id in pair.inside:
            op = graph.nodes[id]["op"]
            if op.target is placed:
                rows_in_one, columns_in_one = blocks[id]
                begins = int(above / rows_in_one), int(left / columns_in_one)
                _, like, own, spread, size = op.args
                graph.nodes[id]["op"] = replace(op, rule=placing(like.layout, own, spread, size, begins))
    return found


def _filling(amount: int, window: int) -> tuple[Pad, int]:
    """The padding that replaces a roll, and how many of its rows precede the rolled map's first row."""
    if amount < 0:
        return Pad(window + amount, -amount), window
    return (Pad(amount, window - amount), 0) if amount else (Pad(), 0)


def _undone(pad: Pad) -> Pad:
    return Pad(-pad.before, -pad.after)


def _rolled_by(op: Op) -> tuple[int, int]:
    """The rows and columns by which an op rolls; a circular pad is not a roll, since it keeps both copies."""
    rows, columns = (
        geometry.before if isinstance(geometry, Pad) and geometry == roll(geometry.before) else 0
        for geometry in (op.rule.rows, op.rule.columns)
    )
    return rows, columns


def _pairs(graph: nx.DiGraph) -> Iterator[Shifted]:
    """Rolls, and those that undo them.

    Everything computed from a rolled map is rolled back, and everything between depends on that map alone,
    position by position or window by window.
    """
    rolls = [
        op
        for op in nx.get_node_attributes(graph, "op").values()
        if isinstance(op, Op) and any(_rolled_by(op))
    ]
    undone: set[str] = set()
    for first in rolls:
        if first.id in undone:
            continue
        after = nx.descendants(graph, first.id)
        opposite = tuple(-amount for amount in _rolled_by(first))
        back = next((op for op in rolls if op.id in after and _rolled_by(op) == opposite), None)
        if back is None:
            continue
        between = after & nx.ancestors(graph, back.id)
        inside = (first.id, *(id for id in graph if id in between))
        pair = Shifted(first, back, inside)
        alone = all({*graph.successors(id)} <= {*between, back.id} for id in inside)
        if alone and all(_stays_inside(graph, id, inside) for id in between) and _fits(graph, pair):
            undone.add(back.id)
            yield pair


def _stays_inside(graph: nx.DiGraph, id: str, inside: tuple[str, ...]) -> bool:
    op = graph.nodes[id]["op"]
    if not isinstance(op, Op):
        return False
    geometries = op.rule.rows, op.rule.columns
    return {*op.inputs} <= {*inside} and all(_block(each) is not None for each in geometries)


def _block(geometry: Geometry) -> Fraction | None:
    """How many rows become one, for an op that cuts them in windows or joins these."""
    if isinstance(geometry, Shrink):
        return Fraction(geometry.factor)
    if isinstance(geometry, Expand):
        return Fraction(1, geometry.factor)
    return Fraction(1) if geometry in (POINTWISE, AT_ITS_PLACE) else None


def _blocks(graph: nx.DiGraph, pair: Shifted) -> dict[str, tuple[Fraction, Fraction]]:
    """For every op on the rolled map, how many of its rows and columns one position of that op covers."""
    made = {pair.roll.id: (Fraction(1), Fraction(1))}
    for id in pair.inside[1:]:
        op = graph.nodes[id]["op"]
        rows, columns = made[op.inputs[0]]
        made[id] = rows * (_block(op.rule.rows) or 1), columns * (_block(op.rule.columns) or 1)
    return made


def _fits(graph: nx.DiGraph, pair: Shifted) -> bool:
    """Whether the roll is by less than a window that all other blocks fit in."""
    blocks = _blocks(graph, pair)
    ends = [blocks[id] for id in pair.inside if pair.back.id in graph.successors(id)]
    axes = zip(_rolled_by(pair.roll), _windows(blocks), zip(*blocks.values(), strict=True), strict=True)
    return all(rows == columns == 1 for rows, columns in ends) and all(
        abs(amount) < window and all((window / block).denominator == 1 for block in own)
        for amount, window, own in axes
    )


def _windows(blocks: dict[str, tuple[Fraction, Fraction]]) -> tuple[int, int]:
    rows, columns = (int(max(each)) for each in zip(*blocks.values(), strict=True))
    return rows, columns


def mixing(pair: Shifted, rolled: Tensor, again: Callable[[Tensor], Tensor]) -> bool:
    """Whether anything passes between the samples that a roll brought in and the rest.

    `again` computes the model's result after the roll back, for another `rolled` map.
    """
    whole = again(rolled.clone())  # recomputed, like everything that it is compared with
    generator = torch.Generator().manual_seed(0)
    for axis, amount in zip(AXES, _rolled_by(pair.roll), strict=True):
        for which in (0, 1) if amount else ():
            changed = rolled.clone()
            part = _parts(changed, pair.roll, axis, amount)[which]
            part += torch.randn(part.shape, generator=generator).to(part) * rolled.std()
            # after rolling back, what was last comes first again
            own, found = (_parts(map, pair.back, axis, -amount)[which] for map in (whole, again(changed)))
            if not torch.equal(own, found):
                return True
    return False


def _parts(map: Tensor, op: Op, axis: Following, amount: int) -> tuple[Tensor, Tensor]:
    """The part of a rolled map that kept its order with the first sample, and the rest."""
    dim = op.layout.place_of(axis)
    assert dim is not None
    at = amount % map.shape[dim]
    return map.narrow(dim, at, map.shape[dim] - at), map.narrow(dim, 0, at)
