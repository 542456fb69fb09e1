"""`verify --against`: whether another machine computed the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.small_models import small_model

import overlap_tool
from overlap_tool.errors import OptionError

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"tiles": [32], "schedules": ["tiles"], "size": (128, 64)}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint, and a certificate of it."""
    folder = tmp_path_factory.mktemp("there")
    torch.save(small_model("bmshj2018-hyperprior").state_dict(), folder / "it.pt")
    found = overlap_tool.verify(folder / "it.pt", **OPTIONS)
    (folder / "it.json").write_text(overlap_tool.report.certificate_to_json(found))
    return folder / "it.pt", folder / "it.json"


def altered(path: Path, change, into: Path) -> Path:
    told = json.loads(path.read_text())
    change(told)
    into.write_text(json.dumps(told))
    return into


COMMAND = ("--tile", "32", "--schedule", "tiles", "--size", "128x64")


def test_the_same_bits_elsewhere(run, theirs) -> None:
    code, out, _ = run("verify", theirs[0], *COMMAND, "--against", theirs[1])
    assert code == 0
    assert "bits of arithmetic 1\n" in out
    told = json.loads(theirs[1].read_text())
    assert told["arithmetic"] == "1"
    assert set(told["images"][0]["digests"]) == {
        *("g_a", "h_a", "h_s", "g_s", "x_hat", "likelihoods.y", "likelihoods.z", "strings")
    }
    assert f"8 digests as on {told['machine']['device']}" in out


def test_other_bits_elsewhere_are_named(run, theirs, tmp_path) -> None:
    def change(told) -> None:
        told["machine"]["device"] = "another"
        told["images"][0]["digests"]["x_hat"] = "0"

    other = altered(theirs[1], change, tmp_path / "other.json")
    code, out, _ = run("verify", theirs[0], *COMMAND, "--against", other)
    assert code == 1
    assert "other bits than on another: x_hat" in out


REFUSED = {
    "of the weights": lambda told: told.update(weights_sha256="0" * 64),
    "those of arithmetic 2": lambda told: told.update(arithmetic="2"),
    "does not have the image": lambda told: told["images"][0].update(sha256="0"),
    "KeyError: 'arithmetic'": lambda told: told.pop("arithmetic"),
    "is no text": lambda told: told["machine"].update(device=3),
    "AttributeError": lambda told: told["images"][0].update(digests=[]),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_says_nothing_of_this_is_bad_input(reason: str, theirs, tmp_path) -> None:
    other = altered(theirs[1], REFUSED[reason], tmp_path / "other.json")
    with pytest.raises(OptionError, match=reason) as error:
        overlap_tool.verify(theirs[0], **OPTIONS, against=other)
    assert error.value.where.startswith("against=")


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, "{}", "\x00"])
def test_what_is_no_certificate(run, content, theirs, tmp_path) -> None:
    (tmp_path / "no.json").write_text(content)
    code, _, err = run("verify", theirs[0], *COMMAND, "--against", tmp_path / "no.json")
    assert code == 2
    assert "no digest can be read of it" in err
    assert "--against" in err
