"""A standalone page: no scripts, no external resources; for laptops and phones, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from overlap_tool import __version__
from overlap_tool.legible import legible
from overlap_tool.report.pictures.drawing import DARK, LIGHT, NARROW, WIDE, Drawing
from overlap_tool.report.tables import WORDS, Table

PagePart = Element | str | None

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The page's content security policy: even if a name passed for markup, nothing would run or be fetched."""

STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 900px; padding: 16px; line-height: 1.5;
  font-family: system-ui, 'DejaVu Sans', sans-serif; font-size: 15px; background: #ffffff; color: #1f2430; }
h1 { font-size: 1.5em; line-height: 1.25; margin: 0.4em 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25em; margin: 2.2em 0 0.4em; padding-top: 0.8em; border-top: 1px solid #d0d5dd;
  overflow-wrap: anywhere; }
h3 { font-size: 1em; margin: 1.6em 0 0.3em; overflow-wrap: anywhere; }
p { margin: 0.5em 0; overflow-wrap: anywhere; }
.note { color: #5b6474; font-size: 0.88em; }
.badge { border-radius: 999px; padding: 0.1em 0.6em; font-size: 0.75em; vertical-align: middle;
  background: #e4e7ec; color: #1f2430; white-space: nowrap; }
.good { background: #d5f5e3; color: #0b5d3b; }
.bad { background: #fde2df; color: #93180f; }
nav a { display: inline-block; margin: 0.1em 0.9em 0.1em 0; overflow-wrap: anywhere; }
a { color: #2459b8; }
figure { margin: 0.6em 0; }
figcaption { margin-top: 0.5em; }
svg { max-width: 100%; height: auto; display: block; }
.narrow { display: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: max-content;
  font-size: 0.85em; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25em 0.5em; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e7ec; }
th { font-weight: 600; color: #5b6474; }
.word { text-align: left; white-space: normal; overflow-wrap: anywhere; max-width: 30em; }
th:first-child, td:first-child { padding-left: 0; }
summary { cursor: pointer; margin: 0.6em 0; }
.heats { display: flex; flex-wrap: wrap; gap: 16px; }
.heats figure { width: 280px; margin: 0; }
ul { padding-left: 1.2em; }
li { overflow-wrap: anywhere; }
@media (max-width: 700px) { .wide { display: none; } .narrow { display: block; } .word { max-width: 14em; } }
"""

DARK_STYLE = """
body { background: #14181f; color: #e6e9ef; }
h2 { border-color: #2a313c; }
.note, th { color: #a3acba; }
th, td { border-color: #2a313c; }
.badge { background: #2a313c; color: #e6e9ef; }
.good { background: #10402c; color: #a5ecc9; }
.bad { background: #541a15; color: #fbc4be; }
a { color: #8db4fa; }
"""


def page(title: str, *parts: PagePart) -> str:
    html = Element("html", lang="en")
    head = SubElement(html, "head")
    SubElement(head, "meta", charset="utf-8")
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": POLICY})
    SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    SubElement(head, "meta", name="generator", content=f"overlap-tool {__version__}")
    SubElement(head, "title").text = legible(title)
    dark = f"@media (prefers-color-scheme: dark) {{{DARK_STYLE}{DARK}}}"
    SubElement(head, "style").text = f"{STYLE}{LIGHT}{dark}\n"
    html.append(element("body", "", *parts))
    return f"<!doctype html>\n{ElementTree.tostring(html, encoding='unicode', method='html')}\n"


def element(tag: str, kind: str, *parts: PagePart, **attributes: str) -> Element:
    """An element that contains text and elements, in order."""
    made = Element(tag, attributes)
    if kind:
        made.set("class", kind)
    for part in parts:
        if isinstance(part, Element):
            made.append(part)
        elif part and len(made):
            made[-1].tail = (made[-1].tail or "") + legible(part)
        elif part:
            made.text = (made.text or "") + legible(part)
    return made


def table(content: Table) -> Element:
    """Wide tables scroll by themselves, so that the page does not."""
    kinds = ["word" if heading in WORDS else "" for heading in content.header]

    def line(tag: str, cells: Iterable[str]) -> Element:
        return element("tr", "", *(_cell(tag, k, cell) for k, cell in zip(kinds, cells, strict=True)))

    return element(
        "div",
        "scroll",
        element(
            "table",
            "",
            element("thead", "", line("th", content.header)),
            element("tbody", "", *(line("td", row) for row in content.rows)),
        ),
    )


def _cell(tag: str, kind: str, text: str) -> Element:
    first, *others = text.split("\n")
    return element(tag, kind, first, *(part for line in others for part in (Element("br"), line)))


def titled(content: Table) -> tuple[Element, Element]:
    return element("h3", "", content.title), table(content)


def figure(draw: Callable[[int], Drawing | None], caption: str) -> Element | None:
    """A picture drawn twice, for laptops and for phones; each is shown only where it fits."""
    drawings = draw(WIDE), draw(NARROW)
    shown = [
        element("div", kind, drawing.element())
        for kind, drawing in zip(("wide", "narrow"), drawings, strict=True)
        if drawing is not None
    ]
    return element("figure", "", *shown, element("figcaption", "note", caption)) if shown else None
