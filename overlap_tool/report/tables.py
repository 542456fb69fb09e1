"""The tables of an analysis as rows of text, for every output format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from overlap_tool.models.stages import Untiled
from overlap_tool.planning.analysis import Analysis, Edges, LayerReport, StageReport
from overlap_tool.planning.choose import Plans
from overlap_tool.settings import Size, told

WORDS = {
    *("stage", "network", "layer", "op", "status", "schedule", "image", "part", "why"),
    *("reads", "stores", "then", "check", "result", "tiling", "what", "run", "short of overlap"),
}
"""Headings of columns of words, which are left-aligned; all others are numbers."""


Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    title: str
    header: Row
    rows: tuple[Row, ...]


def by_number(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows of stages whose names count up, and which are otherwise equal, as one row: `slices.0 to 9`."""
    found: list[tuple[list[str], list[Row]]] = []
    for stage, of_stage in groupby(rows, key=lambda row: row[0]):
        cells = [row[1:] for row in of_stage]
        if found and found[-1][1] == cells and _follows(found[-1][0][-1], stage):
            found[-1][0].append(stage)
        else:
            found.append(([stage], cells))
    return tuple(
        (stages[0] if len(stages) == 1 else f"{stages[0]} to {_numbered(stages[-1])[1]}", *row)
        for stages, cells in found
        for row in cells
    )


def _follows(stage: str, next: str) -> bool:
    (stem, number), (other, following) = _numbered(stage), _numbered(next)
    return stem == other and "" not in (number, following) and int(number) + 1 == int(following)


def _numbered(stage: str) -> tuple[str, str]:
    """A name without the number at its end, and that number."""
    stem = re.sub(r"\d+$", "", stage)
    return stem, stage.removeprefix(stem)


def tables(analysis: Analysis, all_ops: bool = False) -> list[Table]:
    """All tables of a report, in reading order."""
    of_stages = (
        table
        for stage in analysis.stages
        for table in (*segment_tables(stage), layer_table(stage, all_ops), tile_table(stage))
    )
    return [*model_tables(analysis), *of_stages]


def model_tables(analysis: Analysis) -> list[Table]:
    """The tables about the model as a whole."""
    return [stage_table(analysis), *causal_tables(analysis), *untiled_tables(analysis.untiled)]


def stage_table(analysis: Analysis) -> Table:
    return Table(
        "Overlap of a tile, in samples of the stage's input",
        ("stage", "scale", "left/right", "top/bottom", "receptive field", "period", "padding-free", "status"),
        by_number(
            (
                stage.name,
                str(stage.scale),
                "global" if stage.overlap is None else f"{stage.left}/{stage.right}",
                "global" if stage.overlap is None else f"{stage.top}/{stage.bottom}",
                _field(stage),
                str(stage.period),
                "-" if stage.padding_free_overlap is None else str(stage.padding_free_overlap),
                stage.status if stage.holds_for == "any size" else f"{stage.status} for {stage.holds_for}",
            )
            for stage in analysis.stages
        ),
    )


def untiled_tables(untiled: Sequence[Untiled]) -> list[Table]:
    """One table, or none if every part is in a stage."""
    rows = tuple((part.name, part.reason) for part in untiled)
    title = "Parts that stay whole, run by the model's own code"
    return [Table(title, ("part", "why"), rows)] if rows else []


def segment_tables(stage: StageReport) -> list[Table]:
    """For a stage with barriers: what each pass reads, and what it stores."""
    if stage.passes == 1:
        return []

    def short(name: str) -> str:
        return name.removeprefix(f"{stage.name}.")

    return [
        Table(
            f"{stage.name}: {stage.passes} passes, one after every barrier, and stores of "
            f"{in_units(stage.store_bytes)} at most; overlap of a tile, in samples of the map that it reads",
            ("pass", "reads", "scale", "left/right", "top/bottom", "stores", "then", "all stores"),
            tuple(
                (
                    str(number),
                    "\n".join(short(read.name) for read in segment.reads),
                    "\n".join(str(read.scale) for read in segment.reads),
                    "\n".join(f"{read.left}/{read.right}" for read in segment.reads),
                    "\n".join(f"{read.top}/{read.bottom}" for read in segment.reads),
                    "\n".join(f"{short(store.name)} {in_units(store.bytes)}" for store in segment.stores),
                    "\n".join(
                        (
                            *map(short, segment.barriers),
                            *(
                                f"{short(part)}, whole, in {in_units(taken)}"
                                for part, taken in zip(segment.kept_whole, segment.whole_bytes, strict=True)
                            ),
                        )
                    ),
                    in_units(segment.store_bytes),
                )
                for number, segment in enumerate(stage.segments)
            ),
        )
    ]


def causal_tables(analysis: Analysis) -> list[Table]:
    """One table, or none if the model is not a closed loop."""
    rows = tuple(
        (
            reach.network,
            f"{reach.block}x{reach.block}",
            str(reach.left),
            str(reach.right),
            str(reach.up),
            ", ".join(str(reach.block * blocks) for blocks in (reach.left, reach.right, reach.up)),
            f"{reach.behind} blocks",
        )
        for reach in analysis.causal
    )
    title = "Closed loop: the reconstructed blocks that a block is computed from"
    head = ("network", "block", "left", "right, above", "up", "left, right, up in pixels", "row behind row")
    return [Table(title, head, rows)] if rows else []


def layer_table(stage: StageReport, all_ops: bool = False) -> Table:
    """The ops with spatial context, or all of them."""
    layers = [layer for layer in stage.layers if all_ops or not layer.pointwise]
    hidden = len(stage.layers) - len(layers)
    return Table(
        f"{stage.name}: overlap at each layer's input, accumulated from "
        + ("the stage's output" if stage.passes == 1 else "what its pass gives")
        + (f" ({hidden} pointwise ops not shown)" if hidden else ""),
        (
            *("layer", "op", "kernel", "stride", "scale", "left/right", "top/bottom"),
            *("exact", "reaches", "field", "period", "MACs"),
        ),
        tuple(
            (
                layer.name,
                layer.op,
                _pair(layer.kernel),
                _pair(layer.stride),
                str(layer.scale),
                f"{layer.left}/{layer.right}",
                f"{layer.top}/{layer.bottom}",
                _exact(layer),
                _edges(layer.reach),
                _field(layer),
                str(layer.period),
                count(layer.macs) if layer.macs else "",
            )
            for layer in layers
        ),
    )


def tile_table(stage: StageReport) -> Table:
    return Table(
        f"{stage.name}: tiles that recompute their halo, beside the full image",
        ("tile", "tiles", "peak memory", "of full", "MACs", "overhead"),
        (
            *(
                (
                    str(tile.tile),
                    str(tile.count),
                    in_units(tile.peak_bytes),
                    f"{tile.peak_bytes / stage.full_peak_bytes:.1%}",
                    count(tile.macs),
                    f"{tile.overhead:.3f}",
                )
                for tile in stage.tiles
            ),
            ("full", "1", in_units(stage.full_peak_bytes), "100%", count(stage.full_macs), "1.000"),
        ),
    )


def plan_table(architecture: str, plans: Plans) -> Table:
    barriers = any(plan.passes > 1 for plan in plans.values())
    return Table(
        f"{architecture} tile by tile, for {told(plans.size, plans.depth)}",
        (
            *("stage", "schedule", "tile"),
            *(("passes", "stores") if barriers else ()),
            *("tiles", "working memory", "with input and output", "MACs"),
        ),
        tuple(
            (
                name,
                f"{plan.schedule}, uniform" if plan.uniform else plan.schedule,
                str(plan.tile),
                *((str(plan.passes), in_units(plan.store_bytes)) if barriers else ()),
                str(plan.tiles),
                in_units(plan.working_bytes),
                in_units(plan.peak_bytes),
                count(plan.macs),
            )
            for name, plan in plans.items()
        ),
    )


def headline(analysis: Analysis) -> str:
    arguments = ", ".join(f"{key}={value}" for key, value in analysis.arguments.items())
    image = told(analysis.image, analysis.depth)
    padded = "" if analysis.padded == analysis.image else f", padded to {analysis.padded}"
    called = f", called by {analysis.call}" if analysis.call else ""
    return f"{analysis.architecture}({arguments}){called}, {image}{padded}"


def in_units(n: int) -> str:
    """Bytes in binary units."""
    return _in_units(n, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def count(n: int) -> str:
    """A large number in decimal units."""
    return _in_units(n, 1000, ("", "k", "M", "G", "T"))


def _in_units(n: int, step: int, units: tuple[str, ...]) -> str:
    power = 0
    while abs(n) >= step ** (power + 1) and power + 1 < len(units):
        power += 1
    return f"{n / step**power:.4g}{units[power]}"


def _pair(value: Size | None) -> str:
    if value is None:
        return ""
    return str(value.width) if value.width == value.height else str(value)


def _edges(edges: Edges) -> str:
    sides = f"{edges.left}/{edges.right}"
    ends = f"{edges.top}/{edges.bottom}"
    return sides if sides == ends else f"{sides} {ends}"


def _exact(layer: LayerReport) -> str:
    """The exact overlap, if the published recursion gives another one."""
    published = Edges(layer.left, layer.right, layer.top, layer.bottom)
    return "" if layer.exact == published else _edges(layer.exact)


def _field(report: StageReport | LayerReport) -> str:
    across, down = report.receptive_field, report.receptive_field_rows
    if across is None:
        return "global"
    return str(across) if across == down else f"{across}x{down}"
