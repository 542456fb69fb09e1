"""The page of a certificate, and the coarse maps of where bits differ."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest
import torch
from support.browser import CHROMIUM, HOSTILE, Strict, in_browser

from overlap_tool import report
from overlap_tool.report.pictures.heat import heat
from overlap_tool.verification import Certificate, Check, DifferenceMap
from overlap_tool.verification.certificate import ImageRecord, Machine, PlanRecord
from overlap_tool.verification.observing import CELLS, difference_map


@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 1, 64, 64), (1, 2, 33, 100), (2, 3, 1, 65), (3, 40, 21)])
def test_a_difference_map_counts_what_differs_in_each_cell(shape) -> None:
    generator = torch.Generator().manual_seed(0)
    expected = torch.zeros(shape)
    found = (torch.rand(shape, generator=generator) < 0.05).float()
    found[..., -1, -1] = float("nan")
    where = difference_map(found, expected)
    assert where is not None
    found, expected = (each if each.ndim > 3 else each[..., None, :] for each in (found, expected))  # sound
    rows, columns = found.shape[-2:]
    assert (where.rows, where.columns) == (rows, columns)
    counts: dict[tuple[int, int], int] = {}
    for *_, row, column in (found != expected).nonzero().tolist():
        place = row // where.cell, column // where.cell
        counts[place] = counts.get(place, 0) + 1
    told = {(i, j): n for i, row in enumerate(where.counts) for j, n in enumerate(row) if n}
    assert told == counts
    assert max(len(where.counts), len(where.counts[0])) == -(-max(rows, columns) // where.cell) <= CELLS


def test_no_map_of_what_is_equal_or_of_another_size() -> None:
    assert difference_map(torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)) is None
    assert difference_map(torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 9)) is None
    assert difference_map(torch.ones(8, 8), torch.zeros(8, 8)) is None


SEAM = DifferenceMap(96, 128, 4, tuple(tuple(9 * (x == 15) for x in range(32)) for _ in range(24)))


def _certificate(name: str = "g_a") -> Certificate:
    check = Check(
        "stage-equality",
        name,
        name,
        "failed",
        f"first to differ: {name}",
        (64, 32),
        "tiles",
        {"differing": 9 * 24},
        SEAM,
    )
    return Certificate(
        name,
        name,
        {name: name},
        name,
        "exact",
        "1",
        Machine(name, name, 1, {name: name}),
        "2026-01-01T00:00:00+00:00",
        (ImageRecord(name, (250, 190), (256, 192), name),),
        (PlanRecord(name, name, (64, 32), "tiles", 1, 24, 3, 2, 1, 0, 10**9, 10**6, 0, 10**7),),
        (check,),
    )


def test_the_heat_map_shows_the_seam_and_the_tiles() -> None:
    text = report.certificate_to_html(_certificate())
    (svg,) = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    cells = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)"[^>]* class="differs"', svg)
    unit = 340 / 128
    assert len(cells) == 24
    assert [float(x) for x, _ in cells] == pytest.approx([60 * unit] * 24, abs=0.06)
    assert "rows 0 to 3, columns 60 to 63: 9 differ" in svg
    lines = re.findall(r'<line x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)" class="border"', svg)
    upright = sorted(float(x1) for x1, _, x2, _ in lines if x1 == x2)
    level = sorted(float(y1) for _, y1, _, y2 in lines if y1 == y2)
    # tiles of 64x32 pixels are 32x16 samples of a map of half the image's size
    assert upright == pytest.approx([n * 32 * unit for n in (1, 2, 3)], abs=0.06)
    assert level == pytest.approx([n * 16 * unit for n in (1, 2, 3, 4, 5)], abs=0.06)


def test_cells_leave_no_gaps_that_look_like_borders_of_tiles() -> None:
    everywhere = DifferenceMap(250, 310, 10, ((1,) * 31,) * 25)
    drawn = heat(everywhere, None, "all").alone()
    cells = re.findall(r'<rect x="([\d.]+)" y="0" width="([\d.]+)"[^>]* class="differs"', drawn)
    assert len(cells) == 31
    for (x, width), (following, _) in itertools.pairwise(cells):
        assert round(float(x) + float(width), 1) == float(following)


def test_hostile_names_stay_text() -> None:
    plain, worse = (Strict(report.certificate_to_html(_certificate(name))) for name in ("g_a", HOSTILE))
    assert worse.tags == plain.tags
    assert [name for name, _ in worse.attributes] == [name for name, _ in plain.attributes]


def test_hostile_names_leave_the_checks_for_a_ci_whole() -> None:
    suite = ElementTree.fromstring(report.certificate_to_junit(_certificate(HOSTILE)).encode())
    assert suite[0].tag == "testcase"
    assert [part.tag for part in suite[0]] == ["failure", "system-out"]
    assert suite[0][1].text == "differing: 216"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("name", ["g_a", HOSTILE], ids=["plain", "hostile"])
def test_a_browser_shows_it_without_a_fault(tmp_path, name) -> None:
    shown = in_browser(report.certificate_to_html(_certificate(name)), tmp_path, 360, dark=True)
    assert shown["complaints"] == []
    assert shown["width"] <= 360
    assert shown["pictures"] == 1
