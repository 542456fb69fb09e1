"""Ops on maps whose channels come last, in code that moves them there, are exact in tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import overlap_tool
from overlap_tool.errors import OverlapToolError

pytestmark = pytest.mark.usefixtures("one_thread")


class Last(nn.Module):
    def __init__(self, compute: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(8))
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        y = self.compute(self, self.first(x).movedim(1, -1))
        return self.last(y.movedim(-1, 1))


def root_mean_square(m: Any, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.scale


def without_the_dimension(m: Any, x: Tensor) -> Tensor:
    return x - x.sum(-1)[..., None] + x.amax(dim=3).unsqueeze(-1) + x.norm(dim=-1).unsqueeze(3)


def shares(m: Any, x: Tensor) -> Tensor:
    return x.softmax(-1) + nn.Softmax(3)(x)


def halves(m: Any, x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([second, first * 2], -1)


def every_second(m: Any, x: Tensor) -> Tensor:
    return torch.cat([x[..., 1::2], x[:, :, :, :4]], dim=3) + x[..., 0].unsqueeze(-1)


def the_largest(m: Any, x: Tensor) -> Tensor:
    values, places = x.max(-1, keepdim=True)
    return x * values + places


def cropped(m: Any, x: Tensor) -> Tensor:
    return x[:, 1:-2, 3:]


def with_groups(m: Any, x: Tensor) -> Tensor:
    y = torch.stack([x[..., :4], x[..., 4:]], -1)
    return torch.cat([y.sum(-1), y.amax(-1)], -1)


def new_dimensions(m: Any, x: Tensor) -> Tensor:
    y = (x[:, :, :, None] + x[..., None]).sum(3) + x[..., None, :].squeeze(-2)
    z = x.unsqueeze(-1).squeeze(4) * x.unsqueeze(3)[..., 0, :] + x[:, :, :, :1].squeeze(3)[..., None]
    return y[..., :8] * z


EXACT = (
    new_dimensions,
    root_mean_square,
    without_the_dimension,
    shares,
    halves,
    every_second,
    the_largest,
    cropped,
    with_groups,
)


@pytest.mark.parametrize("compute", EXACT, ids=lambda compute: compute.__name__)
def test_ops_on_channels_that_come_last(compute: Callable[[Any, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Last(compute).eval()
    for options in ({"schedule": "stream"}, {"schedule": "tiles", "batch": 2}):
        tiled = overlap_tool.wrap(model, tile=(13, 11), **options)
        image = torch.rand(2, 3, 40, 33)
        with torch.no_grad(), overlap_tool.exact_kernels():
            assert torch.equal(tiled(image), model(image))


@pytest.mark.parametrize("dim", [1, 2])
def test_rows_and_columns_are_known_there(dim: Any) -> None:
    with pytest.raises(OverlapToolError, match="over rows or columns"):
        overlap_tool.analyze(Last(lambda m, x: x - x.mean(dim, keepdim=True)).eval())


def test_a_squeeze_that_may_drop_the_images_is_refused() -> None:
    with pytest.raises(OverlapToolError, match="which that of the images may be"):
        overlap_tool.analyze(Last(lambda m, x: x.sum(-1, keepdim=True).squeeze()).eval())
