"""A table of a benchmark in Markdown, for benchmarks/results/ and what is made from it."""

from __future__ import annotations

from rich.table import Table


def as_markdown(table: Table) -> str:
    headings = [str(column.header) for column in table.columns]
    rows = zip(*(map(str, column.cells) for column in table.columns), strict=True)
    lines = [headings, ["---"] * len(headings), *rows]
    title = [f"**{table.title}**", ""] if table.title else []
    return "\n".join([*title, *("| " + " | ".join(line) + " |" for line in lines)])
