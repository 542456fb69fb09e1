"""What the command line refuses, it refuses with the next thing to type; and that works.

Each mistake stands beside the line that the refusal leads to. Every word that is new in that line has to be
in the refusal, and the line has to run.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import numpy
import pytest
import torch
import typer.main
from PIL import Image
from support.small_models import small_model

import overlap_tool
from overlap_tool import checkpoint, cli
from overlap_tool.checkpoint import registry
from overlap_tool.errors import PluginError

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]

OWN = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, width=4):
        super().__init__(nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1))


class Deep(Net):
    def __init__(self, width):
        super().__init__(width)


def make(width=4):
    return Net(width)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    (folder / "models").mkdir()
    codec = small_model("mbt2018-mean")
    torch.save(codec.state_dict(), folder / "models" / "codec.pt")
    tiled = overlap_tool.wrap(codec, tile=64)
    overlap_tool.save(tiled, folder / "codec.tiled.pt", "mbt2018-mean", checkpoint.find("mbt2018-mean").small)
    (folder / "notes.txt").write_text("not a checkpoint at all")
    (folder / "nets").mkdir()
    (folder / "nets" / "own_net.py").write_text(OWN)
    wide = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 3, padding=1))
    torch.save(wide.state_dict(), folder / "wide.pt")
    torch.save(wide, folder / "whole.pt")
    pixels = numpy.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=numpy.uint8)
    Image.fromarray(pixels[..., :3], "RGB").save(folder / "photo.png")
    Image.fromarray(pixels, "RGBA").save(folder / "clear.png")
    return folder


@pytest.fixture
def here(written, monkeypatch) -> Path:
    monkeypatch.chdir(written)
    return written


@pytest.fixture
def refused(run, here):
    """The one message of a line that is refused."""

    def go(line: str) -> str:
        code, out, err = run(*shlex.split(line))
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert len(err.strip().splitlines()) == 1
        return err

    return go


OF_OWN = "--model nets.own_net:Net"


@pytest.mark.parametrize(
    ("mistake", "meant"),
    [
        ("analyze models/codex.pt", "analyze models/codec.pt"),
        ("analyze models", "analyze models/codec.pt"),
        ("analyze zoo:bmshj2018-factorised --stage g_s", "analyze zoo:bmshj2018-factorized --stage g_s"),
        ("analyze bmshj2018-factorized --stage g_s", "analyze zoo:bmshj2018-factorized --stage g_s"),
        ("analyze whole.pt --stage 0", "analyze whole.pt --stage 0 --trust"),
        ("analyze models/codec.pt --arch mbt2018-means", "analyze models/codec.pt --arch mbt2018-mean"),
        ("analyze models/codec.pt --stage g_x", "analyze models/codec.pt --stage g_s"),
        ("analyze models/codec.pt --size 640", "analyze models/codec.pt --size 3840x2160"),
        (f"wrap {OF_OWN} -o x/own.pt", "mkdir -p x"),
        ("analyze models/codec.pt --stage h_s --html x/page.html", "mkdir -p x"),
        ("analyze models/codec.pt --stage h_s --svg x/pictures", "mkdir -p x"),
        (f"wrap {OF_OWN} -o own.pt --tile 0", f"wrap {OF_OWN} -o own.pt --tile 256"),
        (f"wrap {OF_OWN} -o own.pt --memory much", f"wrap {OF_OWN} -o own.pt --memory 2GiB"),
        (f"verify {OF_OWN} --tile 32 --device abacus", f"verify {OF_OWN} --tile 32 --device cpu"),
        ("analyze --model nets.own_net.Net", f"analyze {OF_OWN}"),
        ("analyze --model nets/own_net.py:Net", f"analyze {OF_OWN}"),
        ("analyze --model ./nets/own_net.py:Net", f"analyze {OF_OWN}"),
        ("analyze --model nets.own_net:Nett", f"analyze {OF_OWN}"),
        ("compress photo.png --model models/codec.pt -o x.lic", "wrap models/codec.pt"),
        ("compress photo.png --model codec.tild.pt", "compress photo.png --model codec.tiled.pt"),
        ("compress photo.png --model zoo:bmshj2018-factorized -o x.lic", "wrap zoo:bmshj2018-factorized"),
        ("run photo.png --model codec.tiled.pt -o x.png", "compress photo.png --model codec.tiled.pt"),
    ],
)  # fmt: skip
def test_a_refusal_leads_to_a_line_that_works(refused, run, here, mistake, meant) -> None:
    told = refused(mistake).replace("?", " ").replace(",", " ")
    new = set(shlex.split(meant)) - set(shlex.split(mistake))
    assert new
    assert new <= set(told.split()), told
    if meant.startswith("mkdir"):
        (here / "x").mkdir()
        code, _, err = run(*shlex.split(mistake))
        for path in sorted((here / "x").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (here / "x").rmdir()
    else:
        code, _, err = run(*shlex.split(meant))
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        ("analyze", "zoo:mbt2018"),
        ("analyze nowhere.pt", "zoo:mbt2018"),
        ("analyze notes.txt", "zoo:mbt2018"),
        ("analyze nets.own_net:Deep", "--model nets.own_net:Deep"),
        ("analyze wide.pt", "--model pkg.module:Class and --kwargs '{\"width\": 64}'"),
        ("analyze zoo:mbt2018@x", "zoo:mbt2018@3"),
        ("analyze --model nowhere:Net", "run in the folder that contains it"),
        ("analyze --model Net", "--model pkg.module:Class"),
        ("analyze --model nets.own_net:Deep", "the arguments of Deep(width) with --kwargs"),
        ("analyze --model nets.own_net:Deep", "or name a function that makes the model"),
        (f"analyze wide.pt {OF_OWN}", "the arguments of Net(width=4) with --kwargs"),
        ("wrap whole.pt --trust", "wrap WEIGHTS.pt --model torch.nn.modules.container:Sequential"),
        ("verify models/codec.pt --tile 4096 --size 64x64 --stage h_s", "smaller --tile"),
        (f"verify {OF_OWN} --tile 32 --report {'x' * 300}", "another folder"),
        ("compress clear.png --model codec.tiled.pt -o x.lic", "convert('RGB')"),
        ("compress nowhere.png --model codec.tiled.pt -o x.lic", "Check the path"),
        ("decompress photo.png --model codec.tiled.pt -o x.png", "overlap-tool compress"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_to_type(refused, mistake, named) -> None:
    assert named in refused(mistake)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_cuda_leads_to_the_cpu(refused) -> None:
    assert "Use --device cpu" in refused("verify models/codec.pt --device cuda")


@pytest.mark.parametrize("source", ["models/codec.pt", OF_OWN])
def test_the_memory_that_is_asked_for_is_enough(refused, run, source) -> None:
    """For every stage, not only for the first that is short."""
    line = f"wrap {source} -o small.pt --size 512x384"
    enough = re.search(r"Give (--memory \d+MiB)", refused(f"{line} --memory 1kB"))
    assert enough is not None
    assert run(*shlex.split(f"{line} {enough[1]}"))[0] == 0


def test_of_two_that_fit_either_can_be_named(refused, run, monkeypatch) -> None:
    known = checkpoint.find("mbt2018-mean")
    twin = dataclasses.replace(known, name="twin")
    monkeypatch.setattr(registry, "_architectures", {**registry._architectures, "twin": twin})
    assert "--arch mbt2018-mean or --arch twin" in refused("analyze models/codec.pt")
    assert run("analyze", "models/codec.pt", "--arch", "twin")[0] == 0


def test_a_wrapped_model_whose_plugin_is_missing(refused, here) -> None:
    payload = torch.load(here / "codec.tiled.pt", weights_only=True)
    torch.save({**payload, "architecture": "elsewhere"}, here / "elsewhere.tiled.pt")
    for line in ("compress photo.png -o x.lic --model", "analyze"):
        assert "Install the plugin that knows it" in refused(f"{line} elsewhere.tiled.pt")


# --- wrapped models are taken wherever checkpoints are -----------------------------------------------------


def test_a_wrapped_class_of_ones_own_is_known_by_its_file(run, here) -> None:
    assert run("wrap", *OF_OWN.split(), "--kwargs", '{"width": 6}', "--tile", "32", "-o", "own.pt")[0] == 0
    code, out, err = run("analyze", "own.pt", "--trust")
    assert (code, err) == (0, "")
    assert "nets.own_net:Net(width=6)" in out
    code, out, err = run("verify", "own.pt", "--model", "nets.own_net:Net")
    assert (code, err) == (0, "")
    assert "holds" in out
    assert run("wrap", "own.pt", "--tile", "64", "--trust")[0] == 0
    assert overlap_tool.load("own.tiled.pt", trust=True)[0].out_channels == 6


def test_a_file_names_classes_of_modules_and_calls_nothing_else(run, here) -> None:
    """Whatever is called with arguments of a hostile file would be as good as code in it."""
    assert run("wrap", *OF_OWN.split(), "-o", "own.pt")[0] == 0
    payload = torch.load("own.pt", weights_only=True)
    for named in ("os:mkdir", "pathlib:Path.mkdir", "nets.own_net:make"):
        torch.save({**payload, "architecture": named, "arguments": {"path": "ran"}}, "evil.pt")
        with pytest.raises(PluginError, match=r"not the class of a torch\.nn\.Module"):
            overlap_tool.load("evil.pt", trust=True)
        assert run("analyze", "evil.pt", "--trust")[0] == 2
        assert not (here / "ran").exists()
    code, _, err = run("wrap", "--model", "nets.own_net:make", "-o", "made.pt")
    assert code == 2
    assert "--model pkg.module:Class" in err
    assert not (here / "made.pt").exists()


def test_a_wrapped_model_that_claims_more_than_it_stores_is_refused(run, here) -> None:
    payload = torch.load("codec.tiled.pt", weights_only=True)
    huge = {"g_a.0.weight": torch.ones(1).expand(1 << 20, 1 << 20)}
    torch.save({**payload, "state_dict": huge}, "huge.pt")
    code, _, err = run("compress", "photo.png", "--model", "huge.pt")
    assert code == 2
    assert "claims the shape" in err


# --- nothing is suggested that there is not ----------------------------------------------------------------


OF_OTHER_PROGRAMS = {
    "nvrtc.py": {"--fmad", "--ftz", "--gpu-architecture", "--prec-div", "--prec-sqrt", "--std"},
}


def test_commands_and_options_that_are_named_in_the_code_exist() -> None:
    command = typer.main.get_command(cli.app)
    commands = set(command.commands)
    options = {
        option
        for part in (command, *command.commands.values())
        for parameter in part.params
        for option in parameter.opts
    } | {"--help"}
    for path in sorted((ROOT / "overlap_tool").rglob("*.py")):
        text = path.read_text()
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
        assert named <= options | OF_OTHER_PROGRAMS.get(path.name, set()), path
        run = set(re.findall(r"overlap-tool ([a-z]+)", text))
        assert run - {"and"} <= commands, path
