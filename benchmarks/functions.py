"""Elementary functions of four million float32: the exact engine's, correctly rounded, and PyTorch's own."""

from __future__ import annotations

import torch
from rich.table import Table

from benchmarks.measuring import Way, exact, ratio, seconds_in_turn
from overlap_tool.kernels.arithmetic.vectors import FUNCTIONS

NUMBERS = 1 << 22
ROUNDS = 60
"""Of the runs of a function: each takes a few milliseconds."""


def main() -> list[Table]:
    """The whole op, with its way through memory, on one thread. The ratio is that of one round."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    table = Table(title="4 million numbers, one thread: exact kernels' time to PyTorch's")
    for heading in ("function", "PyTorch", "exact", "ratio (range)"):
        table.add_column(heading)
    x = torch.rand(NUMBERS, generator=torch.Generator().manual_seed(0)) * 8 + 0.01
    for name in FUNCTIONS:
        way: Way = getattr(torch, name)
        ways = {"stock": way, "exact": exact(way)}
        runs, _ = seconds_in_turn(ways, x, rounds=ROUNDS)
        least = {of: min(run[of] for run in runs) for of in ways}
        table.add_row(
            name,
            f"{least['stock'] * 1e3:.2f} ms",
            f"{least['exact'] * 1e3:.2f} ms",
            ratio(runs, "exact", "stock"),
        )
    torch.set_num_threads(threads)
    return [table]
