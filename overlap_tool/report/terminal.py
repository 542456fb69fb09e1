"""An analysis or a certificate on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from overlap_tool.analysis import Analysis
from overlap_tool.report import certificate_tables
from overlap_tool.report.tables import (
    Table,
    causal_tables,
    headline,
    layer_table,
    segment_tables,
    stage_table,
    tile_table,
    untiled_tables,
)
from overlap_tool.verification import Certificate

LEFT_ALIGNED = {
    "stage",
    "network",
    "layer",
    "reads",
    "stores",
    "then",
    "op",
    "status",
    "check",
    "result",
    "tiling",
    "part",
    "why",
    "what",
    "run",
    "short of overlap",
}


def show(analysis: Analysis, console: Console, all_ops: bool = False) -> None:
    console.print(f"[bold]{escape(headline(analysis))}[/bold]\n", highlight=False)
    for table in (stage_table(analysis), *causal_tables(analysis), *untiled_tables(analysis)):
        console.print(drawn(table))
    for stage in analysis.stages:
        for table in segment_tables(stage):
            console.print(drawn(table))
        console.print(drawn(layer_table(stage, all_ops)))
        console.print(drawn(tile_table(stage)))


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
        left = heading in LEFT_ALIGNED
        drawn.add_column(heading, justify="left" if left else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(escape, row))
    return drawn
