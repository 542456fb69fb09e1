"""Sizes and choices: what is accepted, what is refused, and what the command line offers."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import get_args

import pytest
import torch
from support.networks import PlainCnn

import overlap_tool
from overlap_tool import Size, cli, settings
from overlap_tool.errors import OptionError
from overlap_tool.settings import Settings


def test_settings_are_known_without_torch() -> None:
    code = "import sys, overlap_tool.settings; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


@pytest.mark.parametrize("size", [Size(48, 32), (48, 32), [48, 32]])
def test_a_size_is_a_width_and_a_height_everywhere(size) -> None:
    model = PlainCnn().eval()
    report = overlap_tool.analyze(model, size=size, tiles=[16])
    assert (report.image.width, report.image.height) == (48, 32)
    tiled = overlap_tool.wrap(model, tile=(24, 16))
    assert overlap_tool.settings_of(tiled).tile == Size(width=24, height=16)
    (plan,) = overlap_tool.plans(tiled, size).values()
    assert (plan.tile, plan.output_size) == (Size(24, 16), Size(48, 32))
    with torch.no_grad():
        assert tiled(torch.rand(1, 1, 32, 48)).shape[-2:] == (32, 48)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5,), 5, (1, 2, 3), (2.5, 4), "48x32", (True, 4)])
def test_what_is_no_size_is_refused_by_the_name_of_the_parameter(size) -> None:
    model = PlainCnn().eval()
    tiled = overlap_tool.wrap(model, tile=16)
    for use in (
        lambda: overlap_tool.analyze(model, size=size),
        lambda: overlap_tool.plans(tiled, size),
        lambda: overlap_tool.verify(model, tiles=[16], size=size),
    ):
        with pytest.raises(OptionError, match=r"^size=.*is not the size of an image"):
            use()


def test_a_tile_may_be_one_number_or_two() -> None:
    assert Settings(tile=(8, 8)).tile == Size.of_tile(8, "tile") == Size(8, 8)
    assert str(Size(1024, 256)) == "1024x256"
    with pytest.raises(OptionError, match=r"^tiles=\(8, 0\): "):
        overlap_tool.verify(PlainCnn().eval(), tiles=[16, (8, 0)])


CHOICES = {
    ("wrap", "schedule"): {*get_args(settings.Schedule), *get_args(settings.Order)},
    ("wrap", "store"): {*get_args(settings.Store)},
    ("wrap", "engine"): {*get_args(settings.Engine)},
    ("verify", "schedule"): {*get_args(settings.Schedule), *get_args(settings.Order), "both"},
    ("run", "dtype"): {*get_args(settings.SampleType)},
    ("analyze", "format"): {*get_args(settings.ReportFormat)},
}


@pytest.mark.parametrize(("command", "option"), CHOICES)
def test_shells_complete_choices(command: str, option: str, monkeypatch, capsys) -> None:
    words = f"overlap-tool {command} --{option} "
    monkeypatch.setenv("_OVERLAP_TOOL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", "3")
    with pytest.raises(SystemExit):
        cli.app(prog_name="overlap-tool")
    assert set(capsys.readouterr().out.split()) == CHOICES[command, option]


@pytest.mark.parametrize("command", ["wrap", "verify", "run", "analyze"])
def test_help_lists_choices(command: str, run) -> None:
    printed = re.sub(r"[\s│]+", "", run(command, "--help")[1])
    for (of, _), choices in CHOICES.items():
        assert of != command or all(choice in printed for choice in choices)


@pytest.mark.parametrize("name", ["schedule", "store", "engine"])
def test_a_wrong_choice_is_refused_with_the_right_ones(name: str, run) -> None:
    code, _, told = run("wrap", "zoo:mbt2018", f"--{name}", "cloud")
    assert code == 2
    assert f"--{name}" in told
    assert all(choice in told for choice in CHOICES["wrap", name])
    with pytest.raises(OptionError, match=f"^{name}='cloud': is not one"):
        overlap_tool.wrap(PlainCnn().eval(), **{name: "cloud"})
