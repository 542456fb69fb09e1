"""Where tensors live when a GPU computes, without one: on tensors that have a device and no data.

`tests/test_cuda.py` says on a GPU whether the values are right.
"""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from fake_gpu import move_to_the_gpu, stand_in_for_a_gpu
from hypothesis import given, settings
from random_networks import Case, cases
from small_models import small_model
from ways import WAYS, in_tiles

import overlap_tool
from benchmarks.live_memory import LiveBytes
from overlap_tool import checkpoint, exact_kernels
from overlap_tool.retrofit import tiled_stages
from overlap_tool.schedule.choose import Shape
from overlap_tool.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")


@pytest.mark.parametrize(
    ("engine", "schedule", "store", "image_on"),
    [
        ("exact", "stream", "host", "cpu"),
        pytest.param("exact", "tiles", "auto", "cuda", marks=pytest.mark.slow),
        pytest.param("stock", "stream", "disk", "cpu", marks=pytest.mark.slow),
    ],
)
def test_no_op_mixes_devices(
    architecture: str, engine: str, schedule: str, store: str, image_on: str, monkeypatch
) -> None:
    """PyTorch refuses it, and whole maps lie where they were asked to."""
    tiled = overlap_tool.wrap(
        copy.deepcopy(small_model(architecture)), tile=64, engine=engine, schedule=schedule, store=store
    )
    with stand_in_for_a_gpu(monkeypatch), torch.no_grad():
        move_to_the_gpu(tiled)
        for stage in tiled_stages(tiled).values():
            channels, side = stage.network.ops[0].channels, int(128 * stage.input_scale)
            result = stage(torch.empty(1, channels, side, side, device=image_on))
            assert result.device.type == ("cuda" if store == "auto" else "cpu")


def _on_the_gpu(case: Case) -> None:
    network = copy.deepcopy(case.network)
    traced = trace(network, "net", network.channels)
    with pytest.MonkeyPatch.context() as patched, stand_in_for_a_gpu(patched), exact_kernels():
        move_to_the_gpu(network)
        for planner, batch in WAYS.values():
            x = torch.empty(case.shape, dtype=torch.float64)
            result = in_tiles(traced, x, case.tile, planner, batch, "cuda:0", "host")
            assert result.device.type == "cpu"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_no_op_of_a_random_network_mixes_devices(case: Case) -> None:
    _on_the_gpu(case)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(cases())
def test_no_op_of_thousands_of_random_networks_mixes_devices(case: Case) -> None:
    _on_the_gpu(case)


@pytest.mark.parametrize("store", ["device", "host"])
@pytest.mark.parametrize("schedule", ["stream", pytest.param("tiles", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["g_a", "g_s"])
def test_the_device_holds_what_the_plan_foretells(name: str, schedule: str, store: str, monkeypatch) -> None:
    """With maps in host memory that is one tile, the caches and the packed weights."""
    tiled = overlap_tool.wrap(
        copy.deepcopy(_whole_width()), tile=128, schedule=schedule, store=store, inplace=True
    )
    stage = tiled_stages(tiled)[name]
    first = stage.network.ops[0]
    height, width = int(544 * stage.input_scale), int(960 * stage.input_scale)
    with stand_in_for_a_gpu(monkeypatch), torch.no_grad():
        move_to_the_gpu(tiled)
        whole = torch.empty(1, first.channels, height, width, device="cuda" if store == "device" else "cpu")
        with LiveBytes(whole, *stage.module.parameters(), on="cuda") as live:
            stage(whole)
    plan = stage.plan(Shape(1, height, width))
    if store == "device":
        predicted, peak = plan.peak_bytes, live.peak + whole.nbytes
    else:
        predicted, peak = plan.working_bytes, live.peak
    assert abs(predicted - peak) <= 0.15 * peak


@cache
def _whole_width() -> torch.nn.Module:
    return checkpoint.load("zoo:mbt2018-mean").model
