"""Notebook output of an analysis, a certificate or plans: their tables, and pictures one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args
from xml.etree import ElementTree

from overlap_tool.errors import OptionError
from overlap_tool.planning.analysis import Analysis, StageReport
from overlap_tool.planning.choose import Plans
from overlap_tool.report import certificate_tables, tables
from overlap_tool.report.page import element, titled
from overlap_tool.report.pictures.anatomy import anatomy, joins, passes
from overlap_tool.report.pictures.costs import costs
from overlap_tool.report.pictures.drawing import Drawing
from overlap_tool.report.pictures.graph import graph
from overlap_tool.verification import Certificate

PictureKind = Literal["graph", "tile", "passes", "joins", "costs"]

_DRAWN: tuple[Callable[[StageReport], Drawing | None], ...] = (graph, anatomy, passes, joins, costs)
PICTURES = dict(zip(get_args(PictureKind), _DRAWN, strict=True))


def picture(stage: StageReport, kind: PictureKind) -> Drawing | None:
    """A picture of a stage: its graph, one tile, its passes, its joins or its costs; None if there is no such
    picture.

    A notebook displays it directly; `picture(...).alone()` is an SVG file.
    """
    if kind not in PICTURES:
        raise OptionError(f"kind={kind!r}", "is not one", f"Use {', '.join(PICTURES)}")
    return PICTURES[kind](stage)


def fragment(shown: Analysis | Certificate | Plans) -> str:
    """HTML without a page around it, in the notebook's own style."""
    if isinstance(shown, Analysis):
        heads, content = [tables.headline(shown)], tables.model_tables(shown)
    elif isinstance(shown, Certificate):
        heads = [certificate_tables.headline(shown), certificate_tables.verdict(shown)]
        heads += certificate_tables.failures(shown)
        content = certificate_tables.tables(shown)
    else:
        heads, content = [], [tables.plan_table(shown.of, shown)]
    paragraphs = (element("p", "", head) for head in heads)
    made = element("div", "", *paragraphs, *(part for table in content for part in titled(table)))
    return ElementTree.tostring(made, encoding="unicode", method="html")
