"""Progress shows on a terminal after a second, and nowhere else."""

from __future__ import annotations

import io
from itertools import count

import pytest
from rich.console import Console

from overlap_tool.runtime import progress
from overlap_tool.runtime.progress import TileProgress


@pytest.mark.parametrize(
    ("terminal", "seconds", "shown"), [(True, 2, True), (True, 0, False), (False, 2, False)]
)
def test_when_it_shows(monkeypatch, terminal: bool, seconds: int, shown: bool) -> None:
    clock = count(step=seconds)
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    screen = io.StringIO()
    with TileProgress("g_a", 10) as bar:
        bar.console = Console(file=screen, force_terminal=terminal)
        for _ in range(10):
            bar.advance()
    assert ("g_a" in screen.getvalue()) == shown
