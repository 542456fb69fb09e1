"""How long `--help` takes, `analyze` of the demo's checkpoint and of every architecture of CompressAI, and of
that analysis itself."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rich.table import Table

from benchmarks import machine
from overlap_tool.checkpoint.architectures import KNOWN

RUNS = 5
LIMITS = {"--help": 0.5, "analyze of the demo": 3.0, "analyze": 8.0, "of which tracing and analysis": 2.0}
"""Seconds."""

ANALYSIS = """
import sys, time, warnings
warnings.simplefilter("ignore")
from overlap_tool import analyze, checkpoint
model = checkpoint.load_checkpoint(sys.argv[1]).model
start = time.perf_counter()
analyze(model)
print(time.perf_counter() - start)
"""


def _wall(command: list[str]) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def main(only: str = "") -> list[Table]:
    """`only` is the name of an architecture in place of all, or `demo` for none."""
    known = [architecture.name for architecture in KNOWN]
    if only not in ("", "demo", *known):
        raise SystemExit(f"{only} is none of demo, {', '.join(known)}")
    tool = [sys.executable, "-m", "overlap_tool"]
    table = Table(title=f"Seconds, median of {RUNS} runs")
    for heading in ("command", "median (range)", "limit", "holds"):
        table.add_column(heading)

    def add(command: str, values: list[float], limit: float) -> None:
        holds = "yes" if median(values) < limit else "NO"
        table.add_row(command, machine.spread(values), f"{limit} s", holds)

    add("--help", [_wall([*tool, "--help"])[0] for _ in range(RUNS)], LIMITS["--help"])
    with tempfile.TemporaryDirectory() as folder:
        _wall([sys.executable, "-m", "overlap_tool.cli.demo", folder])
        source = str(Path(folder) / "mbt2018.pt")
        walls = [_wall([*tool, "analyze", source])[0] for _ in range(RUNS)]
    add("analyze demo/mbt2018.pt", walls, LIMITS["analyze of the demo"])
    for name in known if only == "" else [only] if only in known else []:
        walls = [_wall([*tool, "analyze", f"zoo:{name}"])[0] for _ in range(RUNS)]
        inner = [float(_wall([sys.executable, "-c", ANALYSIS, f"zoo:{name}"])[1]) for _ in range(RUNS)]
        add(f"analyze zoo:{name}", walls, LIMITS["analyze"])
        add("  of which tracing and analysis", inner, LIMITS["of which tracing and analysis"])
    return [table]
