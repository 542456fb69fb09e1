"""An analysis on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as RichTable

from overlap_tool.analysis import Analysis
from overlap_tool.report.tables import Table, headline, layer_table, stage_table, tile_table

LEFT_ALIGNED = {"stage", "layer", "op", "status"}


def show(analysis: Analysis, console: Console, all_ops: bool = False) -> None:
    console.print(f"[bold]{headline(analysis)}[/bold]\n", highlight=False)
    console.print(drawn(stage_table(analysis)))
    for stage in analysis.stages:
        console.print(drawn(layer_table(stage, all_ops)))
        console.print(drawn(tile_table(stage)))


def drawn(table: Table) -> RichTable:
    """A table as rich draws it."""
    drawn = RichTable(title=table.title, title_justify="left", title_style="bold")
    for heading in table.header:
        left = heading in LEFT_ALIGNED
        drawn.add_column(heading, justify="left" if left else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    return drawn
