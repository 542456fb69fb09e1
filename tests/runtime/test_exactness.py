"""Tiles give the bits of the full image: every architecture, whole and by stage, against the model that was
given, which knows nothing of tiles, under `exact_kernels()`."""

from __future__ import annotations

import pytest
import torch
from support.exactness import SCHEDULES, bitstreams, stages_of_odd_sizes, whole_models
from support.small_models import small_model
from support.textures import textured

import overlap_tool
from overlap_tool import checkpoint, exact_kernels


def test_whole_models(architecture: str) -> None:
    whole_models(architecture, 128, 64, [(48, 48), (80, 32), (512, 512)])


@pytest.mark.slow
def test_whole_models_on_larger_images(architecture: str) -> None:
    whole_models(architecture, 576, 640, [(64, 64), (128, 80), (256, 256), (512, 512)])


def test_bitstreams(architecture: str) -> None:
    bitstreams(architecture)


@pytest.mark.slow
def test_bitstreams_by_every_schedule(architecture: str) -> None:
    bitstreams(architecture, [(tile, schedule) for tile in ((64, 64), (48, 48)) for schedule in SCHEDULES])


def test_stages_of_odd_sizes(architecture: str) -> None:
    stages_of_odd_sizes(architecture)


def test_full_width_too() -> None:
    """Layers of the published width, where weights are read in portions and the library cuts its sums."""
    model = checkpoint.load_checkpoint("zoo:mbt2018-mean").model
    image = textured(256, 192)
    with torch.no_grad():
        with exact_kernels():
            full = model(image)
        assert torch.equal(overlap_tool.wrap(model, tile=128, inplace=True)(image)["x_hat"], full["x_hat"])


def test_the_stock_engine_is_not_exact() -> None:
    """Or else nothing here would say anything about the exact one."""
    model = small_model("mbt2018-mean")
    image = textured(192, 320)
    with torch.no_grad():
        full = model(image)["x_hat"]
        tiled = overlap_tool.wrap(model, tile=64, engine="stock")(image)["x_hat"]
    assert not torch.equal(tiled, full)
    torch.testing.assert_close(tiled, full, rtol=1e-4, atol=1e-4)
