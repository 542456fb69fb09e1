"""Both definitions give what the authors' own models give: keys, shapes, and outputs for weights by formula.

`reference/*.keys.json` have every key and shape of the authors' state dicts, in order, and `*.pt` what their
code made of `image.pt` in float64: of large maps 2000 places, drawn at random, and small ones whole.
"""

from __future__ import annotations

import json
from pathlib import Path

import overlap_tool_stf
import pytest
import torch
from support.weights_by_formula import relative_error, weights_by_formula
from torch._subclasses.fake_tensor import FakeTensorMode

from overlap_tool import checkpoint
from overlap_tool.checkpoint.fitting import fit, respell

REFERENCE = Path(__file__).parent / "reference"
RELATIVE_ERROR = 1e-6
KNOWN = {known.name: known for known in (overlap_tool_stf.STF, overlap_tool_stf.WACNN)}

both = pytest.mark.parametrize("name", KNOWN)


def keys(name: str) -> dict[str, list[int]]:
    return json.loads((REFERENCE / f"{name}.keys.json").read_text())


def their_state(name: str) -> checkpoint.StateDict:
    """A state dict with the authors' keys and shapes, in tensors without memory."""
    with FakeTensorMode():
        return {key: torch.empty(shape) for key, shape in keys(name).items()}


@both
def test_keys_and_shapes_are_the_authors(name: str) -> None:
    """But for the spelling of the bottleneck's keys, in which CompressAI's versions differ."""
    known = KNOWN[name]
    with FakeTensorMode():
        model = known.build(**known.default)
    ours = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    respelled = {key: list(tensor.shape) for key, tensor in respell(their_state(name), model).items()}
    assert ours == respelled
    bottleneck = "entropy_bottleneck."
    assert [key for key in ours if bottleneck not in key] == [
        key for key in keys(name) if bottleneck not in key
    ]


@both
def test_their_checkpoints_are_recognised(name: str) -> None:
    state = their_state(name)
    assert [other for other in checkpoint.names() if checkpoint.find(other).detect(state)] == [name]
    assert KNOWN[name].arguments(state) == KNOWN[name].default


@pytest.mark.slow
@both
@torch.no_grad()
def test_outputs_are_the_authors(name: str) -> None:
    known = KNOWN[name]
    model = known.build(**known.default).double().eval()
    with_their_keys = dict(zip(respell(their_state(name), model), keys(name), strict=True))
    state = {with_their_keys[key]: tensor for key, tensor in model.state_dict().items()}
    fit(model, weights_by_formula(state), name)
    image = torch.load(REFERENCE / "image.pt", weights_only=True).double()
    found = {"y": model.g_a(image)}
    found["z"] = model.h_a(found["y"])
    found["h_mean_s"], found["h_scale_s"] = (
        stage(found["z"].round()) for stage in (model.h_mean_s, model.h_scale_s)
    )
    found["x_hat_of_rounded_y"] = model.g_s(found["y"].round())
    coded = model(image)
    found["forward.x_hat"] = coded["x_hat"]
    for part, likelihoods in coded["likelihoods"].items():
        found[f"forward.bits.{part}"] = -likelihoods.log2().sum()
    expected = torch.load(REFERENCE / f"{name}.pt", weights_only=True)
    assert found.keys() == expected.keys()
    for part, output in found.items():
        assert relative_error(output, expected[part]) < RELATIVE_ERROR, part
