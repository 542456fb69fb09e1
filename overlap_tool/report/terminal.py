"""An analysis or a certificate on a terminal."""

from __future__ import annotations

import os

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from overlap_tool.analysis import Analysis
from overlap_tool.report import certificate_tables
from overlap_tool.report.tables import WORDS, Table, headline, tables
from overlap_tool.verification import Certificate

WIDE = 160
"""Columns for what no terminal shows, such as the log of a CI."""


def screen() -> Console:
    """Standard output, as wide as the terminal, or as COLUMNS says."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=WIDE)


def show(analysis: Analysis, console: Console, all_ops: bool = False) -> None:
    console.print(f"[bold]{escape(headline(analysis))}[/bold]\n", highlight=False)
    for table in tables(analysis, all_ops):
        console.print(drawn(table))


def show_certificate(certificate: Certificate, console: Console) -> None:
    console.print(f"[bold]{escape(certificate_tables.headline(certificate))}[/bold]\n", highlight=False)
    for table in certificate_tables.tables(certificate):
        console.print(drawn(table))
    for failure in certificate_tables.failures(certificate):
        console.print(f"[red]failed[/red] {escape(failure)}", highlight=False, soft_wrap=True)
    color = "green" if certificate.holds else "red"
    console.print(f"[{color}]{certificate_tables.verdict(certificate)}[/{color}]", highlight=False)


def drawn(table: Table) -> RichTable:
    """A table as rich draws it."""
    drawn = RichTable(title=escape(table.title), title_justify="left", title_style="bold")
    for heading in table.header:
        drawn.add_column(heading, justify="left" if heading in WORDS else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(escape, row))
    return drawn
