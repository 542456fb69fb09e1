"""On a GPU: the same results, wherever whole maps live. `pytest tests/test_cuda.py` where there is one."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import small_model

import overlap_tool
from overlap_tool.retrofit import Shape, tiled_stages

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
@pytest.mark.parametrize("store", ["auto", "device", "host", "disk"])
@pytest.mark.parametrize("input_on", ["cpu", "cuda"])
def test_results_equal_the_full_image(architecture: str, schedule: str, store: str, input_on: str) -> None:
    model = copy.deepcopy(small_model(architecture)).double().cuda()
    tiled = overlap_tool.wrap(model, tile=48, schedule=schedule, store=store)
    image = torch.rand(1, 3, 192, 256, dtype=torch.float64, device="cuda")
    with torch.no_grad():
        expected = model.g_a(image)
        found = tiled.g_a(image.to(input_on))
        assert found.device.type == ("cuda" if store in ("auto", "device") else "cpu")
        torch.testing.assert_close(found.cuda(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_predicted_memory_is_the_allocators_peak(schedule: str) -> None:
    tiled = overlap_tool.wrap(
        overlap_tool.checkpoint.load("zoo:mbt2018-mean").model.cuda(),
        tile=256,
        schedule=schedule,
        inplace=True,
    )
    stage = tiled_stages(tiled)["g_a"]
    image = torch.rand(1, 3, 1088, 1920, device="cuda")
    stage(image)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() - image.nbytes
    result = stage(image)
    peak = torch.cuda.max_memory_allocated() - before
    predicted = stage.plan(Shape(1, 1088, 1920)).peak_bytes
    assert result.is_cuda
    assert abs(predicted - peak) <= 0.15 * peak
