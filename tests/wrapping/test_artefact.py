"""The file that `wrap` writes, and the command that writes it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.networks import PlainCnn
from support.small_models import small_model

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.errors import CheckpointError, OptionError, PluginError, UntrustedClassError
from overlap_tool.files import Codec
from overlap_tool.files.formats import container
from overlap_tool.wrapping.retrofit import tiled_stages


@pytest.fixture
def tiled_path(run, tmp_path) -> Path:
    source = tmp_path / "model.pt"
    torch.save(small_model("mbt2018-mean").state_dict(), source)
    code, out, err = run("wrap", "--tile", "32x64", source)
    assert (code, err) == (0, "")
    assert "g_a" in out
    return tmp_path / "model.tiled.pt"


def _change(path: Path, **changes: object) -> None:
    payload = torch.load(path, weights_only=True)
    torch.save({**payload, **changes}, path)


def test_the_file_gives_the_model_back(tiled_path) -> None:
    tiled = overlap_tool.load(tiled_path)
    assert not tiled.training
    (settings,) = {stage.settings for stage in tiled_stages(tiled).values()}
    assert settings.tile == (32, 64)
    image = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    expected = overlap_tool.wrap(small_model("mbt2018-mean"), tile=(32, 64))
    with torch.no_grad():
        assert torch.equal(tiled(image)["x_hat"], expected(image)["x_hat"])
        compressed = tiled.compress(image)
        assert compressed == expected.compress(image)
        assert torch.equal(
            tiled.decompress(**compressed)["x_hat"], expected.decompress(**compressed)["x_hat"]
        )


def test_the_file_is_plain_data_that_names_its_overlaps(tiled_path) -> None:
    payload = torch.load(tiled_path, weights_only=True)
    assert payload["architecture"] == "mbt2018-mean"
    assert payload["overlaps"]["g_a"] == [30, 15, 30, 15]
    assert payload["tool"] == overlap_tool.__version__


def test_the_file_is_a_checkpoint_like_any_other(tiled_path) -> None:
    assert overlap_tool.analyze(tiled_path).architecture == "mbt2018-mean"


def test_changed_weights_are_refused(tiled_path) -> None:
    state = torch.load(tiled_path, weights_only=True)["state_dict"]
    state["g_a.0.bias"][0] += 1
    _change(tiled_path, state_dict=state)
    with pytest.raises(CheckpointError, match="weights are not those"):
        overlap_tool.load(tiled_path)


@pytest.mark.parametrize("version", ["1", True, 1.0, None, [1], torch.tensor(1), torch.zeros(3)])
def test_a_version_of_the_wrong_type_is_refused(tiled_path, version) -> None:
    """A newer tool would not read it either."""
    _change(tiled_path, version=version)
    with pytest.raises(CheckpointError, match=r"malformed \('version'\)\. Write it again"):
        overlap_tool.load(tiled_path)


@pytest.mark.parametrize(
    "written", [1, b"overlap-tool/tiled", ["overlap-tool/tiled"], torch.zeros(3)], ids=repr
)
def test_a_format_of_the_wrong_type_is_none(tiled_path, written) -> None:
    _change(tiled_path, format=written)
    with pytest.raises(CheckpointError, match="was not written by overlap-tool wrap"):
        overlap_tool.load(tiled_path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tile": (0, 0)}, r"settings cannot be used \(tile=0: a tile's sides are"),
        ({"tile": ([1], [2])}, r"settings cannot be used \(tile=\(\[1\], \[2\]\)"),
        ({"tile": torch.zeros(2)}, "settings cannot be used"),
        ({"engine": "fast"}, r"settings cannot be used \(engine='fast'"),
        ({"schedule": ["tiles"]}, "settings cannot be used"),
        ({"batch": -1}, "settings cannot be used"),
        ({"memory": 5}, "settings cannot be used"),
        ({"colour": "red"}, "settings are not known here"),
    ],
)
def test_settings_in_a_file_are_not_told_as_options(tiled_path, run, settings, reason) -> None:
    payload = torch.load(tiled_path, weights_only=True)
    _change(tiled_path, settings={**payload["settings"], **settings})
    with pytest.raises(CheckpointError, match=f"{re.escape(str(tiled_path))}: its {reason}.*Write it again"):
        overlap_tool.load(tiled_path)
    code, _, err = run("verify", tiled_path)
    assert code == 2
    assert err.startswith(f"error: {tiled_path}: its settings")
    assert "--" not in err.replace(str(tiled_path), "")


def test_an_unknown_version_is_refused(tiled_path) -> None:
    _change(tiled_path, version=99)
    with pytest.raises(CheckpointError, match="version 99"):
        overlap_tool.load(tiled_path)


@pytest.mark.parametrize("missing", ["architecture", "arguments", "settings", "state_dict", "weights_sha256"])
def test_a_missing_part_is_named(tiled_path, missing) -> None:
    payload = torch.load(tiled_path, weights_only=True)
    del payload[missing]
    torch.save(payload, tiled_path)
    with pytest.raises(CheckpointError, match=missing):
        overlap_tool.load(tiled_path)


@pytest.mark.parametrize(
    "settings", [{"tile": (0, 0)}, {"tile": (8, 8), "color": 3}, {"tile": "8"}, {"tile": 8}, {}]
)
def test_hostile_settings_are_refused(tiled_path, settings) -> None:
    _change(tiled_path, settings=settings)
    with pytest.raises((CheckpointError, OptionError)):
        overlap_tool.load(tiled_path)


def test_an_unknown_architecture_is_refused(tiled_path) -> None:
    _change(tiled_path, architecture="mbt2081")
    with pytest.raises(OptionError, match="mbt2018"):
        overlap_tool.load(tiled_path)


def test_a_checkpoint_that_was_not_wrapped_is_refused(tmp_path) -> None:
    path = tmp_path / "plain.pt"
    torch.save(small_model("mbt2018-mean").state_dict(), path)
    with pytest.raises(CheckpointError, match="overlap-tool wrap"):
        overlap_tool.load(path)


def test_saving_what_is_not_wrapped_is_refused(tmp_path) -> None:
    with pytest.raises(OptionError, match="wrap"):
        overlap_tool.save(PlainCnn(), tmp_path / "x.pt", "support.networks:PlainCnn", {})


@pytest.mark.parametrize("arguments", [None, {}, {"width": 7}, {"depth": 6}])
def test_saving_with_other_arguments_than_those_of_the_model_is_refused(tmp_path, arguments) -> None:
    """The file was written, and no `load` could read it."""
    tiled = overlap_tool.wrap(PlainCnn(6).eval(), tile=16)
    with pytest.raises(OptionError, match=r"^arguments=.*support\.networks:PlainCnn was constructed$"):
        overlap_tool.save(tiled, tmp_path / "x.pt", "support.networks:PlainCnn", arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_class_has_changed_says_so(tmp_path) -> None:
    tiled = overlap_tool.wrap(PlainCnn(6).eval(), tile=16)
    overlap_tool.save(tiled, tmp_path / "x.pt", "support.networks:PlainCnn", {"width": 6})
    _change(tmp_path / "x.pt", arguments={"depth": 6})
    with pytest.raises(PluginError, match="Use the code of the model that was saved, or save it again"):
        overlap_tool.load(tmp_path / "x.pt", trust=True)


def test_a_class_of_ones_own_comes_back_by_its_path(run, tmp_path) -> None:
    target = tmp_path / "own.tiled.pt"
    options = ("--model", "support.networks:PlainCnn", "--kwargs", '{"width": 6}', "--tile", "24")
    code, _, err = run("wrap", *options, "-o", target)
    assert (code, err) == (0, "")
    tiled = overlap_tool.load(target, trust=True)
    assert type(tiled) is PlainCnn
    assert tiled.head.out_channels == 6
    assert torch.load(target, weights_only=True)["architecture"] == "support.networks:PlainCnn"


@pytest.fixture
def foreign(tmp_path, monkeypatch) -> Path:
    """The working folder: a wrapped model, and the module that it names, which leaves a mark."""
    model = overlap_tool.wrap(PlainCnn(6).eval(), tile=16)
    overlap_tool.save(model, tmp_path / "net.tiled.pt", "support.networks:PlainCnn", {"width": 6})
    _change(tmp_path / "net.tiled.pt", architecture="marking:Net")
    code = "from pathlib import Path\nfrom support.networks import PlainCnn as Net\nPath('mark').touch()\n"
    (tmp_path / "marking.py").write_text(code)
    torch.save(small_model("mbt2018-mean").state_dict(), tmp_path / "codec.pt")
    (tmp_path / "plugin.py").touch()
    np.save(tmp_path / "grey.npy", np.zeros((32, 32), np.uint8))
    nothing = container.Head("net", "", 32, 32, 1, (0, 0, 0, 0), "uint8", {}, [], [], ())
    with (tmp_path / "it.lic").open("wb") as file:
        container.write(file, nothing, [])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    monkeypatch.delitem(sys.modules, "marking", raising=False)
    yield tmp_path
    sys.modules.pop("marking", None)


@pytest.mark.parametrize(
    "line",
    ["analyze net.tiled.pt", "verify net.tiled.pt --tile 16", "wrap net.tiled.pt --tile 8 -o again.pt",
     "run grey.npy --model net.tiled.pt -o out.npy", "compress grey.npy --model net.tiled.pt -o out.lic",
     "decompress it.lic --model net.tiled.pt -o out.png", "analyze net.tiled.pt --plugin plugin.py",
     "run grey.npy --model net.tiled.pt -o out.npy --plugin plugin.py"],
)  # fmt: skip
def test_no_code_that_a_file_names_runs_untrusted(run, foreign, line) -> None:
    code, _, err = run(*line.split())
    assert code == 2
    assert "net.tiled.pt: its model is a marking:Net" in err
    assert "--trust" in err
    assert not (foreign / "mark").exists()


def test_nor_does_it_in_python(foreign) -> None:
    sys.path.insert(0, str(foreign))
    for read in (overlap_tool.load, checkpoint.load_checkpoint, overlap_tool.analyze, Codec.load):
        with pytest.raises(UntrustedClassError, match="trust=True"):
            read("net.tiled.pt")
    assert not (foreign / "mark").exists()


@pytest.mark.parametrize("line", ["analyze net.tiled.pt", "run grey.npy --model net.tiled.pt -o out.npy"])
def test_trust_alone_does_not_make_the_working_folder_one_of_modules(run, foreign, line) -> None:
    code, _, err = run(*line.split(), "--trust")
    assert code == 2
    assert "PYTHONPATH" in err
    assert not (foreign / "mark").exists()
    sys.path.append(str(foreign))
    assert run(*line.split(), "--trust")[::2] == (0, "")
    assert (foreign / "mark").exists()


@pytest.mark.parametrize(
    "line",
    ["analyze net.tiled.pt --model marking:Net", "analyze net.tiled.pt --trust --plugin plugin.py",
     "run grey.npy --model net.tiled.pt -o out.npy --trust --plugin plugin.py"],
)  # fmt: skip
def test_it_runs_where_the_user_names_it(run, foreign, line) -> None:
    """By the arguments that the file has, unless others are given: the default width does not fit."""
    assert run(*line.split())[::2] == (0, "")
    assert (foreign / "mark").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--tile", "0"], "--tile 0: "),
        (["--tile", "-5"], "--tile -5"),
        (["--tile", "2.5"], "--tile 2.5"),
        (["--tile", "256", "--memory", "1GiB"], "--memory"),
        (["--memory", "1KiB"], "needs at least"),
        (["--memory", "lots"], "2GiB"),
        (["--tile", "64", "--schedule", "spiral"], "stream"),
        (["--tile", "64", "--store", "cloud"], "disk"),
    ],
)
def test_bad_options_leave_no_file(run, tmp_path, options, named) -> None:
    target = tmp_path / "out.tiled.pt"
    code, _, err = run("wrap", "zoo:mbt2018-mean", *options, "-o", target)
    assert code == 2
    assert named in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_named(run, tmp_path) -> None:
    code, _, err = run("wrap", "zoo:mbt2018-mean", "-o", tmp_path / "nowhere" / "x.pt")
    assert code == 2
    assert "nowhere" in err


WRITER = """
import sys, torch
from overlap_tool.checkpoint import save_atomically
print("ready", flush=True)
while True:
    save_atomically({"state_dict": {"w": torch.full((4_000_000,), 2.0)}}, sys.argv[1])
"""


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path) -> None:
    path = tmp_path / "model.tiled.pt"
    for moment in (0.0, 0.03, 0.11):
        checkpoint.save_atomically({"state_dict": {"w": torch.full((4_000_000,), 1.0)}}, path)
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, cwd=tmp_path
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(moment)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        weights = torch.load(path, weights_only=True)["state_dict"]["w"]
        assert bool((weights == weights[0]).all())
        assert weights[0] in (1.0, 2.0)
