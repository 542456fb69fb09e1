"""Volumes: tiles of rows and columns, all of the depth in each, with the bits of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import overlap_tool
from overlap_tool import exact_kernels
from overlap_tool.errors import OptionError, UnknownOpError
from overlap_tool.graph.tracer import DEPTH
from overlap_tool.planning.choose import Shape
from overlap_tool.planning.live_bytes import LiveBytes
from overlap_tool.wrapping.retrofit import tiled_stages


class Layers(nn.Module):
    """Every layer for volumes that has a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.figures = nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4)
        self.down, self.norm = nn.Conv3d(4, 8, 3, stride=2, padding=1), nn.InstanceNorm3d(8)
        self.mirrored = nn.Conv3d(8, 8, 3, dilation=2, padding=2, padding_mode="reflect", groups=2)
        self.up, self.groups = nn.ConvTranspose3d(8, 4, 3, 2, 1, output_padding=1), nn.GroupNorm(2, 4)
        self.pool, self.around = nn.MaxPool3d(2), nn.ReplicationPad3d((1, 2, 0, 1, 1, 1))
        self.even = nn.Conv3d(4, 2, 2, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.down(F.elu(self.figures(self.first(x)))))
        y = self.groups(self.up(self.mirrored(y.tanh() * y.sigmoid())))
        y = self.pool(self.around(y))
        y = F.interpolate(y, scale_factor=2, mode="trilinear")
        return self.even(F.avg_pool3d(F.interpolate(y, scale_factor=2), 2))


class Skips(nn.Module):
    """A U-Net that pads what it joins, as volumes of odd sizes ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 8, 3, 2, 1)
        self.up, self.last = nn.ConvTranspose3d(8, 4, 2, 2), nn.Conv3d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x).relu()
        up = self.up(self.down(first).relu())
        missing = [n for dim in (4, 3, 2) for n in (0, first.shape[dim] - up.shape[dim])]
        return self.last(torch.cat([F.pad(up, missing), first], 1))


class Excited(nn.Module):
    """Attention to channels by the mean of a volume."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 2, 3, padding=1)
        self.pool, self.drop = nn.AdaptiveAvgPool3d(1), nn.Dropout3d()

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.first(x))
        return self.last(y * self.pool(y).sigmoid()) * F.adaptive_avg_pool3d(x, (1, 1, 1))


def test_pools_to_several_parts_of_a_volume_are_refused() -> None:
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(2)).eval()
    with pytest.raises(UnknownOpError, match="pools volumes to several parts"):
        overlap_tool.analyze(model)


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
@pytest.mark.parametrize("model", [Layers(), Skips(), Excited()], ids=["layers", "skips", "excited"])
def test_tiles_of_volumes_have_the_bits_of_the_whole(model: nn.Module, schedule: Any) -> None:
    """Of other depths than the one that it is surveyed with, too."""
    model.eval()
    tiled = overlap_tool.wrap(model, tile=16, schedule=schedule)
    for size in ((7, 37, 43), (10, 32, 40)):
        volume = torch.randn(2, 1, *size)
        with torch.no_grad(), exact_kernels():
            assert torch.equal(tiled(volume), model(volume)), size
    (stage,) = tiled_stages(tiled).values()
    assert set(stage.network.of_depths) == {7, 10}
    assert all(plan.tiles > 4 for plan in stage._plans.values())


def test_the_models_own_refusal_of_a_depth_is_its_own() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 5), nn.ReLU()).eval()
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        overlap_tool.wrap(model, tile=16)(torch.randn(1, 1, 3, 40, 40))


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_predicted_memory_is_the_true_peak_within_15_percent(schedule: Any) -> None:
    tiled = overlap_tool.wrap(Skips().eval(), tile=24, schedule=schedule)
    (stage,) = tiled_stages(tiled).values()
    volume = torch.rand(1, 1, DEPTH, 60, 76)
    with torch.no_grad():
        tiled(volume)  # it asks for the size, and is traced
    with torch.no_grad(), LiveBytes(volume, *tiled.parameters()) as live:
        tiled(volume)
    predicted, peak = stage.plan(Shape(1, 60, 76)).peak_bytes, live.peak + volume.nbytes
    assert abs(predicted - peak) <= 0.15 * peak, predicted / peak


def test_dask_arrays_are_of_images() -> None:
    with pytest.raises(OptionError, match="takes a volume"):
        overlap_tool.distributed.map_tiles(Skips().eval(), np.zeros((1, DEPTH, 40, 40), np.float32))
