"""Shared by the checkpoint tests: every architecture's name, weights to damage, a way to save, an image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.small_models import small_model
from torch import Tensor, nn

from overlap_tool import checkpoint


@pytest.fixture(params=checkpoint.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """A small mbt2018's state dict, free to change."""
    return {key: tensor.clone() for key, tensor in small_model("mbt2018").state_dict().items()}


@pytest.fixture
def saved(tmp_path: Path):
    """Saves a payload and returns the path."""

    def save(payload: object, file: str = "model.pth", **options: object) -> Path:
        path = tmp_path / file
        torch.save(payload, path, **options)  # type: ignore[arg-type]
        return path

    return save


@pytest.fixture
def image() -> Tensor:
    """A smooth picture in [0, 1], with detail at every scale as natural ones have."""
    generator = torch.Generator().manual_seed(1)
    picture = torch.zeros(1, 3, 64, 64)
    for cells in (4, 8, 16, 32):
        noise = torch.randn(1, 3, cells, cells, generator=generator) * (4 / cells) ** 0.8
        picture += nn.functional.interpolate(noise, size=(64, 64), mode="bicubic")
    return (picture - picture.min()) / (picture.max() - picture.min())
