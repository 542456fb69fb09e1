"""Models that take more than an image: other maps, and parameters that may change from call to call."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import overlap_tool
from overlap_tool.errors import OptionError, OverlapToolError

pytestmark = pytest.mark.usefixtures("one_thread")


class Rated(nn.Module):
    """With a rate index, as variable-rate encoders have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 5, stride=2, padding=2), nn.Conv2d(6, 4, 3, padding=1)
        self.gains = nn.Parameter(torch.rand(3, 6, 1, 1) + 0.5)

    def forward(self, x: Tensor, qp: int, *, scale: float | Tensor = 1.0, deep: bool = False) -> Any:
        y = self.first(x) * self.gains[qp]
        for _ in range(qp):
            y = y.relu() + y
        return self.last(y * scale) if not deep else {"y": y, "z": self.last(y)}


class Masked(nn.Module):
    """With a mask, as inpainting has it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)

    def forward(self, image: Tensor, mask: Tensor, strength: float = 0.5) -> Tensor:
        h, w = image.shape[-2:]
        both = F.pad(torch.cat([image * (1 - mask), mask], 1), (0, -w % 8, 0, -h % 8), mode="reflect")
        return image * (1 - mask) + self.last(self.first(both))[..., :h, :w] * mask * strength


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def assert_same(tiled: nn.Module, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    with torch.no_grad(), overlap_tool.exact_kernels():
        found, expected = tiled(*args, **kwargs), model(*args, **kwargs)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    else:
        assert torch.equal(found, expected)


def no_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from overlap_tool.wrapping.retrofit import TiledForward

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model's own code ran, untiled")

    monkeypatch.setattr(TiledForward, "original", refuse)


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
@pytest.mark.parametrize(
    "example", [(torch.rand(1, 3, 64, 64), 1), {"qp": 1}], ids=["arguments", "by keyword"]
)
def test_parameters_change_from_call_to_call(monkeypatch, schedule, example) -> None:
    model, image = made(Rated), torch.rand(2, 3, 61, 83)
    tiled = overlap_tool.wrap(model, tile=16, schedule=schedule, example=example)
    no_code_of_its_own(monkeypatch)
    for qp in (1, 0, 2, 1):
        assert_same(tiled, model, image, qp)
        assert_same(tiled, model, image, qp=qp, scale=0.5)
    assert_same(tiled, model, image, 2, scale=torch.tensor([2.0]))
    assert_same(tiled, model, image, 2, scale=torch.tensor([3.0]))
    assert_same(tiled, model, image, 0, deep=True)
    assert_same(copy.deepcopy(tiled), model, image, 2)


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_several_maps(monkeypatch, schedule) -> None:
    model = made(Masked)
    example = torch.rand(1, 3, 32, 32), torch.rand(1, 1, 32, 32)
    tiled = overlap_tool.wrap(model, tile=(24, 16), schedule=schedule, example=example)
    no_code_of_its_own(monkeypatch)
    for size in ((61, 83), (64, 40)):
        image, mask = torch.rand(1, 3, *size), (torch.rand(1, 1, *size) > 0.5).float()
        assert_same(tiled, model, image, mask)
        assert_same(tiled, model, image, mask=mask, strength=0.25)


def test_weights_and_parts_that_change_are_noticed_for_every_parameter() -> None:
    model, image = made(Rated), torch.rand(1, 3, 40, 48)
    tiled = overlap_tool.wrap(model, tile=16, example={"qp": 0})
    assert_same(tiled, model, image, 2)
    for each in (model, tiled):
        with torch.no_grad():
            each.gains.mul_(2)
        each.last = nn.Conv2d(6, 4, 1)
    tiled.last.load_state_dict(model.last.state_dict())
    assert_same(tiled, model, image, 2)
    assert_same(tiled, model, image, 0)


def test_calls_that_tiles_do_not_cover_run_the_models_own_code() -> None:
    model = made(Masked)
    tiled = overlap_tool.wrap(model, tile=16, example=(torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8)))
    image = torch.rand(1, 3, 40, 48)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'mask'"):
        tiled(image)


def test_analyze_with_an_example() -> None:
    stage = overlap_tool.analyze(made(Rated), example={"qp": 2}, size=(640, 480)).stages[0]
    assert (stage.left, stage.right, stage.receptive_field) == (4, 3, 9)
    stage = overlap_tool.analyze(
        made(Masked), example=(torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8))
    ).stages[0]
    assert stage.layers[0].inputs == ("Masked",)
    assert (stage.left, stage.right) == (2, 2)


def test_what_an_example_has_to_be(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="has no map"):
        overlap_tool.analyze(made(Rated), example=(3,))
    with pytest.raises(OptionError, match="among keyword arguments"):
        overlap_tool.analyze(made(Masked), example={"mask": torch.rand(1, 1, 8, 8)})
    with pytest.raises(OverlapToolError, match="qp"):
        overlap_tool.analyze(made(Rated))
    tiled = overlap_tool.wrap(made(Rated), example={"qp": 2})
    with pytest.raises(OptionError, match="example of its arguments"):
        overlap_tool.save(tiled, tmp_path / "rated.pt", "package.module:Rated")
