"""The authors' own classes, by stand-ins under the same qualified names."""

from __future__ import annotations

import copy
import importlib
import json
from functools import cache
from pathlib import Path
from types import ModuleType

import overlap_tool_stf
import pytest
import torch
from support.textures import textured
from torch import nn

from overlap_tool import checkpoint, exact_kernels, unwrap, wrap
from overlap_tool.checkpoint.fitting import fit
from overlap_tool.errors import TraceError, TrainingModeError
from overlap_tool.graph.trace import trace
from overlap_tool.models.stages import survey
from overlap_tool.settings import Settings
from overlap_tool.wrapping.retrofit import plans, rewrap

SMALL = {"embed_dim": 6, "depths": [2, 1, 2, 1], "heads": [1, 2, 3, 4], "slices": 2}
STAND_IN = Path(__file__).parent / "stand_in"
schedules = pytest.mark.parametrize("schedule", ["stream", "tiles"])


@pytest.fixture
def theirs(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STAND_IN))
    return importlib.import_module("authors_stf")


@cache
def ours() -> nn.Module:
    return checkpoint.seeded_model(overlap_tool_stf.STF, SMALL)


@pytest.fixture
def model(theirs) -> nn.Module:
    """Their STF, on the weights of ours."""
    model = theirs.SymmetricalTransFormer(**SMALL)
    fit(model, ours().state_dict(), "ours")
    return model.eval()


@schedules
@pytest.mark.parametrize("shift", [0, 2, 3])
@torch.no_grad()
def test_wacnns_attention_in_tiles_has_the_bits_of_the_whole_map(shift: int, schedule, theirs) -> None:
    torch.manual_seed(0)
    kind = theirs.WinBasedAttention
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, 2, 2), kind(8, 2, 4, shift), nn.Conv2d(8, 8, 3, padding=1), kind(8, 4, 4, 2)
    ).eval()
    assert len(trace(model, "").shifted) == 1 + (shift > 0)
    x = torch.randn(2, 3, 64, 80)
    with exact_kernels():
        expected = model(x)
    assert torch.equal(wrap(model, tile=24, schedule=schedule)(x), expected)


# --- STF, whose transforms stand inline in its methods ----------------------------------------------------


def test_stages_of_their_class_are_those_of_ours(model) -> None:
    theirs, known = survey(model), survey(ours())
    assert [stage.name for stage in theirs.stages] == [stage.name for stage in known.stages]
    assert [stage.name for stage in theirs.stages][:2] == ["g_a", "g_s"]
    for stage, same in zip(theirs.stages, known.stages, strict=True):
        assert stage.input_scale == same.input_scale
        assert stage.network.rows.reaches()[-1] == same.network.rows.reaches()[-1]
    assert theirs.multiple == known.multiple
    assert survey(model, only="g_s").stages[0].name == "g_s"


@torch.no_grad()
def test_their_class_in_tiles_gives_its_own_bits_bytes_and_image(model) -> None:
    image = textured(128, 64).repeat(2, 1, 1, 1) * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1)
    with exact_kernels():
        forward, coded = model(image), model.compress(image)
        decoded = model.decompress(coded["strings"], coded["shape"])["x_hat"]
    tiled = wrap(model)
    assert type(tiled) is type(model)
    for schedule in ("stream", "tiles"):
        rewrap(tiled, Settings(tile=(64, 48), schedule=schedule))
        found = tiled(image)
        assert torch.equal(found["x_hat"], forward["x_hat"]), schedule
        assert torch.equal(found["likelihoods"]["y"], forward["likelihoods"]["y"]), schedule
        assert tiled.compress(image)["strings"] == coded["strings"], schedule
        assert torch.equal(tiled.decompress(**coded)["x_hat"], decoded), schedule


@torch.no_grad()
def test_what_is_wrapped_is_the_users_own_model(model) -> None:
    """No weight is a copy, nothing is added to the state dict, and all can be taken back."""
    image = textured(128, 64)
    keys = list(model.state_dict())
    tiled = wrap(model, tile=64)
    assert list(tiled.state_dict()) == keys
    assert {"g_a", "g_s"} <= plans(tiled, (128, 64)).keys()
    assert "forward" not in vars(model.patch_embed)
    other = copy.deepcopy(tiled).double().float()
    weights = {
        key: tensor * 1.5 if tensor.is_floating_point() else tensor
        for key, tensor in model.state_dict().items()
    }
    nn.Module.load_state_dict(other, weights)
    plain = unwrap(other)
    assert not any("forward" in vars(part) for part in plain.modules())
    with exact_kernels():
        expected = plain(image)["x_hat"]
        assert not torch.equal(expected, model(image)["x_hat"])
    assert torch.equal(other(image)["x_hat"], expected)
    tiled.train()
    with pytest.raises(TrainingModeError, match="g_a"):
        tiled(image)


def test_the_command_line_verifies_their_class(theirs, model, run, tmp_path) -> None:
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "stf.pth"
    )
    own = ["--model", "authors_stf:SymmetricalTransFormer", "--kwargs", json.dumps(SMALL)]
    code, out, err = run(
        "verify", tmp_path / "stf.pth", *own, "--tile", "64", "--size", "192x64", "--stage", "g_a"
    )
    assert code == 0, out + err
    assert "holds" in out
    code, out, err = run("wrap", tmp_path / "stf.pth", *own, "--tile", "64", "--size", "192x64")
    assert code == 0, err


def test_a_class_that_computes_something_else_is_refused(theirs) -> None:
    other = theirs.SymmetricalTransFormer(**SMALL, gain=1.5).eval()
    with pytest.raises(TraceError, match="computes something else than what is registered") as caught:
        survey(other)
    assert caught.value.where == "SymmetricalTransFormer (compressai.models.stf)"


def test_parts_are_what_their_own_code_says(theirs, model) -> None:
    model.end_conv[0] = nn.Conv2d(6, 24, 9, padding=4)
    ops = survey(model, only="g_s").stages[0].network.ops[1:]
    assert [op.rule.kernel for op in ops if op.kind == "Conv2d"] == [(9, 9), (3, 3)]


@torch.no_grad()
def test_a_class_derived_from_theirs_is_not_taken_for_it(theirs) -> None:
    derived = type("Derived", (theirs.SymmetricalTransFormer,), {})(**SMALL).eval()
    assert {"g_a", "g_s"}.isdisjoint(stage.name for stage in survey(derived).stages)
    image = textured(128, 64)
    with exact_kernels():
        expected = derived(image)["x_hat"]
    assert torch.equal(wrap(derived, tile=64)(image)["x_hat"], expected)
