"""A size that a stage cannot compute is refused by name, with the sizes next to it that work."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.networks import PlainCnn
from torch import Tensor, nn

import overlap_tool
from overlap_tool.errors import SizeError
from overlap_tool.geometry.axis import Axis, AxisOp, fault, fitting
from overlap_tool.geometry.ops import Pad, Shrink, Window
from overlap_tool.graph.trace import trace


class Unshuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 3, 3, padding=1)
        self.after = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(F.pixel_unshuffle(self.before(x), 2))


WAYS = {
    "analyze": lambda model, width, height: overlap_tool.analyze(model, size=(width, height)),
    "plans": lambda model, width, height: overlap_tool.plans(
        overlap_tool.wrap(model, tile=16), (width, height)
    ),
    "plans in memory": lambda model, width, height: overlap_tool.plans(
        overlap_tool.wrap(model, memory="1GiB"), (width, height)
    ),
    "wrap": lambda model, width, height: overlap_tool.wrap(model, tile=16)(torch.rand(1, 3, height, width)),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_odd_size_is_refused_with_those_that_work(way: str) -> None:
    model = Unshuffled().eval()
    with pytest.raises(SizeError, match=r"pixel_unshuffle.*65 columns\. Use 64 or 66 columns"):
        WAYS[way](model, 65, 64)
    with pytest.raises(SizeError, match=r"pixel_unshuffle.*33 rows\. Use 32 or 34 rows"):
        WAYS[way](model, 64, 33)
    for width, height in ((64, 64), (66, 34)):  # what the refusal says works
        WAYS[way](model, width, height)


def test_the_command_line_refuses_it_in_one_line(run) -> None:
    code, _, err = run("analyze", "--model", "planning.test_odd_sizes:Unshuffled", "--size", "65x64")
    assert code == 2
    assert "Use 64 or 66 columns" in err
    assert "Traceback" not in err


def test_maps_that_meet_at_a_join_have_to_be_of_one_size() -> None:
    with pytest.raises(SizeError, match=r"joins maps of 32 and 33 rows.*Use 32 or 34 rows"):
        trace(PlainCnn(), "").require(33, 64)
    with pytest.raises(SizeError):
        overlap_tool.analyze(PlainCnn(), size=(64, 33))


class Rounded(nn.Module):
    """Of one row it makes two, to which the other branch's one row broadcasts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        half = F.max_pool2d(x, (2, 1), ceil_mode=True)
        return self.conv(x) + F.interpolate(half, scale_factor=(2.0, 1.0))


def test_a_size_that_the_models_own_code_takes_is_not_refused() -> None:
    model = Rounded().eval()
    tiled = overlap_tool.wrap(model, tile=4)
    one = torch.rand(1, 3, 1, 8)
    with torch.no_grad(), overlap_tool.exact_kernels():
        assert torch.equal(tiled(one), model(one))
    with pytest.raises(SizeError, match="joins maps of 5 and 6 rows"):
        tiled(torch.rand(1, 3, 5, 8))


@pytest.mark.parametrize("pad", [1, 3])
def test_sizes_that_work_are_searched_and_not_guessed(pad: int) -> None:
    axis = Axis((AxisOp(None), AxisOp(Pad(pad, 0), (0,)), AxisOp(Shrink(4), (1,)), AxisOp(Window(3), (2,))))
    works = [n for n in range(1, 200) if (n + pad) % 4 == 0 and (n + pad) // 4 >= 3]
    for n in range(1, 100):
        assert (fault(axis, n) is None) == (n in works)
        below, above = ([w for w in works if w < n], [w for w in works if w > n])
        assert fitting(axis, n) == (*below[-1:], above[0])
