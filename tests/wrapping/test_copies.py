"""Copies of models are in the modes of the original, and share with it what cannot be copied."""

from __future__ import annotations

import threading

import pytest
import torch
from compressai.ans import RansEncoder
from support.networks import PlainCnn
from support.small_models import small_model
from torch import Tensor, nn
from torchvision.models import efficientnet_b0
from torchvision.models.feature_extraction import create_feature_extractor

import overlap_tool
from overlap_tool import exact_kernels
from overlap_tool.errors import CopyError
from overlap_tool.graph.copying import copied, modes


class Features(nn.Module):
    """One of the maps that torchvision's extractor takes from a network."""

    def __init__(self, network: nn.Module, node: str) -> None:
        super().__init__()
        self.extract = create_feature_extractor(network, {node: "map"})

    def forward(self, x: Tensor) -> Tensor:
        return self.extract(x)["map"]


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.tail = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.drop(self.norm(self.conv(x))))


@pytest.mark.parametrize("engine", ["exact", "stock"])
def test_what_torchvision_extracts_is_wrapped_in_eval_mode(engine) -> None:
    """Its copies are in training mode: a call by keyword, which the model's own code computes, normalised by
    the batch, and changed the running statistics."""
    model = Features(Normalised(), "tail").eval()
    tiled = overlap_tool.wrap(model, tile=16, engine=engine)
    before = {key: value.clone() for key, value in tiled.state_dict().items()}
    x = torch.rand(1, 3, 40, 48)
    assert modes(tiled) == modes(model)
    with torch.no_grad():
        if engine == "stock":
            torch.testing.assert_close(tiled(x), model(x))
            assert torch.equal(tiled(x=x), model(x))
        else:
            with exact_kernels():
                expected = model(x)
            assert torch.equal(tiled(x), expected)
            assert torch.equal(tiled(x=x), expected)
    assert all(torch.equal(value, before[key]) for key, value in tiled.state_dict().items())


DEEP = {
    "dropout": lambda: Features(Normalised(), "tail"),
    "efficientnet_b0": lambda: Features(efficientnet_b0(), "features.8"),
}


@pytest.mark.parametrize("name", ["dropout", pytest.param("efficientnet_b0", marks=pytest.mark.slow)])
def test_what_torchvision_extracts_of_a_network_that_draws_in_training_is_analysed(name: str) -> None:
    """It "computes something else when it is traced", they were told: a copy did, in training mode."""
    assert overlap_tool.analyze(DEEP[name]().eval()).stages


@pytest.mark.parametrize("training", [True, False])
def test_an_analysis_leaves_a_network_in_its_modes_and_what_it_computes_in_them(training: bool) -> None:
    model = Features(Normalised(), "tail").train(training)
    model.extract.norm.eval()
    before, graph = modes(model), model.extract.graph
    overlap_tool.analyze(model)
    assert modes(model) == modes(copied(model)) == before
    assert model.extract.graph is graph
    assert (graph is model.extract.train_graph) == training


class Watched(nn.Module):
    """Lets others look whenever its forward runs."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.look()
        return self.drop(x)

    def look(self) -> None:
        pass


def test_an_analysis_is_not_felt_by_others_who_use_the_model(monkeypatch) -> None:
    """It was in eval mode as long as it was traced."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3), Watched(), nn.BatchNorm2d(3).eval())
    before, seen = modes(model), []
    monkeypatch.setattr(Watched, "look", lambda part: seen.append(modes(model)))
    overlap_tool.analyze(model, size=(64, 48), tiles=(16,))
    assert seen
    assert all(each == before for each in seen)


def holding(model: nn.Module) -> nn.Module:
    """With things inside that refuse to be copied, at several depths."""
    first = next(model.children())
    first.lock = threading.Lock()
    model.coder = RansEncoder()
    model.coders = {"y": [RansEncoder(), torch.zeros(3)]}
    model.last = first.weight * 2 if hasattr(first, "weight") else nn.Parameter(torch.ones(1)) * 2
    return model


@pytest.mark.parametrize("inplace", [True, False])
def test_a_model_that_holds_what_cannot_be_copied_is_wrapped(inplace: bool) -> None:
    model = holding(PlainCnn().eval())
    x = torch.rand(1, 1, 40, 48)
    with torch.no_grad(), exact_kernels():
        expected = model(x)
    assert overlap_tool.analyze(model).stages
    tiled = overlap_tool.wrap(model, tile=16, inplace=inplace)
    with torch.no_grad():
        assert torch.equal(tiled(x), expected)
        plain = overlap_tool.unwrap(tiled)
        with exact_kernels():
            assert torch.equal(plain(x), expected)


def test_a_codec_that_holds_what_cannot_be_copied_is_analysed_and_wrapped() -> None:
    plain = small_model("mbt2018-mean")
    model = holding(copied(plain))
    names = [stage.name for stage in overlap_tool.analyze(model).stages]
    assert names == [stage.name for stage in overlap_tool.analyze(plain).stages]
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = (overlap_tool.wrap(each, tile=32)(x)["x_hat"] for each in (model, plain))
    assert torch.equal(found, expected)


def test_what_is_shared_is_only_what_cannot_be_copied() -> None:
    model = holding(PlainCnn())
    other = copied(model)
    assert other.coder is model.coder
    assert other.coders["y"][0] is model.coders["y"][0]
    assert other.coders["y"] is not model.coders["y"]
    assert other.coders["y"][1] is not model.coders["y"][1]
    assert other.last is not model.last
    assert torch.equal(other.last, model.last)
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        assert mine is not its
        assert mine.data_ptr() != its.data_ptr()


class Unique(nn.Conv2d):
    def __deepcopy__(self, memo: dict[int, object]) -> Unique:
        raise RuntimeError("there can be only one")


def test_a_model_whose_own_part_refuses_to_be_copied_is_refused_by_name() -> None:
    model = nn.Sequential(Unique(1, 1, 3)).eval()
    with pytest.raises(CopyError, match="its Unique says 'there can be only one'"):
        overlap_tool.wrap(model)
    assert overlap_tool.analyze(model).stages, "for which no copy is needed"
    assert overlap_tool.wrap(model, tile=8, inplace=True)(torch.rand(1, 1, 20, 20)).shape == (1, 1, 18, 18)
    with pytest.raises(CopyError, match=r"is wrapped, and cannot be copied.*Call overlap_tool\.unwrap\("):
        overlap_tool.analyze(model)
    assert overlap_tool.analyze(overlap_tool.unwrap(model, inplace=True)).stages


class Kept(dict):  # type: ignore[type-arg]
    """Weights in whose place nothing may be put."""

    def __setitem__(self, key: str, value: object) -> None:
        raise AssertionError(f"{key} was replaced")

    def __delitem__(self, key: str) -> None:
        raise AssertionError(f"{key} was taken away")


def test_an_analysis_puts_nothing_in_the_place_of_weights_that_another_thread_may_be_reading() -> None:
    """Stand-ins were, for as long as a layer's trial took."""
    model = PlainCnn().eval()
    for part in model.modules():
        vars(part)["_parameters"] = Kept(part._parameters)
        vars(part)["_buffers"] = Kept(part._buffers)
    assert overlap_tool.analyze(model).stages
