"""What barriers sum up of a map in pieces, by workers.

A barrier sums every row first, as a tree of neighbours, and then the rows. The part of a row in a piece
consists of a few whole nodes of that tree, wherever the piece begins: workers compute these, and the process
that started the run sums up the rest, a number for every row. So no bit depends on the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from overlap_tool.distributed.cluster import OnWorkers
from overlap_tool.distributed.passes import Sent
from overlap_tool.distributed.pieces import SIDE, edges, grid
from overlap_tool.distributed.reading import MapInPieces
from overlap_tool.geometry import Span
from overlap_tool.geometry.plan import cut
from overlap_tool.geometry.walk import Area
from overlap_tool.kernels import pieces
from overlap_tool.rules import engine
from overlap_tool.rules.barriers import Tree, whole_nodes
from overlap_tool.runtime.passes import Banded
from overlap_tool.runtime.stores import Source
from overlap_tool.settings import Engine

Nodes = list[list[tuple[int, Tensor]]]
"""For each span of columns, nodes of the trees over its rows: the columns that each sums up, and its
values."""


@dataclass(frozen=True)
class SummedByWorkers(Banded):
    """A map as a barrier reads it, with rows summed up where its pieces are."""

    client: Any
    window: Sent
    engine: Engine

    def within_rows(
        self, step: str, columns: Sequence[Span], transform: Callable[[Tensor], Tensor] = lambda band: band
    ) -> Iterator[Tensor]:
        height, width = self.cut.height, self.cut.width
        areas = (
            [area for area in self.window.areas if area.size]
            if isinstance(self.window, MapInPieces)
            else grid(edges(Span(0, height), SIDE), edges(Span(0, width), SIDE))
        )
        sums = RowSums(self.window, step, tuple(columns), transform, self.cut.at_once, self.engine)
        adding: OnWorkers[Area, Nodes] = OnWorkers(self.client, sums.of, lambda area: (area,))
        summed = zip(areas, adding.in_order(areas), strict=True)
        for _, beside in groupby(summed, lambda piece: piece[0].rows):
            trees = [Tree(step, -1) for _ in columns]
            for _, found in beside:
                for tree, nodes in zip(trees, found, strict=True):
                    for size, node in nodes:
                        tree.add_node(size, node)
            yield torch.cat([tree.total() for tree in trees], -1)


@dataclass(frozen=True)
class RowSums:
    """The sums that workers compute of a map's rows."""

    window: Sent
    step: str
    columns: tuple[Span, ...]
    transform: Callable[[Tensor], Tensor]
    at_once: int
    engine: Engine

    def of(self, area: Area) -> Nodes:
        """On a worker: for each span of columns, the nodes of every row that lie in an area."""
        source = self.window.opened(area)
        bands = [
            span.shift(area.rows.start)
            for span in cut(area.rows.length, max(1, self.at_once // max(1, area.columns.length)))
        ]
        with torch.no_grad(), engine(self.engine), pieces():
            found = [self._summed(source, Area(band, area.columns)) for band in bands]
        return [
            [
                (node.length, torch.cat([nodes[i][j] for nodes in found], -2))
                for j, node in enumerate(self._nodes(area, span))
            ]
            for i, span in enumerate(self.columns)
        ]

    def _nodes(self, area: Area, span: Span) -> list[Span]:
        """The nodes of the tree over a span of columns that lie in an area, by their places in the span."""
        inside = area.columns.within(span)
        return [] if inside.empty else whole_nodes(inside.shift(-span.start))

    def _summed(self, source: Source, band: Area) -> list[list[Tensor]]:
        values = self.transform(source.read(*band))

        def total(node: Span, span: Span) -> Tensor:
            part = values[..., slice(*node.shift(span.start - band.columns.start))]
            made: Tensor = getattr(part, self.step)(-1, keepdim=True)
            return made

        return [[total(node, span) for node in self._nodes(band, span)] for span in self.columns]
