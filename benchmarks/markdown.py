"""Tables of benchmarks in Markdown: kept in benchmarks/results/, and quoted from there in docs/."""

from __future__ import annotations

import re
from pathlib import Path

from rich.table import Table

QUOTE = re.compile(r"(<!-- from (\S+): (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def as_markdown(table: Table) -> str:
    headings = [str(column.header) for column in table.columns]
    rows = zip(*(map(str, column.cells) for column in table.columns), strict=True)
    lines = [headings, ["---"] * len(headings), *rows]
    title = [f"**{table.title}**", ""] if table.title else []
    return "\n".join([*title, *("| " + " | ".join(line) + " |" for line in lines)])


def quoted(page: str, root: Path) -> str:
    """A page with its quotes as the results have them now.

    A quote stands between `<!-- from FILE: ROWS -->` and `<!-- end -->`: the rows of the file whose
    first cell is ROWS, without it, below their headings.
    """

    def quote(found: re.Match[str]) -> str:
        begin, file, wanted, end = found.groups()
        lines = _rows_of((root / file).read_text(), wanted)
        return begin + "\n" + "\n".join(lines) + "\n\n" + end

    return QUOTE.sub(quote, page)


def _rows_of(text: str, wanted: str) -> list[str]:
    """The heading, the line below it, and the rows that begin with `wanted`, of the first table with any."""
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    for heading, rule, *rows in tables:
        chosen = [row for row in rows if _cells(row)[0] == wanted]
        if chosen:
            return ["| " + " | ".join(_cells(row)[1:]) + " |" for row in (heading, rule, *chosen)]
    raise LookupError(f"no table has a row that begins with {wanted}")


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]
