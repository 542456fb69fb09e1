"""An analysis or a certificate as Markdown, for issues, pull requests and summaries."""

from __future__ import annotations

from overlap_tool.legible import legible
from overlap_tool.planning.analysis import Analysis
from overlap_tool.report import certificate_tables
from overlap_tool.report.tables import Table, headline, tables
from overlap_tool.verification import Certificate


def to_markdown(analysis: Analysis) -> str:
    return "\n".join([f"# {_text(headline(analysis))}\n", *map(_table, tables(analysis))])


def certificate_to_markdown(certificate: Certificate) -> str:
    parts = [
        f"# overlap-tool verify: {certificate_tables.verdict(certificate)}\n",
        f"{_text(certificate_tables.headline(certificate))}\n",
        *(f"- {_text(failure)}\n" for failure in certificate_tables.failures(certificate)),
        *map(_table, certificate_tables.tables(certificate)),
        f"{_text(certificate_tables.bits_line(certificate))}\n",
        f"Computed on {_text(certificate_tables.machine_line(certificate.machine))}\n",
        f"{certificate.time}\n",
    ]
    return "\n".join(parts)


def _table(table: Table) -> str:
    lines = [table.header, ("---",) * len(table.header), *table.rows]
    return f"## {_text(table.title)}\n\n" + "\n".join(map(_row, lines)) + "\n"


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(_text(cell) for cell in cells)} |"


def _text(text: str) -> str:
    """Text with everything escaped that would form an element, a link or a cell."""
    return "".join(f"&#{ord(char)};" if char in "<>&|[]`" else char for char in legible(text))
