"""The command line: output, help, and one clear message with exit code 2 for everything refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.small_models import small_model

from overlap_tool import cli


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "mbt2018.pt"
    torch.save(small_model("mbt2018").state_dict(), path)
    return path


def test_analyze_prints_tables(run, checkpoint_path) -> None:
    code, out, err = run("analyze", checkpoint_path)
    assert (code, err) == (0, "")
    assert "mbt2018" in out
    assert "30/15" in out


def test_json_is_the_only_thing_on_stdout(run, checkpoint_path) -> None:
    code, out, _ = run("analyze", checkpoint_path, "--format", "json", "--stage", "g_s", "--size", "640x480")
    assert code == 0
    told = json.loads(out)
    assert [stage["name"] for stage in told["stages"]] == ["g_s"]
    assert told["image"] == [640, 480]


def test_a_wrapped_model_is_analysed_as_its_checkpoint(run, checkpoint_path, tmp_path) -> None:
    wrapped = tmp_path / "it.tiled.pt"
    assert run("wrap", checkpoint_path, "--tile", 64, "-o", wrapped)[0] == 0
    how = ("--size", "256x128", "--format", "json")
    of_wrapped, of_checkpoint = (run("analyze", path, *how) for path in (wrapped, checkpoint_path))
    assert of_wrapped[:2] == of_checkpoint[:2]
    assert json.loads(of_wrapped[1])["stages"]


@pytest.mark.parametrize("format", ["markdown", "dot"])
def test_other_formats(run, checkpoint_path, format) -> None:
    code, out, _ = run("analyze", checkpoint_path, "--format", format)
    assert code == 0
    assert "g_a.0" in out


def test_every_command_has_an_example_in_its_help(run) -> None:
    for command in cli.app.registered_commands:
        code, out, _ = run(command.callback.__name__, "--help")
        assert code == 0
        assert f"overlap-tool {command.callback.__name__} " in out
        assert "[[" not in out  # a name that was written with brackets got others


def test_help_and_version_do_not_import_torch() -> None:
    probe = "import sys; sys.argv = ['overlap-tool', {!r}]\nfrom overlap_tool import cli\n" + (
        "try: cli.main()\nfinally: assert 'torch' not in sys.modules\n"
    )
    for option in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", probe.format(option)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "offered"), [("overlap-tool an", "analyze"), ("overlap-tool verify --sch", "--schedule")]
)
def test_shells_complete_commands_and_options(words, offered) -> None:
    """As the script that `overlap-tool --install-completion` sets up for bash asks for it."""
    asked = {
        "_OVERLAP_TOOL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(
        [Path(sys.executable).with_name("overlap-tool")],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.split()) == (0, [offered]), done.stderr


def test_a_class_of_ones_own(run, tmp_path) -> None:
    from support.networks import PlainCnn

    path = tmp_path / "plain.pt"
    torch.save({"state_dict": PlainCnn(width=6).state_dict(), "epoch": 3}, path)
    code, out, _ = run(
        "analyze",
        path,
        "--model",
        "support.networks:PlainCnn",
        "--kwargs",
        '{"width": 6}',
        "--format",
        "json",
    )
    assert code == 0
    assert json.loads(out)["architecture"] == "support.networks:PlainCnn"


class Malicious:
    """Unpickling it writes a file."""

    marker = ""

    def __reduce__(self):
        return (open, (Malicious.marker, "w"))


def _malicious(tmp_path: Path) -> Path:
    Malicious.marker = str(tmp_path / "ran")
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"state_dict": Malicious()}))
    return path


def _truncated(tmp_path: Path) -> Path:
    whole = io.BytesIO()
    torch.save(small_model("mbt2018").state_dict(), whole)
    path = tmp_path / "short.pt"
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    return path


def _changed(tmp_path: Path, key: str, value: torch.Tensor) -> Path:
    path = tmp_path / "changed.pt"
    torch.save({**small_model("mbt2018").state_dict(), key: value}, path)
    return path


def _empty(tmp_path: Path) -> Path:
    path = tmp_path / "empty.pt"
    path.touch()
    return path


def _text(tmp_path: Path) -> Path:
    path = tmp_path / "notes.pt"
    path.write_text("not a checkpoint at all")
    return path


def _unknown(tmp_path: Path) -> Path:
    path = tmp_path / "unknown.pt"
    torch.save(
        {"backbone.stem.weight": torch.zeros(4, 3, 3, 3), "g_a.0.weight": torch.zeros(4, 3, 5, 5)}, path
    )
    return path


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda folder: folder / "missing.pt", ["missing.pt"]),
        (lambda folder: folder, ["directory"]),
        (_empty, ["empty.pt", "empty"]),
        (_truncated, ["short.pt"]),
        (_text, ["notes.pt"]),
        (_malicious, ["evil.pt", "--trust"]),
        (_unknown, ["unknown.pt", "backbone", "nearest"]),
        (lambda folder: _changed(folder, "g_a.2.bias", torch.zeros(7)), ["g_a.2.bias"]),
        (lambda folder: _changed(folder, "g_a.2.bias", torch.full((8,), float("nan"))), ["g_a.2.bias"]),
        (lambda folder: "zoo:mbt2081", ["mbt2018"]),
    ],
    ids="missing directory empty truncated text malicious unknown shape nan zoo-name".split(),
)
def test_bad_checkpoints(run, tmp_path, make, named) -> None:
    code, out, err = run("analyze", make(tmp_path))
    _assert_one_message(code, out, err, named)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("UnknownOp", ["special_bessel_j0", "no rule", "--plugin"]),
        ("NormalisedByTheBatch", ["norm (BatchNorm2d)", "every output depends on every input"]),
        ("DataDependentBranch", ["values of its input"]),
        ("ListsPositions", ["other values"]),
    ],
)
def test_networks_that_cannot_be_analyzed(run, name, named) -> None:
    code, out, err = run("analyze", "--model", f"support.networks:{name}")
    _assert_one_message(code, out, err, named)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--size", "big"], ["--size big", "3840x2160"]),
        (["--size", "0x10"], ["--size 0x10"]),
        (["--stage", "g_x"], ["--stage g_x", "g_a"]),
        (["--arch", "mbt2081"], ["mbt2018"]),
        (["--arch", "cheng2020-anchor"], ["g_a"]),
        (["--kwargs", "{"], ["--kwargs"]),
        (["--kwargs", "[" * 30_000], ["--kwargs", "is not JSON"]),
        (["--kwargs", '{"N": 1%s}' % ("0" * 5000)], ["--kwargs", "is not JSON"]),
        (["--plugin", "nowhere.py"], ["nowhere.py"]),
    ],
)
def test_bad_options(run, checkpoint_path, options, named) -> None:
    code, out, err = run("analyze", checkpoint_path, *options)
    _assert_one_message(code, out, err, named)


def test_nothing_to_analyze(run) -> None:
    code, out, err = run("analyze")
    _assert_one_message(code, out, err, ["zoo:"])


def test_debug_shows_the_traceback(monkeypatch, capsys, tmp_path) -> None:
    from overlap_tool.errors import CheckpointError

    monkeypatch.setattr(sys, "argv", ["overlap-tool", "analyze", str(tmp_path / "missing.pt"), "--debug"])
    with pytest.raises(CheckpointError):
        cli.main()


def test_a_plugin_file_teaches_an_op(run, tmp_path, own_rules) -> None:
    plugin = tmp_path / "bessel.py"
    plugin.write_text(
        "import torch\n"
        "from overlap_tool.rules import Rule, register_rule\n"
        "@register_rule(torch.special.bessel_j0, override=True)\n"
        "def bessel(call, input):\n"
        "    return Rule(lambda patches, input: torch.special.bessel_j0(input))\n"
    )
    code, out, err = run(
        "analyze", "--model", "support.networks:UnknownOp", "--plugin", plugin, "--format", "json"
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["stages"][0]["layers"][-1]["op"] == "special_bessel_j0"


@pytest.mark.parametrize("content", ["1 / 0", "this is not python", "import nowhere_at_all"])
def test_a_broken_plugin_is_named(run, checkpoint_path, tmp_path, content) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(content)
    code, out, err = run("analyze", checkpoint_path, "--plugin", plugin)
    _assert_one_message(code, out, err, ["broken.py"])


def _assert_one_message(code: int, out: str, err: str, named: list[str]) -> None:
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    for word in named:
        assert re.search(re.escape(word), err), (word, err)


@pytest.fixture(scope="module")
def rated_path(tmp_path_factory) -> Path:
    """A model that takes a rate index, or by another method a second map."""
    from support.networks import Rated

    path = tmp_path_factory.mktemp("rated") / "rated.pt"
    torch.manual_seed(0)
    torch.save(Rated().state_dict(), path)
    return path


RATED = ("--model", "support.networks:Rated")
WEIGH = ("--method", "weigh", "--example", '{"x": {"map": 3}, "weight": {"map": 1}, "steps": [2, 3]}')


@pytest.mark.parametrize("call", [("--example", '{"qp": 2}'), WEIGH], ids=["a parameter", "a method of maps"])
def test_models_that_take_more_than_an_image(run, rated_path, tmp_path, call) -> None:
    wrapped = tmp_path / "rated.tiled.pt"
    assert run("wrap", rated_path, *RATED, *call, "--tile", 16, "--size", "64x48", "-o", wrapped)[0] == 0
    how = ("--size", "64x48", "--format", "json")
    of_weights = run("analyze", rated_path, *RATED, *call, *how)
    assert of_weights[0] == 0
    assert run("analyze", wrapped, "--trust", *how)[:2] == of_weights[:2]
    assert run("analyze", wrapped, *RATED, *how)[:2] == of_weights[:2]
    certificates = [tmp_path / f"{name}.json" for name in ("weights", "wrapped")]
    for path, source in zip(certificates, ((rated_path, *RATED, *call), (wrapped, "--trust")), strict=True):
        assert run("verify", *source, "--tile", 16, "--report", path)[0] == 0
    of_weights, of_wrapped = (json.loads(path.read_text()) for path in certificates)
    assert of_weights["checks"] == of_wrapped["checks"]
    assert {check["name"] for check in of_weights["checks"] if check["status"] == "passed"} == {
        "stage-equality",
        "minimality",
        "model-equality",
    }


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (("--example", "[3]"), "--example [3]: is not a JSON object"),
        (("--example", '{"x": {"map": 0}}'), '--example {"map": 0}: is no map'),
        (("--method", "train"), "--method train: is no method of Rated"),
        (("--example", '{"pq": 3}'), "pq"),
    ],
)
def test_calls_that_are_none(run, rated_path, call, told) -> None:
    code, out, err = run("analyze", rated_path, *RATED, *call)
    assert (code, out) == (2, "")
    assert told in err
