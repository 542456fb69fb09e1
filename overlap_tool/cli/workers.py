"""`analyze --workers`: the cost of a scene on several machines, as a table or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from overlap_tool.errors import OptionError
from overlap_tool.settings import ReportFormat, Size, parse_bytes

if TYPE_CHECKING:
    from overlap_tool.distributed.outlook import CodingOutlook, Outlook

HEADINGS = (
    *("stage", "piece", "pieces", "recomputed", "busiest worker", "memory of a worker"),
    *("sent at once", "read", "made"),
)


def parse_workers(text: str) -> tuple[int, int]:
    """Parse `16x32GiB` as a number of workers, and the memory of each in bytes."""
    count, _, memory = text.lower().replace("×", "x").partition("x")
    try:
        workers, size = int(count), parse_bytes(memory)
    except ValueError:
        workers = size = 0
    if workers < 1 or size < 1:
        raise OptionError(
            f"--workers {text}", "is not a number of workers and their memory", "Write --workers 16x32GiB"
        )
    return workers, size


def refuse_other_formats(format: ReportFormat, **files: Any) -> None:
    """Raise for report formats that have no form for workers."""
    if format not in ("rich", "json"):
        raise OptionError(
            f"--format {format}", "does not have what workers take", "Use --format json, or leave it out"
        )
    for name, path in files.items():
        if path is not None:
            raise OptionError(f"--{name}", "has no pictures of workers", "Leave it out, or --workers")


def show_outlook(
    passes: list[Outlook], coding: CodingOutlook | None, size: Size, workers: int, format: ReportFormat
) -> None:
    """Print the outlook."""
    if format == "json":
        told = {"passes": [asdict(one) for one in passes], "coding": coding and asdict(coding)}
        print(json.dumps({"schema": 1, "workers": workers, **told}, indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    from overlap_tool.report.terminal import screen

    table = Table(*HEADINGS, title=f"{size.width}x{size.height} on {workers} workers", title_justify="left")
    for one in passes:
        table.add_row(
            Text(one.stage),
            f"{one.side} px",
            str(one.pieces),
            f"{one.added:.1%}",
            f"{one.busiest:.2f} shares",
            *(f"{number / 2**20:,.0f} MiB" for number in (one.memory, one.sent, one.read, one.made)),
        )
    if coding is not None:
        table.caption = (
            f"To code up to {coding.symbols:,} symbols at once takes up to {coding.memory / 2**20:,.0f} MiB "
            "of a worker, at a byte a symbol"
        )
    screen().print(table)
