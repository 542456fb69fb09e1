"""An analysis or a certificate on a terminal."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from overlap_tool.legible import legible
from overlap_tool.planning.analysis import Analysis
from overlap_tool.report import certificate_tables
from overlap_tool.report.tables import WORDS, Table, headline, tables
from overlap_tool.verification import Certificate, SelfTest

WIDE = 160
"""Columns where there is no terminal, as in the log of a CI."""


def screen() -> Console:
    """Standard output, as wide as the terminal, or as COLUMNS says."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=WIDE)


def show(analysis: Analysis, console: Console, all_ops: bool = False) -> None:
    console.print(_text(headline(analysis), "bold"), end="\n\n")
    for table in tables(analysis, all_ops):
        console.print(drawn(table))


def show_certificate(certificate: Certificate, console: Console) -> None:
    console.print(_text(certificate_tables.headline(certificate), "bold"), end="\n\n")
    for table in certificate_tables.tables(certificate):
        console.print(drawn(table))
    for failure in certificate_tables.failures(certificate):
        console.print(Text.assemble(("failed", "red"), " ", _text(failure)), soft_wrap=True)
    console.print(_text(certificate_tables.bits_line(certificate)), soft_wrap=True)
    color = "green" if certificate.holds else "red"
    console.print(_text(certificate_tables.verdict(certificate), color))


def show_selftest(found: SelfTest, console: Console) -> None:
    console.print(_text(certificate_tables.machine_line(found.machine), "bold"))
    for vector in (*found.of("skipped"), *found.of("failed")):
        color = "red" if vector.status == "failed" else "dim"
        told = f"{vector.kind}: {vector.name}" + (f" ({vector.message})" if vector.message else "")
        console.print(Text.assemble((vector.status, color), " ", _text(told)), soft_wrap=True)
    console.print(_text(certificate_tables.selftest_verdict(found), "green" if found.holds else "red"))


def drawn(table: Table) -> RichTable:
    """A table as rich draws it."""
    drawn = RichTable(title=_text(table.title, "bold"), title_justify="left")
    for heading in table.header:
        drawn.add_column(heading, justify="left" if heading in WORDS else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(_text, row))
    return drawn


def _text(text: str, style: str = "") -> Text:
    """Text without rich's markup, whatever it contains."""
    return Text(legible(text), style)
