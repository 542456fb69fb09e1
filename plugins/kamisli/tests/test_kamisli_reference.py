"""The definition gives what the authors' own models give: keys, shapes, and outputs for weights by formula.

`reference/*.keys.json` have every key, type and shape of the authors' state dicts. `reference/*.pt` have maps
of 7 rows of 16 blocks and what the authors' code made of them in float64, cut from 12 rows: no output reads a
row below its own, so what is left is what the first 7 rows alone would give.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.small_models import small_model
from support.weights_by_formula import relative_error, weights_by_formula
from torch._subclasses.fake_tensor import FakeTensorMode

from overlap_tool import checkpoint

REFERENCE = Path(__file__).parent / "reference"
FILES = {"kamisli": "kamisli-hps1", "kamisli-hps2": "kamisli-hps2"}
RELATIVE_ERROR = 1e-6
TABLES = ("_quantized_cdf", "_offset", "_cdf_length", "scale_table")

names = pytest.mark.parametrize("name", FILES)


@names
def test_keys_and_shapes_are_the_authors(name: str) -> None:
    known = checkpoint.find(name)
    with FakeTensorMode():
        state = known.build(**known.default).state_dict()
    keys = json.loads((REFERENCE / f"{FILES[name]}.keys.json").read_text())
    assert {key: list(tensor.shape) for key, tensor in state.items()} == {
        key: shape for key, (_, shape) in keys.items()
    }
    assert list(state) == list(keys)


@names
@torch.no_grad()
def test_outputs_are_the_authors(name: str) -> None:
    known = checkpoint.find(name)
    model = known.build(**known.default).double().eval()
    model.load_state_dict(weights_by_formula(model.state_dict()))
    given = torch.load(REFERENCE / f"{FILES[name]}.pt", weights_only=True)
    x, known_blocks = given["x"].double(), given["zhat"].double()
    latents = model.analysis(known_blocks, x)
    found = {
        "y": latents,
        "meanscale": model.get_meanscale(known_blocks),
        "xhat": model.networks["synthesis"](torch.cat([known_blocks, latents.round()], 1)),
    }
    assert found.keys() == given.keys() - {"x", "zhat"}
    for output, values in found.items():
        assert relative_error(values, given[output].double()) < RELATIVE_ERROR, output


@names
@pytest.mark.parametrize("updated", [True, False], ids=["with CDFs", "without"])
def test_a_checkpoint_as_the_authors_save_it(name: str, updated: bool, tmp_path) -> None:
    """Under `state_dict0`, beside what training needs, and with CDFs or without."""
    model = small_model(name)
    state = model.state_dict()
    if not updated:
        state = {key: tensor[:0] if key.endswith(TABLES) else tensor for key, tensor in state.items()}
    saved = {"epoch": 252, "state_dict0": state, "optimizer": {"lr": torch.tensor(1e-4)}}
    torch.save(saved, tmp_path / "model_best_acl_Xrr.pth.tar")
    loaded = checkpoint.load_checkpoint(tmp_path / "model_best_acl_Xrr.pth.tar")
    assert loaded.architecture == name
    assert loaded.arguments == checkpoint.find(name).small
    found = loaded.model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())


@names
def test_it_is_recognised_as_itself_only(name: str) -> None:
    state = small_model(name).state_dict()
    assert [other for other in checkpoint.names() if checkpoint.find(other).detect(state)] == [name]


@names
@pytest.mark.parametrize(
    "arguments", [{"N": 1280, "M": 192, "block": 16}, {"N": 512, "M": 96, "block": 4}, {"N": 40, "M": 3}]
)
def test_arguments_are_read_from_the_shapes(name: str, arguments: dict[str, int]) -> None:
    """Of the paper's codecs with blocks of 16 and 4 pixels, too."""
    known = checkpoint.find(name)
    arguments = {**known.small, **arguments}
    with FakeTensorMode():
        state = known.build(**arguments).state_dict()
    assert checkpoint.detect(state).name == name
    assert known.arguments(state) == arguments
