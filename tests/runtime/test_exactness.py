"""Tiles give the bits of the full image: every architecture, whole and by stage, against the model that was
given, which knows nothing of tiles, under `exact_kernels()`."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from support.small_models import small_model
from support.threads import on_threads
from torch import Tensor, nn

import overlap_tool
from overlap_tool import checkpoint, exact_kernels
from overlap_tool.planning.choose import Settings
from overlap_tool.wrapping.retrofit import rewrap, tiled_stages

SCHEDULES = ["stream", "tiles"]
FAIR_SHARE = 0.05


def photograph(width: int, height: int, images: int = 1) -> Tensor:
    """Something with flat parts, edges and texture, of any size."""
    generator = torch.Generator().manual_seed(width + height)
    coarse = torch.rand(images, 3, 6, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return (smooth + 0.1 * torch.rand(images, 3, height, width, generator=generator)).clamp(0, 1)


@cache
def tiled_model(architecture: str) -> nn.Module:
    """Traced once, and told anew by each test in which tiles it runs."""
    return overlap_tool.wrap(small_model(architecture))


def test_whole_models(architecture: str) -> None:
    whole_models(architecture, 128, 64, [(48, 48), (80, 32), (512, 512)])


@pytest.mark.slow
def test_whole_models_on_larger_images(architecture: str) -> None:
    whole_models(architecture, 576, 640, [(64, 64), (128, 80), (256, 256), (512, 512)])


def whole_models(architecture: str, width: int, height: int, sides: list) -> None:
    """A batch of three, its images one by one, one thread and two, every tile and schedule."""
    model = small_model(architecture)
    image = photograph(width, height, images=3)
    with torch.no_grad():
        with exact_kernels():
            full = model(image)
            alone = model(image[1:2])
            one_thread = on_threads(1, lambda: model(image))
        assert torch.equal(full["x_hat"], one_thread["x_hat"])
        assert torch.equal(full["x_hat"][1:2], alone["x_hat"])
        tiled = tiled_model(architecture)
        for tile in sides:
            for schedule in SCHEDULES:
                rewrap(tiled, Settings(tile=tile, schedule=schedule))
                found = tiled(image)
                assert torch.equal(found["x_hat"], full["x_hat"]), (tile, schedule)
                for name, likelihoods in full["likelihoods"].items():
                    assert torch.equal(found["likelihoods"][name], likelihoods), (tile, schedule, name)
        rewrap(tiled, Settings(tile=(48, 48), schedule="tiles", batch=4))
        assert torch.equal(on_threads(1, lambda: tiled(image))["x_hat"], full["x_hat"])


def test_bitstreams(architecture: str) -> None:
    bitstreams(architecture, [((64, 64), "stream"), ((48, 48), "tiles")])


@pytest.mark.slow
def test_bitstreams_by_every_schedule(architecture: str) -> None:
    bitstreams(architecture, [(tile, schedule) for tile in ((64, 64), (48, 48)) for schedule in SCHEDULES])


@torch.no_grad()
def bitstreams(architecture: str, ways: list) -> None:
    """The strings are those of the model that was given, whatever the tile, and decode with any other."""
    model = small_model(architecture)
    image = photograph(128, 64)
    with exact_kernels():
        expected = model.compress(image)
        decoded = model.decompress(expected["strings"], expected["shape"])["x_hat"]
        y = model.g_a(image)
    share = y.round().ne(0).float().mean()
    assert share > FAIR_SHARE, f"only {share:.1%} of the symbols are not zero, so that strings prove little"
    assert sum(len(string) for strings in expected["strings"] for string in strings) > 64
    tiled = tiled_model(architecture)
    for tile, schedule in ways:
        rewrap(tiled, Settings(tile=tile, schedule=schedule))
        found = tiled.compress(image)
        # so a model that knows of no tiles decodes what tiles made
        assert (found["strings"], found["shape"]) == (expected["strings"], expected["shape"]), schedule
        assert torch.equal(tiled.decompress(found["strings"], found["shape"])["x_hat"], decoded), schedule


def test_stages_of_odd_sizes(architecture: str) -> None:
    """Sizes that no multiple of anything fits, as a plain network may be given."""
    model = small_model(architecture)
    tiled = tiled_model(architecture)
    for width, height in ((101, 67), (64, 65), (33, 130)):
        for name, stage in tiled_stages(tiled).items():
            scale, channels = stage.input_scale, stage.network.ops[0].channels
            size = max(1, int(height * scale)), max(1, int(width * scale))
            x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(width))
            with torch.no_grad(), exact_kernels():
                full = model.get_submodule(name)(x)
            for schedule in SCHEDULES:
                rewrap(tiled, Settings(tile=(48, 48), schedule=schedule))
                assert torch.equal(tiled_stages(tiled)[name](x), full), (name, schedule, width, height)


def test_full_width_too() -> None:
    """Layers of the published width, where weights are read in portions and the library cuts its sums."""
    model = checkpoint.load_checkpoint("zoo:mbt2018-mean").model
    image = photograph(256, 192)
    with torch.no_grad():
        with exact_kernels():
            full = model(image)
        assert torch.equal(overlap_tool.wrap(model, tile=128, inplace=True)(image)["x_hat"], full["x_hat"])


def test_the_stock_engine_is_not_exact() -> None:
    """Or else nothing here would say anything about the exact one."""
    model = small_model("mbt2018-mean")
    image = photograph(192, 320)
    with torch.no_grad():
        full = model(image)["x_hat"]
        tiled = overlap_tool.wrap(model, tile=64, engine="stock")(image)["x_hat"]
    assert not torch.equal(tiled, full)
    torch.testing.assert_close(tiled, full, rtol=1e-4, atol=1e-4)
