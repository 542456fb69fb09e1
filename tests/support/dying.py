"""A task that kills its worker; in a module that a new process imports quickly."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def dies_until(folder: Path, so_often: int) -> int:
    """Kill this process so often, counted in files; then, how often that was."""
    deaths = len(list(folder.iterdir()))
    if deaths < so_often:
        (folder / str(deaths)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return deaths
