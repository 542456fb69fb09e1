"""An SVG under construction. Text is escaped, and a standalone SVG includes its colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from overlap_tool.legible import legible

WIDE, NARROW = 760, 340
"""The widths that pictures are drawn for: a laptop or a printed page, and a phone."""

LETTER = 6.4
"""The width of a letter of the 10.5 pixel monospaced font, rounded up a little."""

PAPER = "#ffffff"

LIGHT = """
text { font-family: 'DejaVu Sans', system-ui, sans-serif; font-size: 11px; fill: #1f2430; }
.code { font-family: 'DejaVu Sans Mono', ui-monospace, monospace; font-size: 10.5px; }
.small { font-size: 10px; fill: #5b6474; }
.strong { font-weight: bold; }
.edge { fill: none; stroke: #98a2b3; stroke-width: 1.6; }
.node { fill: #ffffff; stroke: #475467; stroke-width: 1.6; }
.join { fill: #475467; stroke: #475467; }
.own { fill: #cfd6e0; }
.outline { fill: none; stroke: #98a2b3; stroke-dasharray: 3 3; }
.before { fill: #2f6fde; }
.after { fill: #e07b00; }
.crop { fill: #d92d20; }
.axis { stroke: #98a2b3; stroke-width: 1; }
.grid { stroke: #e4e7ec; stroke-width: 1; }
.stripe { fill: #f5f6f8; }
.stream { stroke: #0f8a5f; fill: none; stroke-width: 2; }
.stream-dot { fill: #0f8a5f; }
.tiles { stroke: #8250c4; fill: none; stroke-width: 2; }
.tiles-dot { fill: #8250c4; }
.full { stroke: #5b6474; stroke-width: 1.5; stroke-dasharray: 6 4; fill: none; }
.chosen { fill: none; stroke: #d92d20; stroke-width: 2; }
.none { fill: #e4e7ec; }
.differs { fill: #d92d20; }
.border { stroke: #1f2430; stroke-width: 0.8; stroke-dasharray: 2 2; }
"""

DARK = """
text { fill: #e6e9ef; }
.small { fill: #a3acba; }
.edge { stroke: #667085; }
.node { fill: #14181f; stroke: #c3cad5; }
.join { fill: #c3cad5; stroke: #c3cad5; }
.own { fill: #434c5a; }
.outline { stroke: #667085; }
.before { fill: #6ea0f5; }
.after { fill: #f5a742; }
.crop { fill: #f26a60; }
.axis { stroke: #667085; }
.grid { stroke: #2a313c; }
.stripe { fill: #1b2029; }
.stream { stroke: #3ecf9a; }
.stream-dot { fill: #3ecf9a; }
.tiles { stroke: #b48af0; }
.tiles-dot { fill: #b48af0; }
.full { stroke: #a3acba; }
.chosen { stroke: #f26a60; }
.none { fill: #2a313c; }
.differs { fill: #f26a60; }
.border { stroke: #e6e9ef; }
"""

Anchor = Literal["start", "middle", "end"]


class Drawing:
    """Shapes on a sheet of a given width; its height is set once all is drawn."""

    def __init__(self, width: float, title: str) -> None:
        self.width = width
        self.height = 0.0
        self.root = Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
        SubElement(self.root, "title").text = legible(title)

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str, title: str = "", **more: str
    ) -> None:
        self._add(
            "rect", title, x=_px(x), y=_px(y), width=_px(width), height=_px(height), **{"class": kind}, **more
        )

    def circle(self, x: float, y: float, radius: float, kind: str, title: str = "") -> None:
        self._add("circle", title, cx=_px(x), cy=_px(y), r=_px(radius), **{"class": kind})

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self._add("line", "", x1=_px(x1), y1=_px(y1), x2=_px(x2), y2=_px(y2), **{"class": kind})

    def polygon(self, points: Sequence[tuple[float, float]], kind: str, title: str = "") -> None:
        self._add("polygon", title, points=_points(points), **{"class": kind})

    def polyline(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        self._add("polyline", "", points=_points(points), **{"class": kind})

    def path(self, steps: str, kind: str) -> None:
        self._add("path", "", d=steps, **{"class": kind})

    def text(
        self, x: float, y: float, text: str, kind: str = "", anchor: Anchor = "start", title: str = ""
    ) -> None:
        element = self._add("text", title, x=_px(x), y=_px(y), **{"text-anchor": anchor})
        if kind:
            element.set("class", kind)
        if len(element):
            element[-1].tail = legible(text)
        else:
            element.text = legible(text)

    def element(self) -> Element:
        """The SVG as an element of a page, which provides the colours."""
        self.root.set("viewBox", f"0 0 {_px(self.width)} {_px(self.height)}")
        self.root.set("width", _px(self.width))
        self.root.set("height", _px(self.height))
        return self.root

    def alone(self) -> str:
        """The SVG as a standalone file, with its colours."""
        root = Element(self.element().tag, self.root.attrib)
        dark = f"@media (prefers-color-scheme: dark) {{{DARK}}}"
        SubElement(root, "style").text = f"{LIGHT}{dark}\n"
        root.extend(self.root)
        return ElementTree.tostring(root, encoding="unicode") + "\n"

    def _repr_svg_(self) -> str:
        """The picture in a notebook."""
        return self.alone()

    def _add(self, tag: str, title: str, **attributes: str) -> Element:
        element = SubElement(self.root, tag, attributes)
        if title:
            SubElement(element, "title").text = legible(title)
        return element


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_px(x)},{_px(y)}" for x, y in points)
