"""How long `--help` takes, and `analyze` of every architecture of CompressAI, and of that analysis itself."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

from rich.table import Table

from benchmarks import machine
from overlap_tool.checkpoint.architectures import KNOWN

RUNS = 3
LIMITS = {"--help": 0.5, "analyze": 8.0, "of which tracing and analysis": 2.0}

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


def main() -> list[Table]:
    tool = [sys.executable, "-m", "overlap_tool"]
    table = Table(title=f"Seconds, median of {RUNS} runs")
    for heading in ("command", "median (range)", "limit", "holds"):
        table.add_column(heading)

    def add(command: str, values: list[float], limit: float) -> None:
        holds = "yes" if median(values) < limit else "NO"
        table.add_row(command, machine.spread(values), f"{limit} s", holds)

    add("--help", [_wall([*tool, "--help"])[0] for _ in range(RUNS)], LIMITS["--help"])
    for architecture in KNOWN:
        source = f"zoo:{architecture.name}"
        walls = [_wall([*tool, "analyze", source])[0] for _ in range(RUNS)]
        inner = [float(_wall([sys.executable, "-c", ANALYSIS, source])[1]) for _ in range(RUNS)]
        add(f"analyze {source}", walls, LIMITS["analyze"])
        add("  of which tracing and analysis", inner, LIMITS["of which tracing and analysis"])
    return [table]
