"""An analysis as Markdown, for issues, pull requests and summaries."""

from __future__ import annotations

from overlap_tool.analysis import Analysis
from overlap_tool.report.tables import Table, headline, layer_table, stage_table, tile_table


def to_markdown(analysis: Analysis) -> str:
    tables = [stage_table(analysis)]
    for stage in analysis.stages:
        tables += [layer_table(stage), tile_table(stage)]
    return "\n".join([f"# {headline(analysis)}\n", *(_table(table) for table in tables)])


def _table(table: Table) -> str:
    lines = [table.header, ("---",) * len(table.header), *table.rows]
    return f"## {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
