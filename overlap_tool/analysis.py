"""What is known of a model before it runs: overlaps, receptive fields, phases, arithmetic and memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

from torch import nn

from overlap_tool import checkpoint
from overlap_tool.axis import Axis, exact_overlap
from overlap_tool.errors import OptionError
from overlap_tool.geometry import Overlap, Span, padding_free_overlap
from overlap_tool.network import Input, Network, Op
from overlap_tool.schedule.choose import Schedule, Settings, Shape, parse_bytes, plan_stage
from overlap_tool.schedule.cost import full_bytes, macs, op_costs, working_bytes
from overlap_tool.schedule.plan import AxisPlan, cut, stream, tiles, whole
from overlap_tool.stages import Stage, Untiled, survey

SCHEMA = 1
IMAGE = (3840, 2160)
TILES = (128, 256, 512, 1024)
CHOSEN = Settings(tile=(256, 256))
"""What `wrap` does unless it is told otherwise."""


@dataclass(frozen=True)
class Edges:
    """Samples beyond a tile's own, on its four sides."""

    left: int
    right: int
    top: int
    bottom: int

    @staticmethod
    def of(rows: Overlap, columns: Overlap) -> Edges:
        return Edges(columns.before, columns.after, rows.before, rows.after)


@dataclass(frozen=True)
class LayerReport:
    """One op of a stage.

    `left` to `bottom` are the published recursion: the overlap at this op's input that an aligned tile of the
    stage's output asks for. `exact` is the same by the op's own map; `reach` the overlap at the stage's input
    that a tile of this op's output asks for.
    """

    name: str
    op: str
    kernel: tuple[int, int] | None
    stride: tuple[int, int] | None
    scale: Fraction
    left: int
    right: int
    top: int
    bottom: int
    exact: Edges
    reach: Edges
    receptive_field: int
    receptive_field_rows: int
    period: int
    channels: int
    macs: int
    pointwise: bool
    inputs: tuple[str, ...]
    """The layers that feed it; the stage's own name stands for its input."""


@dataclass(frozen=True)
class TileReport:
    """What tiles of one size cost under one schedule. `tile` is in pixels of the image."""

    tile: int
    count: int
    peak_bytes: int
    macs: int
    overhead: float


@dataclass(frozen=True)
class Choice:
    """How `wrap` runs a stage, by default or within a bound on memory.

    `cost` counts as for any other tile. `bounded_bytes` is what `wrap --memory` bounds: with the stage's
    whole input and output, and the copy of the weights that the exact engine reads.
    """

    schedule: Schedule
    cost: TileReport
    bounded_bytes: int


@dataclass(frozen=True)
class StageReport:
    """One stage. Overlaps are in samples of its input, for a tile aligned to `period`."""

    name: str
    input_scale: Fraction
    scale: Fraction
    left: int
    right: int
    top: int
    bottom: int
    receptive_field: int
    receptive_field_rows: int
    period: int
    period_rows: int
    padding_free_overlap: int | None
    status: str
    full_macs: int
    full_peak_bytes: int
    layers: tuple[LayerReport, ...]
    tiles: tuple[TileReport, ...]
    """Independent tiles, each of which recomputes its halo."""
    streams: tuple[TileReport, ...]
    """Tiles in order, which compute nothing twice."""
    chosen: Choice


@dataclass(frozen=True)
class Analysis:
    """What `overlap-tool analyze` reports. `padded` is the image brought to a size that the model accepts."""

    architecture: str
    arguments: Mapping[str, Any]
    weights_sha256: str
    image: tuple[int, int]
    padded: tuple[int, int]
    stages: tuple[StageReport, ...]
    untiled: tuple[Untiled, ...] = ()
    """Parts that stay whole, and why: their maps are not in any stage's figures."""


def analyze(
    model: nn.Module | str | os.PathLike[str],
    *,
    size: tuple[int, int] = IMAGE,
    tiles: Sequence[int] = TILES,
    memory: int | str | None = None,
    stage: str | None = None,
    architecture: str | None = None,
    model_class: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> Analysis:
    """Overlaps, phases, arithmetic and memory of a model, layer by layer.

    `model` is a module, the path of a checkpoint, or `zoo:NAME`. `size` is the image's width and height, and
    `tiles` are in pixels of the image. `memory` ("2GiB", or bytes) is what a chosen tile has to stay within.
    """
    if min(size) < 1:
        raise OptionError(
            f"--size {size[0]}x{size[1]}", "is not the size of an image", "Use two numbers from 1"
        )
    if any(tile < 1 for tile in tiles):
        raise OptionError(f"tiles {list(tiles)}", "a tile is at least one pixel", "Use numbers from 1")
    chosen = (
        CHOSEN
        if memory is None
        else Settings(memory=parse_bytes(memory) if isinstance(memory, str) else memory)
    )
    if isinstance(model, nn.Module):
        sha256 = checkpoint.hash_weights(model.state_dict())
        loaded = checkpoint.Loaded(model, type(model).__qualname__, {}, sha256, "")
    else:
        loaded = checkpoint.load(
            model, architecture=architecture, model_class=model_class, kwargs=kwargs, trust=trust
        )
    found = survey(loaded.model, only=stage)
    padded = tuple(ceil(side / found.multiple) * found.multiple for side in size)
    return Analysis(
        architecture=loaded.architecture,
        arguments=dict(loaded.arguments),
        weights_sha256=loaded.weights_sha256,
        image=size,
        padded=(padded[0], padded[1]),
        stages=tuple(_stage_report(part, (padded[0], padded[1]), tiles, chosen) for part in found.stages),
        untiled=found.untiled,
    )


def _stage_report(
    stage: Stage, image: tuple[int, int], tile_sides: Sequence[int], chosen: Settings
) -> StageReport:
    network = stage.network
    rows, columns = network.rows.reaches()[-1], network.columns.reaches()[-1]
    edges = Edges.of(rows.overlap, columns.overlap)
    height, width = (ceil(side * stage.input_scale) for side in (image[1], image[0]))
    costs = op_costs(network)
    full = whole(network.rows, height), whole(network.columns, width)
    full_macs = macs(costs, *full)
    down = 1 / columns.scale
    return StageReport(
        name=stage.name or type(stage.module).__name__,
        input_scale=stage.input_scale,
        scale=columns.scale,
        left=edges.left,
        right=edges.right,
        top=edges.top,
        bottom=edges.bottom,
        receptive_field=columns.receptive_field,
        receptive_field_rows=rows.receptive_field,
        period=columns.period.input,
        period_rows=rows.period.input,
        padding_free_overlap=(
            padding_free_overlap(columns.receptive_field, int(down)) if down.denominator == 1 else None
        ),
        status="proved" if all(op.rule.proved for op in network.ops if isinstance(op, Op)) else "probed",
        full_macs=full_macs,
        full_peak_bytes=full_bytes(costs, *full),
        layers=_layer_reports(network, full[0].sizes, full[1].sizes),
        tiles=tuple(_tile_report(stage, tiles, height, width, tile, full_macs) for tile in tile_sides),
        streams=tuple(_tile_report(stage, stream, height, width, tile, full_macs) for tile in tile_sides),
        chosen=_choice(stage, height, width, full_macs, chosen),
    )


def _tile_report(
    stage: Stage,
    planner: Callable[[Axis, int, Sequence[Span]], AxisPlan],
    height: int,
    width: int,
    tile: int,
    full_macs: int,
) -> TileReport:
    network = stage.network
    rows, columns = (
        planner(axis, n, cut(axis.sizes(n)[-1], _tile_of_output(axis, stage.input_scale, tile)))
        for axis, n in ((network.rows, height), (network.columns, width))
    )
    costs = op_costs(network)
    total = macs(costs, rows, columns)
    return TileReport(
        tile=tile,
        count=len(rows.steps) * len(columns.steps),
        peak_bytes=working_bytes(costs, rows, columns),
        macs=total,
        overhead=total / full_macs if full_macs else 1.0,
    )


def _choice(stage: Stage, height: int, width: int, full_macs: int, settings: Settings) -> Choice:
    name = stage.name or type(stage.module).__name__
    plan = plan_stage(name, stage.network, stage.input_scale, Shape(1, height, width), settings)
    planner = stream if plan.schedule == "stream" else tiles
    cost = _tile_report(stage, planner, height, width, plan.tile[0], full_macs)
    return Choice(plan.schedule, cost, plan.peak_bytes)


def _tile_of_output(axis: Axis, input_scale: Fraction, tile: int) -> int:
    """A tile of the image in samples of the stage's output; at least one."""
    return max(1, int(tile * input_scale * axis.scale))


def _layer_reports(
    network: Network, heights: Sequence[int], widths: Sequence[int]
) -> tuple[LayerReport, ...]:
    rows, columns = network.rows, network.columns
    row_reaches, column_reaches = rows.reaches(), columns.reaches()
    published = list(zip(rows.published_overlaps(), columns.published_overlaps(), strict=True))
    asked = list(zip(rows.overlaps(), columns.overlaps(), strict=True))
    names = {op.id: op.name for op in network.ops}
    reports = []
    for i, op in enumerate(network.ops):
        if isinstance(op, Input):
            continue
        edges = Edges.of(*published[i])
        reports.append(
            LayerReport(
                name=op.name,
                op=op.kind,
                kernel=op.rule.kernel,
                stride=op.rule.stride,
                scale=column_reaches[i].scale,
                left=edges.left,
                right=edges.right,
                top=edges.top,
                bottom=edges.bottom,
                exact=Edges.of(
                    exact_overlap(op.rule.rows, asked[i][0]), exact_overlap(op.rule.columns, asked[i][1])
                ),
                reach=Edges.of(row_reaches[i].overlap, column_reaches[i].overlap),
                receptive_field=column_reaches[i].receptive_field,
                receptive_field_rows=row_reaches[i].receptive_field,
                period=column_reaches[i].period.input,
                channels=op.channels,
                macs=op.rule.macs * heights[i] * widths[i],
                pointwise=op.rule.local,
                inputs=tuple(names[source] for source in op.inputs),
            )
        )
    return tuple(reports)
