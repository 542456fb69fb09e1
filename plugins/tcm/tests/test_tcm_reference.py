"""The definition gives what the authors' own model gives: keys, shapes, and outputs for weights by formula.

`reference/tcm-n64.keys.json` has every key and shape of the authors' state dict. `tcm-n64.pt` has an image
and what their code made of it in float64: of large maps 2000 places, drawn at random, and small ones whole.
"""

from __future__ import annotations

import json
from pathlib import Path

import overlap_tool_tcm
import pytest
import torch
from support.weights_by_formula import relative_error, weights_by_formula
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from overlap_tool import checkpoint

REFERENCE = Path(__file__).parent / "reference"
KEYS: dict[str, list[int]] = json.loads((REFERENCE / "tcm-n64.keys.json").read_text())
RELATIVE_ERROR = 1e-6


def shapes(**arguments) -> checkpoint.StateDict:
    """The state dict of such a model, in tensors without memory."""
    with FakeTensorMode():
        return overlap_tool_tcm.ARCHITECTURE.build(**arguments).state_dict()


def test_keys_and_shapes_are_the_authors() -> None:
    assert {key: list(tensor.shape) for key, tensor in shapes(N=64).items()} == KEYS


@torch.no_grad()
def test_outputs_are_the_authors() -> None:
    reference = torch.load(REFERENCE / "tcm-n64.pt", weights_only=True)
    model = overlap_tool_tcm.ARCHITECTURE.build(N=64).double().eval()
    model.load_state_dict(weights_by_formula(model.state_dict()))
    found: dict[str, Tensor] = {}
    outputs = {"g_a": "y", "h_a": "z", "h_mean_s": "h_mean_s", "h_scale_s": "h_scale_s"}
    for stage, name in outputs.items():
        model.get_submodule(stage).register_forward_hook(
            lambda module, inputs, output, name=name: found.update({name: output})
        )
    # The medians are 0 here, so that the hyper-syntheses are given z as rounded.
    coded = model(reference["x"].double())
    found["x_hat"] = coded["x_hat"]
    for name, likelihoods in coded["likelihoods"].items():
        found[f"bits.{name}"] = -likelihoods.log2().sum()
    found["x_hat_of_rounded_y"] = model.g_s(found["y"].round())
    assert found.keys() == reference.keys() - {"x"}
    for name, output in found.items():
        assert relative_error(output, reference[name]) < RELATIVE_ERROR, name


OTHERS = [
    {"N": 64},
    {"N": 96},
    {"N": 128},
    {"N": 64, "config": [1, 3, 2, 2, 4, 1], "head_dim": [16, 8, 64, 32, 16, 32]},
    {"N": 32, "M": 60, "config": [1, 1, 1, 1, 1, 1], "slices": 10, "z": 32, "prediction": [64, 32]},
]


@pytest.mark.parametrize("arguments", OTHERS)
def test_arguments_are_read_from_the_shapes(arguments) -> None:
    state = shapes(**arguments)
    default = overlap_tool_tcm.ARCHITECTURE.default
    assert overlap_tool_tcm.ARCHITECTURE.arguments(state) == {**default, **arguments}
    assert checkpoint.detect(state).name == "tcm"
