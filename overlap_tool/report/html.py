"""An analysis as a standalone page: graphs, the anatomy of a tile, costs, and the tables."""

from __future__ import annotations

from functools import partial

from overlap_tool import __version__
from overlap_tool.planning.analysis import Analysis, StageReport
from overlap_tool.report.maps import NOTHING, maps
from overlap_tool.report.page import PagePart, element, figure, page, table, titled
from overlap_tool.report.pictures.anatomy import anatomy, joins, passes
from overlap_tool.report.pictures.costs import costs
from overlap_tool.report.pictures.graph import graph
from overlap_tool.report.tables import (
    headline,
    in_units,
    layer_table,
    model_tables,
    segment_tables,
    tile_table,
)

FEW = 12
"""Pictures of joins shown at once; further ones are folded."""


def to_html(analysis: Analysis) -> str:
    parts: list[PagePart] = [
        element("h1", "", f"{analysis.architecture}: overlaps of its tiles"),
        element("p", "", headline(analysis)),
        element("p", "note", f"weights {analysis.weights_sha256[:16]}, overlap-tool {__version__}"),
        element(
            "nav",
            "",
            *(
                element("a", "", stage.name, href=f"#stage-{number}")
                for number, stage in enumerate(analysis.stages)
            ),
        ),
        *(part for each in model_tables(analysis) for part in titled(each)),
    ]
    block = next((reach.block for reach in analysis.causal), None)
    for number, stage in enumerate(analysis.stages):
        parts += _stage(number, stage, block)
    return page(f"{analysis.architecture}: overlaps", *parts)


def _stage(number: int, stage: StageReport, block: int | None) -> list[PagePart]:
    """The section of one stage; `block` is the side of a block in pixels, for a network of a closed loop."""
    status = element("span", "badge good" if stage.status == "proved" else "badge", stage.status)
    chosen = stage.chosen
    every = layer_table(stage, all_ops=True)
    spatial = layer_table(stage)
    return [
        element("h2", "", f"{stage.name} ", status, id=f"stage-{number}"),
        element("p", "", f"{_reading(stage)}{_aligned(stage)} The output has scale {stage.scale}."),
        None if block is None else element("p", "", _in_a_loop(block)),
        *(part for each in segment_tables(stage) for part in titled(each)),
        element("h3", "", "How the overlap grows, from the output up to the input"),
        figure(
            partial(graph, stage),
            "One line per map, in the order in which they are computed. Pointwise ops stand with the op that "
            "they follow. Numbers are samples of that map; lengths are to scale at the stage's input. "
            "A filled circle joins branches.",
        ),
        *_one_tile(stage),
        *_joins(stage),
        element("h3", "", "Memory and arithmetic against the size of a tile"),
        figure(
            partial(costs, stage),
            f"Marked is {'what wrap does' if block is None else 'one pass over all blocks'}: "
            f"{chosen.schedule}, tile {chosen.cost.tile}. Its maps take "
            f"{in_units(chosen.cost.peak_bytes)} at most; {in_units(chosen.bounded_bytes)} with the stage's "
            "whole input and output and the engine's copy of the weights. Batch 1, 32-bit floats.",
        ),
        *titled(tile_table(stage)),
        *titled(spatial),
        None
        if len(every.rows) == len(spatial.rows)
        else element("details", "", element("summary", "", f"All {len(every.rows)} ops"), table(every)),
    ]


def _in_a_loop(block: int) -> str:
    return (
        f"A sample is a block of {block}x{block} pixels. wrap goes block by block, since each is computed "
        "from the reconstruction of others; what follows is one pass of this network over all blocks."
    )


def _reading(stage: StageReport) -> str:
    edges = stage.overlap
    if edges is None:
        return (
            f"Every output depends on all of the input: {stage.passes} passes, with stores of "
            f"{in_units(stage.store_bytes)} at most between them. Overlaps are those inside each pass."
        )
    return (
        "Beyond its own part, a tile reads so many samples of the stage's input: "
        f"left {edges.left}, right {edges.right}, top {edges.top}, bottom {edges.bottom}."
    )


def _aligned(stage: StageReport) -> str:
    columns, rows = stage.period, stage.period_rows
    if columns == rows == 1:
        return ""
    multiple = columns if columns == rows else f"{columns} columns and {rows} rows"
    return f" This holds for tiles that start on a multiple of {multiple}."


def _one_tile(stage: StageReport) -> list[PagePart]:
    shown = figure(partial(anatomy, stage), "Dashed lines are where tiles meet.")
    if shown is None:
        shown = figure(partial(passes, stage), "In samples of the map that is read.")
    return [element("h3", "", "One tile"), shown]


def _joins(stage: StageReport) -> list[PagePart]:
    shown = figure(
        partial(joins, stage),
        "A branch is computed for all who read it. What a join does not take of it is cropped: "
        "on each side so many samples.",
    )
    if shown is None:
        return []
    cropped = sum(crop != NOTHING for row in maps(stage) for crop in row.crops if row.is_join)
    if cropped > FEW:
        shown = element("details", "", element("summary", "", f"All {cropped} branches"), shown)
    return [element("h3", "", "What joins crop"), shown]
