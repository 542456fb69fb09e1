"""Tiles that are replayed on the processor have the bits of the full image."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from support.small_models import small_model
from support.swin import SwinAttention
from torch import nn

import overlap_tool
from overlap_tool.rules import Call, Operand, Rule, register_exact_op, register_rule
from overlap_tool.runtime import execute, repeated


@pytest.fixture
def replayed(monkeypatch) -> list[bool]:
    """Tiles that were, whatever it costs to record them."""
    found: list[bool] = []
    by_tape = execute.Execution.by_tape

    def seen(*args) -> bool:
        found.append(by_tape(*args))
        return found[-1]

    monkeypatch.setattr(execute.Execution, "by_tape", seen)
    monkeypatch.setitem(repeated.WORTH, "cpu", 1)
    return found


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_a_replayed_tile_has_the_bits_of_the_full_image(architecture: str, schedule: str, replayed) -> None:
    model = small_model(architecture)
    tiled = overlap_tool.wrap(model, tile=32, schedule=schedule)
    image = torch.rand(1, 3, 64, 640, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for stage in ("g_a", "g_s"):
            replayed.clear()
            found = getattr(tiled, stage)(image)
            with overlap_tool.exact_kernels():
                image = getattr(model, stage)(image)
            assert torch.equal(found, image)
            assert any(replayed)


class Placed(nn.Module):
    """Its numbers vary by position everywhere; two masks are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.windows = nn.ModuleList(SwinAttention(16, 2, 8, shift) for shift in (3, 0, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        x = self.first(x) + torch.arange(width) * 0.01
        for each in self.windows:
            x = x + each(x)
        return x * torch.arange(height)[:, None]


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_values_that_vary_by_position_are_given_to_a_tape(schedule: str, replayed) -> None:
    torch.manual_seed(1)
    model = Placed().eval()
    tiled = overlap_tool.wrap(model, tile=32, schedule=schedule)
    image = torch.rand(1, 3, 128, 256, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        with overlap_tool.exact_kernels():
            whole = model(image)
        assert torch.equal(tiled(image), whole)
        assert len(replayed) > 4, "tiles elsewhere have other values, and the same tape"
        for _ in range(3):
            replayed.clear()
            assert torch.equal(tiled(image), whole)
    assert replayed == [True] * len(replayed)
    assert len(replayed) >= 32, "tiles at borders are replayed, too"


@pytest.mark.parametrize("images", [1, 2])
def test_tiles_that_are_computed_together_are_replayed(images: int, replayed) -> None:
    tiled = overlap_tool.wrap(small_model("mbt2018"), tile=32, schedule="tiles", batch=3)
    with torch.no_grad():
        image = torch.rand(images, 3, 64, 640, generator=torch.Generator().manual_seed(1))
        found = tiled.g_a(image)
        with overlap_tool.exact_kernels():
            assert torch.equal(found, small_model("mbt2018").g_a(image))
    assert any(replayed)


def test_weights_that_change_between_calls_are_seen(replayed) -> None:
    model = small_model("mbt2018")
    tiled = overlap_tool.wrap(model, tile=32, schedule="stream")
    image = torch.rand(1, 3, 64, 256)
    with torch.no_grad():
        for _ in range(2):
            tiled.g_a[1].gamma.data.mul_(1.5)
            tiled.g_a[2].weight.data.mul_(1.5)
            found = tiled.g_a(image)
            with overlap_tool.exact_kernels():
                assert torch.equal(found, type(model.g_a).forward(tiled.g_a, image))
    assert any(replayed)


def test_tiles_that_occur_seldom_are_not_recorded(replayed, monkeypatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(repeated, "Script", None)
    tiled = overlap_tool.wrap(small_model("mbt2018"), tile=32, schedule="stream")
    with torch.no_grad():
        tiled.g_a(torch.rand(1, 3, 64, 128))


@pytest.mark.parametrize("unseen", ["numpy", "memory"])
def test_what_an_op_of_ones_own_reads_unseen_is_not_replayed(unseen: str, replayed) -> None:
    """It was right for the tile that was recorded, and so was its trial on that tile."""
    name = f"overlap_tool_tests::levels_by_{unseen}"

    def compute(x: torch.Tensor) -> torch.Tensor:
        if unseen == "numpy":
            return x + torch.from_numpy(np.round(x.numpy() * 4))
        size = x.untyped_storage().nbytes() // 4
        numbers = np.ctypeslib.as_array((ctypes.c_float * size).from_address(x.untyped_storage().data_ptr()))
        return x * float(np.abs(numbers).max())

    levels = torch.library.custom_op(name, compute, mutates_args=())
    register_exact_op(name)(compute)
    levels.register_fake(torch.empty_like)

    @register_rule(levels._opoverload)
    def rule(call: Call, x: Operand) -> Rule:
        return Rule(lambda patches, x: levels(x.contiguous()))

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return levels(self.conv(x))

    model, image = Model().eval(), torch.rand(1, 3, 32, 480)
    with torch.no_grad():
        tiled = overlap_tool.wrap(model, tile=32, schedule="tiles")
        with pytest.warns(overlap_tool.SlowKernelWarning, match="other bits"):
            tiled(image)
        assert not any(replayed)
