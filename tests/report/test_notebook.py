"""What a notebook or a prompt shows of a model, its plans and what was found of it."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch
from support.small_models import small_model
from torch import nn

import overlap_tool
from overlap_tool import report
from overlap_tool.errors import OptionError


def test_a_wrapped_model_says_that_it_is_wrapped_and_how() -> None:
    model = small_model("mbt2018-mean")
    tiled = overlap_tool.wrap(model, tile=(64, 32), schedule="tiles")
    first, second = repr(tiled).splitlines()[:2]
    assert (first, second.strip()) == ("MeanScaleHyperprior(", "in tiles of 64x32, tiles")
    overlap_tool.rewrap(tiled, overlap_tool.Settings(tile=(16, 16), engine="stock"))
    assert repr(tiled).splitlines()[1].strip() == "in tiles of 16x16, stock kernels"
    assert repr(overlap_tool.unwrap(tiled)) == repr(model)
    assert "in tiles" not in repr(model)


def test_a_layer_keeps_what_it_says_of_itself() -> None:
    layer = nn.Conv2d(3, 8, 3).eval()
    with overlap_tool.tiled(layer, memory="1MiB"):
        assert repr(layer) == "Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), in tiles within 1048576 bytes)"
        with torch.no_grad():
            layer(torch.rand(1, 3, 16, 16))
    assert repr(layer) == "Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))"


@pytest.fixture(scope="module")
def shown() -> dict[str, object]:
    model = small_model("mbt2018-mean")
    return {
        "analysis": overlap_tool.analyze(model, size=(128, 96), tiles=[32]),
        "certificate": overlap_tool.verify(model, tiles=[64], stage="h_s"),
        "plans": overlap_tool.plans(overlap_tool.wrap(model, tile=32), (128, 96)),
    }


def test_reprs_are_short_and_telling(shown) -> None:
    assert repr(shown["analysis"]) == (
        "Analysis(MeanScaleHyperprior, an image of 128x96, stages g_a, g_s, h_a, h_s)"
    )
    assert repr(shown["analysis"].stages[0]).startswith("StageReport(g_a, Edges(left=30, right=15, top=30,")
    assert repr(shown["certificate"]).startswith("Certificate(MeanScaleHyperprior holds: ")
    plan = repr(shown["plans"]["g_a"])
    assert "tile=Size(width=32, height=32), tiles=20, passes=1" in plan
    assert len(plan) < 300


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("analysis", ["an image of 128x96", "30/15", "h_s"]),
        ("certificate", ["stage-equality", "holds", "h_s"]),
        ("plans", ["MeanScaleHyperprior tile by tile, for an image of 128x96", "32x32", "g_a"]),
    ],
)
def test_notebooks_show_tables(shown, name: str, told: list[str]) -> None:
    html = shown[name]._repr_html_()
    text = "\n".join(ElementTree.fromstring(html.replace("<br>", "<br/>")).itertext())
    assert all(part in text for part in told)
    assert "<style" not in html


def test_pictures_of_a_stage_are_shown_as_they_are(shown) -> None:
    stage = shown["analysis"].stages[0]
    svg = report.picture(stage, "graph")._repr_svg_()
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert svg == report.svg_files(shown["analysis"])["g_a-graph.svg"].decode()
    assert report.picture(stage, "passes") is None
    with pytest.raises(OptionError, match="Use graph, tile, passes, joins, costs"):
        report.picture(stage, "colour")
