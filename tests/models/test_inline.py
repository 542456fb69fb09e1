"""Stages that a class computes inline: a small codec of rows of samples, which hands on no map."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from compressai.entropy_models import EntropyBottleneck
from support.textures import textured
from torch import Tensor, nn

from overlap_tool import exact_kernels, unwrap, verify, wrap
from overlap_tool.errors import OptionError, PluginError, TraceError
from overlap_tool.models import inline
from overlap_tool.models.inline import InlineStage
from overlap_tool.models.stages import survey
from overlap_tool.verification.observing import watched_stages


class OnSamples(nn.Module):
    """A layer that is told how many rows its samples make."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, samples: Tensor, rows: int) -> tuple[Tensor, int]:
        map = self.layer(samples.unflatten(2, (rows, -1)))
        return map.flatten(2), map.shape[2]


class Inline(nn.Module):
    """Its analysis and its synthesis are two layers each, one after another in its forward."""

    def __init__(self, skip: bool = False) -> None:
        super().__init__()
        self.skip = skip
        self.first = OnSamples(nn.Conv2d(3, 4, 5, 2, 2))
        self.second = OnSamples(nn.Conv2d(4, 4, 3, 2, 1))
        self.entropy_bottleneck = EntropyBottleneck(4)
        self.third = OnSamples(nn.ConvTranspose2d(4, 4, 5, 2, 2, 1))
        self.fourth = OnSamples(nn.ConvTranspose2d(4, 3, 5, 2, 2, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        samples, rows = self.first(x.flatten(2), x.shape[2])
        found, rows = self.second(samples, rows)
        if self.skip:
            found = found + samples.unflatten(2, (2 * rows, -1))[:, :, ::2, ::2].flatten(2)
        y_hat, _ = self.entropy_bottleneck(8 * found.unflatten(2, (rows, -1)))
        samples, rows = self.third(y_hat.flatten(2), y_hat.shape[2])
        samples, rows = self.fourth(samples, rows)
        return {"x_hat": samples.unflatten(2, (rows, -1))}


def compute(stage: nn.Module, samples: Tensor, rows: int) -> tuple[Tensor, int]:
    map = stage(as_map(samples, rows))
    return map.flatten(2), map.shape[2]


def hand_on(stage: nn.Module, samples: Tensor, rows: int) -> tuple[Tensor, int]:
    return samples, rows


def as_map(samples: Tensor, rows: int) -> Tensor:
    return samples.unflatten(2, (rows, -1))


def stage(name: str, first: OnSamples, last: OnSamples) -> InlineStage:
    return InlineStage(
        name,
        nn.Sequential(first.layer, last.layer),
        begins=(first, as_map),
        ends=(last, lambda output: as_map(*output)),
        forwards={first: compute, last: hand_on},
    )


@pytest.fixture(autouse=True)
def known(monkeypatch) -> None:
    monkeypatch.setattr(inline, "_builders", {})

    @inline.register_inline_stages(f"{__name__}.Inline")
    def stages(model: Inline) -> Sequence[InlineStage]:
        return stage("analysis", model.first, model.second), stage("synthesis", model.third, model.fourth)


@pytest.fixture
def model() -> Inline:
    torch.manual_seed(0)
    return Inline().eval()


def test_they_are_found_with_their_scales(model) -> None:
    found = survey(model)
    scales = {stage.name: stage.input_scale for stage in found.stages}
    assert scales == {"analysis": Fraction(1), "synthesis": Fraction(1, 4)}
    assert found.multiple == 4
    assert [len(stage.network.ops) for stage in found.stages] == [3, 3]
    assert survey(model, only="synthesis").stages[0].module[1] is model.fourth.layer
    with pytest.raises(OptionError, match="as `stage`: synthesis, analysis"):
        survey(model, only="first")


@torch.no_grad()
def test_they_run_in_tiles_and_the_class_keeps_its_forward(model) -> None:
    image = textured(72, 56)
    with exact_kernels():
        expected = model(image)["x_hat"]
    tiled = wrap(model, tile=20)
    assert torch.equal(tiled(image)["x_hat"], expected)
    other = copy.deepcopy(tiled)
    assert torch.equal(other(image)["x_hat"], expected)
    assert other.first.forward.stage[0] is other.first.layer
    unwrap(tiled, inplace=True)
    with exact_kernels():
        assert torch.equal(tiled(image)["x_hat"], expected)
    assert not any("forward" in vars(part) for part in tiled.modules())


def another_layer(model: Inline) -> None:
    model.second.layer = copy.deepcopy(model.second.layer)


def another_part(model: Inline) -> None:
    model.second = copy.deepcopy(model.second)
    vars(model.second).pop("forward", None)


@torch.no_grad()
@pytest.mark.parametrize("change", [another_layer, another_part])
def test_other_modules_in_a_wrapped_model_are_refused(model, change) -> None:
    """The stage would be computed by the old ones; or twice, where a new part computes its share again."""
    image = textured(72, 56)
    tiled = wrap(model, tile=20)
    change(tiled)
    with pytest.raises(TraceError, match=r"second .*made of other modules"):
        tiled(image)
    change(model)
    with exact_kernels():
        expected = model(image)["x_hat"]
    assert torch.equal(wrap(unwrap(tiled), tile=20)(image)["x_hat"], expected)


@torch.no_grad()
def test_other_weights_in_a_wrapped_model_count(model) -> None:
    image = textured(72, 56)
    tiled = wrap(model, tile=20)
    tiled(image)
    for each in (model, tiled):
        each.second.layer.weight.mul_(2)
    with exact_kernels():
        assert torch.equal(tiled.double()(image.double())["x_hat"], model.double()(image.double())["x_hat"])


def test_verify_holds_them_to_the_class_itself(model) -> None:
    certificate = verify(model, tiles=[24], size=(96, 64), ablate=True)
    assert certificate.holds
    compared = {check.stage for check in certificate.checks if check.name == "stage-equality"}
    assert compared == {"analysis", "synthesis"}
    ablated = [check for check in certificate.checks if check.name == "ablation"]
    assert all(check.figures["differing"] for check in ablated if check.stage)


@torch.no_grad()
def test_what_they_get_and_give_is_seen_in_the_class_itself(model) -> None:
    image = textured(32, 24)
    with watched_stages(survey(model).stages) as seen:
        model(image)
    assert torch.equal(seen["analysis"].input, image)
    assert torch.equal(seen["analysis"].outputs["output"], model.second.layer(model.first.layer(image)))
    y_hat = model.entropy_bottleneck(8 * seen["analysis"].outputs["output"])[0]
    assert torch.equal(seen["synthesis"].input, y_hat)
    assert torch.equal(seen["synthesis"].outputs["output"], model(image)["x_hat"])


def test_a_class_that_computes_something_else_is_refused() -> None:
    with pytest.raises(TraceError, match="computes something else than what is registered for analysis and"):
        wrap(Inline(skip=True).eval(), tile=16)


def test_a_class_derived_from_a_known_one_is_not_taken_for_it() -> None:
    class Derived(Inline):
        pass

    assert inline.stages_of(Derived()) == ()
    found = survey(Derived().eval()).stages
    assert [stage.name for stage in found] == ["first.layer", "second.layer", "third.layer", "fourth.layer"]


def test_a_class_is_registered_once() -> None:
    with pytest.raises(PluginError, match="registered already"):
        inline.register_inline_stages(f"{__name__}.Inline")(lambda model: ())
