"""Multiply-accumulates, counted as they run: `stream` spends those of the full image, to the last one, and
the figures that `analyze` reports are the counted ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Any

import pytest
import torch
from compressai.layers import MaskedConv2d
from support.counting import Counter, counted
from support.networks import PlainCnn
from support.one_pass import execute
from support.small_models import small_model, small_survey
from support.swin import SwinAttention
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from overlap_tool import analyze
from overlap_tool.geometry.plan import AxisPlan, cut, stream, tiles, uniform
from overlap_tool.graph.trace import fitted, trace
from overlap_tool.models.stages import Stage
from overlap_tool.planning.cost import macs, op_costs, peak_macs
from overlap_tool.runtime.stores import TensorSink, TensorSource

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = [(1, 64, 64), (2, 33, 51)]
"""Images, and the height and width of the larger of a stage's input and output."""


Planner = Callable[..., AxisPlan]


def plans(stage: Stage, x: Tensor, planner: Planner, tile: int | None = None) -> tuple[AxisPlan, AxisPlan]:
    """Row and column plans for tiles of so many samples of the stage's input; else, two on either axis."""
    network = stage.network
    result = []
    for axis, n in ((network.rows, x.shape[-2]), (network.columns, x.shape[-1])):
        size = axis.sizes(n)[-1]
        side = -(-size * 3 // 5) if tile is None else max(1, int(tile * axis.reaches()[-1].scale))
        result.append(planner(axis, n, cut(size, side)))
    return result[0], result[1]


def run(stage: Stage, x: Tensor, of_rows: AxisPlan, of_columns: AxisPlan) -> None:
    sink = TensorSink(of_rows.sizes[-1], of_columns.sizes[-1])
    execute(stage.network, of_rows, of_columns, TensorSource(x, x.device), sink)


def image(stage: Stage, height: int, width: int, images: int = 1) -> Tensor:
    return torch.rand(images, stage.network.ops[0].channels, height, width)


def reads_everything(plan: AxisPlan) -> bool:
    return plan.computed == plan.sizes


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_stream_executes_the_full_images_multiply_accumulates(architecture, size, monkeypatch):
    for stage in small_survey(architecture).stages:
        larger = max(1, stage.network.rows.reaches()[-1].scale)
        x = image(stage, *(ceil(n / larger) for n in size[1:]), images=size[0])
        rows, columns = plans(stage, x, stream)
        assert min(len(rows.steps), len(columns.steps)) > 1, "not in tiles"
        # the module computes all of every map: what its last rows are not read for is no loss of ours
        assert reads_everything(rows), stage.name
        assert reads_everything(columns), stage.name
        with counted(monkeypatch, gdn=True) as full:
            stage.module(x)
        with counted(monkeypatch, gdn=True) as streamed:
            run(stage, x, rows, columns)
        assert full.open_macs > 0
        assert streamed.open_macs == full.open_macs, stage.name
        if not has_mask(stage):
            assert streamed.macs == full.macs == full.open_macs, stage.name


def has_mask(stage: Stage) -> bool:
    """Whether some of its taps are masked, which the module multiplies by zero and the tiles leave out."""
    return any(isinstance(module, MaskedConv2d) for module in stage.module.modules())


def test_the_reported_figures_are_the_counted_ones(architecture, monkeypatch):
    """For an image of 128x64 pixels, in tiles of 64; normalisations count as none by convention."""
    report = analyze(small_model(architecture), size=(128, 64), tiles=[64])
    stages = {stage.name: stage for stage in small_survey(architecture).stages}
    assert [of.name for of in report.stages] == list(stages)
    for of in report.stages:
        stage, (width, height) = stages[of.name], report.padded
        x = image(stage, int(height * of.input_scale), int(width * of.input_scale))
        with counted(monkeypatch, gdn=False) as full:
            stage.module(x)
        assert full.macs == of.full_macs > 0, of.name
        with counted(monkeypatch, gdn=False) as tiled:
            run(stage, x, *plans(stage, x, tiles, int(64 * of.input_scale)))
        assert whole_kernels(stage, tiled) == of.tiles[0].macs, of.name


@pytest.mark.parametrize("planner", [stream, tiles])
def test_the_most_expensive_tile_is_the_predicted_one(planner, monkeypatch):
    stage = small_survey("cheng2020-anchor").stages[0]
    x = image(stage, 150, 100)
    rows, columns = plans(stage, x, planner, 32)
    sink = TensorSink(rows.sizes[-1], columns.sizes[-1])
    done = [0]
    with counted(monkeypatch, gdn=False) as counter:
        source = TensorSource(x, x.device)
        execute(stage.network, rows, columns, source, sink, after_tile=lambda: done.append(counter.macs))
    of_tiles = [after - before for before, after in pairwise(done)]
    assert len(of_tiles) == len(rows.steps) * len(columns.steps) > 9
    assert len(set(of_tiles)) > 3
    assert max(of_tiles) == peak_macs(op_costs(stage.network), rows, columns)


@pytest.mark.parametrize("name", ["mbt2018", "elic2022-official"])
def test_uniform_tiles_execute_what_is_predicted(name, monkeypatch):
    """The whole of every tile, also where it goes beyond the image."""
    for stage in small_survey(name).stages:
        network = stage.network
        larger = max(1, network.rows.reaches()[-1].scale)
        x = image(stage, ceil(80 / larger), ceil(48 / larger))
        rows, columns = plans(stage, x, lambda axis, n, cuts: uniform(axis, n, cuts[0].length))
        with counted(monkeypatch, gdn=False) as executed:
            run(stage, x, rows, columns)
        assert whole_kernels(stage, executed) == macs(op_costs(network), rows, columns) > 0, stage.name


def whole_kernels(stage: Stage, counter: Counter) -> int:
    """As if every tap that is masked were multiplied, too: so they are reported."""
    if not has_mask(stage):
        return counter.macs
    (masked,) = (module for module in stage.module.modules() if isinstance(module, MaskedConv2d))
    taps = masked.weight.shape[2] * masked.weight.shape[3]
    return sum(conv.positions * conv.per_tap * taps for conv in counter.executed)


def test_a_network_with_a_skip_and_a_transposed_convolution(monkeypatch):
    module = PlainCnn().eval()
    stage = Stage("", copy.deepcopy(module), trace(module, "", 1), Fraction(1))
    x = torch.rand(3, 1, 34, 50)
    with counted(monkeypatch, gdn=True) as full:
        stage.module(x)
    # by hand: head and body at full and half size, the strided one and the transposed one, batch of three
    half = 17 * 25
    assert full.macs == 3 * (34 * 50 * 4 * 9 + half * 16 * 16 + half * 16 * 9 + 34 * 50 * 16 * 4)
    for tile in (5, 16, 100):
        with counted(monkeypatch, gdn=True) as streamed:
            run(stage, x, *plans(stage, x, stream, tile))
        assert streamed.macs == full.macs


class ProductCounter(TorchDispatchMode):
    """Counts the products of matrices, which is all that attention computes with."""

    macs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm):
            self.macs += result.numel() * args[0].shape[-1]
        elif func.overloadpacket in (torch.ops.aten.addmm, torch.ops.aten.baddbmm):
            self.macs += result.numel() * args[1].shape[-1]
        return result


@pytest.mark.parametrize("tile", [3, 8, 16, 100])
def test_a_stream_computes_every_window_once(tile):
    """Plain and shifted windows, and a convolution whose outputs ask for parts of them."""
    module = nn.Sequential(
        SwinAttention(6, 2, 4, 0), nn.Conv2d(6, 6, 3, padding=1), SwinAttention(6, 3, 4, 2)
    ).eval()
    network = fitted(trace(module, "", 6), 2, 32, 40)
    stage = Stage("", module, network, Fraction(1))
    x = torch.rand(2, 6, 32, 40)
    with torch.no_grad(), ProductCounter() as full:
        module(x)
    # by hand: four projections, and sixteen keys for each query, twice; of two attentions
    per_position = 4 * 6 * 6 + 2 * 16 * 6
    assert full.macs == 2 * 32 * 40 * 2 * per_position
    rows, columns = plans(stage, x, stream, tile)
    with ProductCounter() as streamed:
        run(stage, x, rows, columns)
    # of shifted windows each border has its own: one more of them on either axis
    assert streamed.macs == 2 * (32 * 40 + 36 * 44) * per_position
    reported = sum(
        op.rule.macs * high * wide
        for op, high, wide in zip(network.ops[1:], rows.computed[1:], columns.computed[1:], strict=True)
    )
    assert reported == streamed.macs // 2 + 32 * 40 * 6 * 6 * 9


def test_tiles_execute_more_than_the_full_image(monkeypatch):
    stage = small_survey("mbt2018").stages[0]
    x = image(stage, 128, 128)
    with counted(monkeypatch, gdn=True) as full:
        stage.module(x)
    with counted(monkeypatch, gdn=True) as tiled:
        run(stage, x, *plans(stage, x, tiles, 40))
    assert tiled.macs > 1.2 * full.macs
