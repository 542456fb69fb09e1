"""A progress bar on a terminal for what takes over a second; silent otherwise."""

from __future__ import annotations

from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from overlap_tool.legible import legible

PATIENCE = 1.0
"""Seconds before the bar appears."""


class RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} tiles/s" if task.speed else "")


class TileProgress:
    """Counts tiles; used as `with TileProgress(label, total) as progress: ... progress.advance()`."""

    def __init__(self, label: str, total: int, quiet: bool = False) -> None:
        self.label = label
        self.total = total
        self.quiet = quiet
        self.done = 0
        self.started = monotonic()
        self.console = Console(stderr=True)
        self.bar: Progress | None = None

    def advance(self) -> None:
        self.done += 1
        if self.quiet or not self.console.is_terminal or self.done == self.total:
            return
        if self.bar is None and monotonic() - self.started > PATIENCE:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                RateColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.bar.add_task(legible(self.label), total=self.total)
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=self.done)

    def __enter__(self) -> TileProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
