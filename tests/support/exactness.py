"""Tiles of any architecture held to the model that was given, which knows nothing of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

import overlap_tool
from overlap_tool import exact_kernels
from overlap_tool.settings import Schedule, Settings
from overlap_tool.wrapping.retrofit import rewrap, tiled_stages
from support.small_models import small_model
from support.textures import textured
from support.threads import on_threads

SCHEDULES: tuple[Schedule, ...] = ("stream", "tiles")
FAIR_SHARE = 0.05

Way = tuple[tuple[int, int], Schedule]
"""A tile, and in which order."""


@cache
def tiled_model(architecture: str) -> nn.Module:
    """Traced once, and told anew by each test in which tiles it runs."""
    return overlap_tool.wrap(small_model(architecture))


def whole_models(architecture: str, width: int, height: int, sides: list) -> None:
    """A batch of three, its images one by one, one thread and two, every tile and schedule."""
    model = small_model(architecture)
    image = textured(width, height, images=3)
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


@torch.no_grad()
def bitstreams(architecture: str, ways: Sequence[Way] = (((64, 64), "stream"), ((48, 48), "tiles"))) -> None:
    """The strings are those of the model that was given, whatever the tile, and decode with any other."""
    model = small_model(architecture)
    image = textured(128, 64)
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


def stages_of_odd_sizes(architecture: str) -> None:
    """Sizes that no multiple of anything fits, as a plain network may be given."""
    model = small_model(architecture)
    tiled = tiled_model(architecture)
    for name, stage in tiled_stages(tiled).items():
        scale, channels = stage.input_scale, stage.network.ops[0].channels
        for width, height in ((101, 67), (64, 65), (33, 130)):
            size = max(1, int(height * scale)), max(1, int(width * scale))
            x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(width))
            with torch.no_grad(), exact_kernels():
                full = model.get_submodule(name)(x)
            for schedule in SCHEDULES:
                rewrap(tiled, Settings(tile=(48, 48), schedule=schedule))
                assert torch.equal(stage(x), full), (name, schedule, width, height)
