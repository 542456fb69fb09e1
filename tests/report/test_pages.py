"""The pages and pictures: well-formed, safe, every figure that of the analysis, and sound in a browser."""

from __future__ import annotations

import dataclasses
import re
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from support.browser import CHROMIUM, HOSTILE, Strict, in_browser
from support.small_models import small_model, small_survey
from torch import nn

import overlap_tool
from overlap_tool import report
from overlap_tool.geometry import Span
from overlap_tool.planning.analysis import Analysis, Edges, StageReport
from overlap_tool.report.maps import NOTHING, maps
from overlap_tool.report.pictures.anatomy import anatomy, joins, passes
from overlap_tool.report.pictures.costs import costs
from overlap_tool.report.pictures.drawing import NARROW, WIDE, Drawing
from overlap_tool.report.pictures.graph import graph, lanes_of
from overlap_tool.report.tables import in_units

CODEC = "cheng2020-anchor"
SVG = "{http://www.w3.org/2000/svg}"


@cache
def analyzed(architecture: str) -> Analysis:
    return overlap_tool.analyze(small_model(architecture), size=(1024, 768), tiles=[128, 256, 512])


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyzed(CODEC)


@pytest.fixture(scope="module")
def page(analysis) -> str:
    return report.to_html(analysis)


def _svg(drawing: Drawing) -> ElementTree.Element:
    return ElementTree.fromstring(drawing.alone())


def _texts(drawing: Drawing, kind: str = "") -> list[str]:
    shown = [text for text in _svg(drawing).iter(f"{SVG}text") if kind in (text.get("class") or "")]
    return ["".join([text.text or "", *(child.tail or "" for child in text)]) for text in shown]


def _titles(drawing: Drawing) -> list[str]:
    return [title.text or "" for title in _svg(drawing).iter(f"{SVG}title")]


# --- what the maps of a stage hold ------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["mbt2018", CODEC, "elic2022-official"])
def test_maps_hold_what_a_tile_needs_of_them(architecture) -> None:
    """Against the spans of one aligned tile, far from the border, by the geometry itself."""
    found = {stage.name: stage for stage in analyzed(architecture).stages}
    for stage in small_survey(architecture).stages:
        network, told = stage.network, maps(found[stage.name])
        index = {op.name: i for i, op in reversed(list(enumerate(network.ops)))}
        index |= {op.name: i for i, op in enumerate(network.ops) if i}
        spans = []
        for axis in (network.columns, network.rows):
            reaches = axis.reaches()
            period = 64 * max(reach.period.input for reach in reaches)
            core = [Span(int(period * r.scale), int(2 * period * r.scale)) for r in reaches]
            spans.append((core, axis.needs({len(axis.ops) - 1: core[-1]})))
        for row in told:
            for number in [index[name] for name in row.layers] or [0]:
                left, right, top, bottom = (
                    side
                    for core, needs in spans
                    for side in (
                        core[number].start - needs[number].start,
                        needs[number].stop - core[number].stop,
                    )
                )
                assert row.overlap == Edges(left, right, top, bottom)
            for source, crop in zip(row.inputs, row.crops, strict=True):
                held = index[told[source].layers[-1]] if told[source].layers else 0
                reads, op = [], network.ops[index[row.name]]
                for geometry, (_, needs) in zip((op.rule.columns, op.rule.rows), spans, strict=True):
                    need = geometry.need(needs[index[row.name]])
                    reads += [need.start - needs[held].start, needs[held].stop - need.stop]
                assert crop == Edges(*reads)
        listed = [name for row in told for name in row.layers]
        assert sorted(listed) == sorted(layer.name for layer in found[stage.name].layers)


def test_where_branches_meet_something_is_cropped(analysis) -> None:
    """The residual blocks of this codec: two convolutions of 3x3 beside a bare skip."""
    rows = maps(analysis.stages[0])
    crops = {
        (rows[i].name, row.name): crop for row in rows for i, crop in zip(row.inputs, row.crops, strict=True)
    }
    assert crops["g_a.0.iadd", "g_a.1.add"] == Edges(2, 2, 2, 2)
    assert crops["g_a.1.conv2", "g_a.1.add"] == NOTHING


@pytest.mark.parametrize("architecture", [CODEC, "elic2022-official"])
def test_a_lane_holds_one_map_at_a_time(architecture) -> None:
    for stage in analyzed(architecture).stages:
        rows = maps(stage)
        placed = lanes_of(rows)
        assert max(placed.of) < placed.count <= 6
        last = {source: number for number, row in enumerate(rows) for source in row.inputs}
        for number, lane in enumerate(placed.of):
            between = range(number + 1, last.get(number, number))
            assert lane not in [placed.of[other] for other in between]


class Gate(nn.Module):
    """Squeeze and excitation within a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 5, stride=2, padding=2)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.tail = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        head = self.head(x)
        features = self.conv(head)
        return head + self.tail(features * torch.sigmoid(self.pool(features)))


def test_each_pass_has_its_own_maps() -> None:
    (stage,) = overlap_tool.analyze(Gate().eval(), size=(256, 192), tiles=[64]).stages
    rows = maps(stage)
    told = [(row.segment, row.name, row.what, row.inputs, row.overlap.left) for row in rows]
    assert told == [
        (0, "Gate", "input", (), 4),  # 2 * 1 + 2: what the pass gives is aligned
        (0, "head", "Conv2d 5×5 stride 2", (0,), 1),
        (0, "conv", "Conv2d 3×3", (1,), 0),
        (1, "conv", "from its store", (2,), 1),
        (1, "head", "from its store", (1,), 0),
        (1, "mul", "mul", (3,), 1),
        (1, "tail", "Conv2d 3×3", (5,), 0),
        (1, "add", "add", (4, 6), 0),
    ]
    assert anatomy(stage) is None
    assert "once pool has read the whole map" in _texts(graph(stage))
    drawn = passes(stage)
    assert drawn is not None
    sides = [str(side) for row in rows[:1] + rows[3:5] for side in dataclasses.astuple(row.overlap)]
    assert _texts(drawn, "strong") == sides
    assert passes(analyzed("mbt2018").stages[0]) is None


def test_nothing_is_held_that_nobody_takes(analysis) -> None:
    """Of every map, and on every side, some reader takes all that a tile holds."""
    for stage in analysis.stages:
        rows = maps(stage)
        for number in range(len(rows) - 1):
            crops = [
                dataclasses.astuple(crop)
                for row in rows
                for source, crop in zip(row.inputs, row.crops, strict=True)
                if source == number
            ]
            assert [min(side) for side in zip(*crops, strict=True)] == [0, 0, 0, 0]


# --- what the pictures show -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_graph_names_every_layer_and_gives_its_overlap(analysis, width) -> None:
    for stage in analysis.stages:
        drawing = graph(stage, width)
        named = {name for title in _titles(drawing) for name in title.split(", ")}
        assert {layer.name for layer in stage.layers} <= named
        numbers = [text for text in _texts(drawing, "small") if text.isdigit()]
        rows = maps(stage)
        two = any((r.overlap.left, r.overlap.right) != (r.overlap.top, r.overlap.bottom) for r in rows)
        sides = [str(side) for row in rows for side in dataclasses.astuple(row.overlap)[: 4 if two else 2]]
        scales = [str(row.scale) for row in rows if row.scale.denominator == 1]
        assert sorted(numbers) == sorted(sides + scales)
        assert str(stage.left) in numbers


def test_bars_are_to_scale(analysis) -> None:
    stage = analysis.stages[0]
    bars = [
        float(rect.get("width"))
        for rect in _svg(graph(stage)).iter(f"{SVG}rect")
        if rect.get("class") == "before"
    ]
    lengths = [row.overlap.left / row.scale for row in maps(stage) if row.overlap.left]
    drawn = bars[1:]  # without the legend
    assert len(drawn) == len(lengths)
    for bar, length in zip(drawn, lengths, strict=True):
        assert bar / drawn[0] == pytest.approx(float(Fraction(length) / lengths[0]), abs=0.01)


def test_the_anatomy_gives_the_four_sides(analysis) -> None:
    for stage in analysis.stages:
        numbers = [text for text in _texts(anatomy(stage), "strong") if text.isdigit()]
        assert numbers == [str(side) for side in (stage.left, stage.right, stage.top, stage.bottom)]
    first = _texts(anatomy(analysis.stages[0]))
    assert "One tile reads 355×355 samples of the input" in first  # 57 + 256 + 42
    assert "and gives 16×16 samples of the output" in first


def test_every_cropping_join_is_drawn(analysis) -> None:
    drawn = joins(analysis.stages[0])
    assert drawn is not None
    assert [text for text in _texts(drawn, "code") if text.startswith("into")] == [
        f"into {number}.add" for number in (1, 3, 5)
    ]
    assert joins(analyzed("mbt2018").stages[0]) is None


def test_costs_are_those_of_the_analysis(analysis) -> None:
    for stage in analysis.stages:
        titles = _titles(costs(stage))
        for kind, series in (("tiles", stage.tiles), ("stream", stage.streams)):
            for tile in series:
                assert f"{kind}, tile {tile.tile}: {in_units(tile.peak_bytes)}" in titles
                assert f"{kind}, tile {tile.tile}: {tile.overhead:.3f} times the full image" in titles
        marks = [mark for mark in _svg(costs(stage)).iter(f"{SVG}circle") if mark.get("class") == "chosen"]
        dots = [
            dot
            for dot in _svg(costs(stage)).iter(f"{SVG}circle")
            if dot.get("class") == "stream-dot" and "tile 256:" in (dot[0].text or "")
        ]
        places = [(dot.get("cx"), dot.get("cy")) for dot in dots]
        assert [(mark.get("cx"), mark.get("cy")) for mark in marks[1:]] == places  # the first is the legend's


def test_nothing_leaves_the_sheet(analysis) -> None:
    for stage in analysis.stages:
        for width in (WIDE, NARROW):
            for draw in (graph, anatomy, joins, costs):
                drawing = draw(stage, width)
                for text in [] if drawing is None else _svg(drawing).iter(f"{SVG}text"):
                    length = 6.4 * len("".join(text.itertext()).rpartition("\n")[2]) if len(text) == 0 else 0
                    start = (
                        float(text.get("x", 0))
                        - {"end": 1, "middle": 0.5}.get(text.get("text-anchor"), 0) * length
                    )
                    assert start >= -1
                    assert start + length <= width + 12, text.text
                    assert 0 <= float(text.get("y", 0)) <= drawing.height


# --- the page ---------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(analysis, page) -> None:
    seen = Strict(page)
    assert "script" not in seen.tags
    assert len(seen.ids) == len(set(seen.ids)) == len(analysis.stages)
    links = [value for name, value in seen.attributes if name in ("href", "src", "xlink:href", "srcset")]
    assert links == [f"#{name}" for name in seen.ids]
    assert not any(name.startswith("on") for name, _ in seen.attributes)
    assert set(re.findall(r"https?://[^\"]*", page)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in page
    assert "@import" not in page
    for stage in analysis.stages:
        assert all(layer.name in seen.text for layer in stage.layers)
    assert "57/42" in seen.text


def _hostile(analysis: Analysis) -> Analysis:
    """The same with every name that a file could give made hostile."""

    def renamed(stage: StageReport) -> StageReport:
        return dataclasses.replace(
            stage,
            name=f"{HOSTILE}{stage.name}",
            segments=tuple(
                dataclasses.replace(
                    segment,
                    reads=tuple(
                        dataclasses.replace(read, name=f"{HOSTILE}{read.name}") for read in segment.reads
                    ),
                    barriers=tuple(f"{HOSTILE}{name}" for name in segment.barriers),
                    kept_whole=tuple(f"{HOSTILE}{name}" for name in segment.kept_whole),
                )
                for segment in stage.segments
            ),
            layers=tuple(
                dataclasses.replace(
                    layer,
                    name=f"{HOSTILE}{layer.name}",
                    op=f"{HOSTILE}{layer.op}",
                    inputs=tuple(f"{HOSTILE}{name}" for name in layer.inputs),
                )
                for layer in stage.layers
            ),
        )

    return dataclasses.replace(
        analysis,
        architecture=HOSTILE,
        arguments={HOSTILE: HOSTILE},
        weights_sha256=HOSTILE,
        stages=tuple(map(renamed, analysis.stages)),
    )


@pytest.mark.parametrize("barriers", [False, True])
def test_hostile_names_stay_text(analysis, barriers) -> None:
    found = overlap_tool.analyze(Gate().eval(), size=(256, 192), tiles=[64]) if barriers else analysis
    worse, page = report.to_html(_hostile(found)), report.to_html(found)
    assert Strict(worse).tags == Strict(page).tags
    assert [name for name, _ in Strict(worse).attributes] == [name for name, _ in Strict(page).attributes]
    worse.encode()
    assert not set("\x00\x1b\u202e\ud800") & set(worse)


def test_hostile_names_lead_to_no_other_file(analysis) -> None:
    odd = ["../../etc/passwd", "a/b", "..", "", "a b", "x" * 300, "a\x00b", "../../etc/passwd"]
    stages = tuple(dataclasses.replace(analysis.stages[4], name=name, layers=()) for name in odd)
    names = list(report.svg_files(dataclasses.replace(analysis, stages=stages)))
    assert len(names) == len({name.lower() for name in names}) == 3 * len(odd)
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,110}\.svg", name) for name in names)
    for content in report.svg_files(_hostile(analysis)).values():
        ElementTree.fromstring(content)


# --- the command line -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "mbt2018.pt"
    torch.save(small_model("mbt2018").state_dict(), path)
    return path


def test_files_are_written(run, checkpoint_path, tmp_path) -> None:
    options = ("--html", tmp_path / "page.html", "--svg", tmp_path / "pictures", "--memory", "200MB")
    code, out, err = run("analyze", checkpoint_path, "--stage", "g_a", *options)
    assert (code, err) == (0, "")
    assert "30/15" in out
    text = Strict((tmp_path / "page.html").read_text()).text
    assert "Marked is what wrap does: stream, tile 512." in text
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "g_a-costs.svg",
        "g_a-graph.svg",
        "g_a-tile.svg",
    ]


def test_png_is_the_picture_on_white(run, checkpoint_path, tmp_path) -> None:
    pytest.importorskip("resvg_py")
    from PIL import Image

    code, _, err = run("analyze", checkpoint_path, "--stage", "h_a", "--png", tmp_path)
    assert (code, err) == (0, "")
    for kind in ("graph", "tile", "costs"):
        with Image.open(tmp_path / f"h_a-{kind}.png") as picture:
            assert picture.width == 3 * WIDE
            colors = picture.convert("RGB").getcolors(1 << 20)
            assert picture.convert("RGB").getpixel((picture.width - 1, 1)) == (255, 255, 255)
            assert len(colors) > 20


def test_png_says_what_it_needs(run, checkpoint_path, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    code, out, err = run("analyze", checkpoint_path, "--stage", "h_a", "--png", tmp_path)
    assert (code, out) == (2, "")
    assert "resvg_py" in err
    assert "pip install 'overlap-tool[png]'" in err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--html", "nowhere/page.html"], "its folder does not exist"),
        (["--html", "."], "is a folder"),
        (["--svg", "nowhere/pictures"], "the folder above it does not exist"),
        (["--png", __file__], "is not a folder"),
        (["--memory", "lots"], "--memory lots"),
        (["--memory", "1kB"], "needs at least"),
    ],
)
def test_what_cannot_be_written_is_refused(
    run, checkpoint_path, tmp_path, monkeypatch, options, named
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("analyze", checkpoint_path, *options)
    assert (code, out) == (2, "")
    assert named in err
    assert list(tmp_path.iterdir()) == []


# --- in a browser -----------------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_it_without_a_fault(analysis, page, tmp_path, width, dark) -> None:
    """Nothing overflows, each picture is there once, the browser is silent."""
    shown = in_browser(page, tmp_path, width, dark)
    assert shown["complaints"] == []
    assert shown["width"] <= width
    assert shown["widest"] <= width
    assert shown["pictures"] == sum(3 + (joins(stage) is not None) for stage in analysis.stages)
    assert shown["background"] == ("rgb(20, 24, 31)" if dark else "rgb(255, 255, 255)")
