"""An analysis and a certificate for people and for programs."""

from __future__ import annotations

from collections.abc import Callable

from overlap_tool.planning.analysis import Analysis
from overlap_tool.report.certificate_html import certificate_to_html
from overlap_tool.report.dot import to_dot
from overlap_tool.report.html import to_html
from overlap_tool.report.json import certificate_to_json, selftest_to_json, to_json
from overlap_tool.report.junit import certificate_to_junit
from overlap_tool.report.markdown import certificate_to_markdown, to_markdown
from overlap_tool.report.notebook import fragment, picture
from overlap_tool.report.pictures.files import png_files, svg_files
from overlap_tool.report.pictures.heat import heat

__all__ = [
    "FORMATS",
    "certificate_to_html",
    "certificate_to_json",
    "certificate_to_junit",
    "certificate_to_markdown",
    "fragment",
    "heat",
    "picture",
    "png_files",
    "selftest_to_json",
    "svg_files",
    "to_html",
]

FORMATS: dict[str, Callable[[Analysis], str]] = {"json": to_json, "markdown": to_markdown, "dot": to_dot}
"""The plain text formats; `terminal.show` prints the remaining one."""
