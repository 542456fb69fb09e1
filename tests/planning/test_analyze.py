"""`overlap_tool.analyze` and its reports."""

from __future__ import annotations

import dataclasses
import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support.networks import PlainCnn
from support.small_models import small_model

import overlap_tool
from overlap_tool import checkpoint, report
from overlap_tool.errors import OptionError
from overlap_tool.planning.analysis import Analysis
from overlap_tool.report.terminal import show

SCHEMA = Path(__file__).parents[2] / "docs" / "schema.md"


@pytest.fixture(scope="module")
def analysis(tmp_path_factory) -> Analysis:
    path = tmp_path_factory.mktemp("analyze") / "mbt2018.pt"
    torch.save(small_model("mbt2018").state_dict(), path)
    return overlap_tool.analyze(path)


def test_a_path_and_a_module_give_the_same_stages(analysis) -> None:
    assert overlap_tool.analyze(small_model("mbt2018")).stages == analysis.stages
    assert analysis.architecture == "mbt2018"
    assert analysis.arguments == dict(checkpoint.find("mbt2018").small)


def test_the_report_is_frozen_and_plain(analysis) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        analysis.stages[0].left = 0
    assert analysis.stages[0].scale == Fraction(1, 16)


def test_json_has_the_documented_keys(analysis) -> None:
    told = json.loads(report.FORMATS["json"](analysis))
    assert told["schema"] == 1
    assert told["architecture"] == "mbt2018"
    stage = told["stages"][0]
    expected = {"name": "g_a", "scale": "1/16", "left": 30, "right": 15, "top": 30, "bottom": 15}
    expected |= {"period": 16, "status": "proved", "receptive_field": 61}
    assert {key: stage[key] for key in expected} == expected
    assert stage["layers"][0]["name"] == "g_a.0"
    assert stage["layers"][0]["op"] == "Conv2d"
    assert [tile["tile"] for tile in stage["tiles"]] == [128, 256, 512, 1024]

    documented = set(re.findall(r"^\| `(\w+)` \|", SCHEMA.read_text(), flags=re.M))
    segment, layer, tile = stage["segments"][0], stage["layers"][0], stage["tiles"][0]
    reads = segment["reads"][0]
    for part in (told, stage, segment, reads, layer, layer["exact"], tile, stage["chosen"]):
        assert set(part) <= documented, set(part) - documented


def test_published_and_exact_overlaps_differ_for_even_kernels() -> None:
    """The recursion assumes "same" padding and an output padding of stride - 1, which `up` (k2 s2) lacks: it
    asks for one sample right of `up`, doubled here, where 0 would do."""
    layer = next(found for found in overlap_tool.analyze(PlainCnn()).stages[0].layers if found.name == "down")
    assert layer.kernel == (4, 4)
    assert (layer.left, layer.right) == (2 * 1 + 1, 2 * (1 + 1) + (4 - 1 - 1) - (2 - 1))
    assert (layer.exact.left, layer.exact.right) == (3, 3)


def test_a_kernel_is_as_wide_and_as_high_as_its_field() -> None:
    """Tables print kernels, fields and images alike: width, then height."""
    network = torch.nn.Conv2d(1, 1, (3, 5), (1, 2), (1, 2)).eval()
    stage = overlap_tool.analyze(network, size=(64, 32), tiles=[16]).stages[0]
    layer = stage.layers[0]
    assert layer.kernel == (layer.receptive_field, layer.receptive_field_rows) == (5, 3)
    assert (layer.stride.width, layer.stride.height) == (2, 1)
    assert "| 5x3 | 2x1 |" in report.FORMATS["markdown"](overlap_tool.analyze(network))


def test_the_image_is_padded_to_what_the_model_accepts(analysis) -> None:
    assert analysis.image == (3840, 2160)
    assert analysis.padded == (3840, 2176)


def test_a_tile_as_large_as_the_image_costs_what_the_image_costs() -> None:
    stage = overlap_tool.analyze(small_model("mbt2018"), size=(512, 512), tiles=[512, 4096]).stages[0]
    for tile in stage.tiles:
        assert (tile.count, tile.macs, tile.overhead) == (1, stage.full_macs, 1.0)
        # the executor drops the input once it is read, where the caller of the model still holds it
        held_input = 3 * 512 * 512 * 4
        assert stage.full_peak_bytes - held_input <= tile.peak_bytes <= stage.full_peak_bytes


@pytest.mark.parametrize("options", [{"size": (0, 5)}, {"size": (5, -1)}, {"tiles": [0]}, {"tiles": [-256]}])
def test_impossible_sizes_are_refused(options) -> None:
    with pytest.raises(OptionError):
        overlap_tool.analyze(PlainCnn(), **options)


def test_the_terminal_report_names_every_stage_and_layer(analysis) -> None:
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    show(analysis, console, all_ops=True)
    text = console.export_text()
    for stage in analysis.stages:
        assert all(layer.name in text for layer in stage.layers)
    assert "30/15" in text


def test_markdown_is_tables(analysis) -> None:
    text = report.FORMATS["markdown"](analysis)
    assert "| g_a.0 | Conv2d | 5 | 2 | 1/2 | 30/15 |" in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("| g_a.")]
    assert len(set(widths)) == 1


def test_dot_has_an_edge_into_every_layer(analysis) -> None:
    text = report.FORMATS["dot"](analysis)
    for stage in analysis.stages:
        for layer in stage.layers:
            assert f'-> "{layer.name}"' in text
    assert text.count("{") == text.count("}")


def test_streams_cost_what_their_plans_cost(analysis) -> None:
    """Against the plans of a wrapped model, which is what runs."""
    tiled = overlap_tool.wrap(small_model("mbt2018"), tile=128)
    for stage in analysis.stages:
        plan = overlap_tool.plans(tiled, analysis.padded)[stage.name]
        stream = stage.streams[0]
        assert (stream.tile, stream.count, stream.macs) == (128, plan.tiles, plan.macs)
        assert stream.overhead <= 1.0
        assert stream.peak_bytes <= plan.working_bytes  # which has the exact engine's weights in it


def test_the_choice_is_that_of_wrap(analysis) -> None:
    tiled = overlap_tool.wrap(small_model("mbt2018"))
    small = overlap_tool.wrap(small_model("mbt2018"), memory="220MB")
    bounded = overlap_tool.analyze(small_model("mbt2018"), memory="220MB")
    for found, model in ((analysis, tiled), (bounded, small)):
        for stage in found.stages:
            plan, chosen = overlap_tool.plans(model, found.padded)[stage.name], stage.chosen
            assert (chosen.schedule, (chosen.cost.tile,) * 2) == (plan.schedule, plan.tile)
            assert chosen.bounded_bytes == plan.peak_bytes
    assert {stage.chosen.cost.tile for stage in bounded.stages} != {256}
    with pytest.raises(OptionError, match="needs at least"):
        overlap_tool.analyze(small_model("mbt2018"), memory=1000)
