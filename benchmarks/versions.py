"""All architectures of CompressAI at 1K by another checkout, before, and by this one, after.

They show whether any way to run their transforms has become slower. The case is the other checkout's folder:
`python -m benchmarks versions:FOLDER`, which takes about an hour on two cores. Checkouts take turns by
models, each in a process of its own, where all ways of a stage run in turn. Of each way, the time to that of
stock kernels in the same process is reported, and the seconds of the processor, which hold on a machine that
others use, too.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from rich.table import Table
from torch import Tensor

import overlap_tool
from overlap_tool import checkpoint, exact_kernels
from overlap_tool.checkpoint.architectures import KNOWN
from overlap_tool.wrapping.retrofit import tiled_stages

ROUNDS = 5
STAGES = ("g_a", "g_s")
STOCK = "stock, whole"
WARM = {"exact, stream": 3, "exact, tiles": 3}
"""How often a way runs before the clock does: tapes are recorded in a second run. Once for the others."""

Seconds = dict[str, list[tuple[float, float]]]
"""By way: the seconds of every round, by the clock and of the processor."""


def main(folder: str = "") -> list[Table]:
    if not (Path(folder) / "overlap_tool").is_dir():
        raise SystemExit(f"{folder or 'no folder'} is no checkout: write versions:FOLDER")
    checkouts = Path(folder).resolve(), Path(__file__).resolve().parents[1]
    found: dict[str, list[Seconds]] = {}
    for name in (each.name for each in KNOWN):
        for checkout in checkouts:
            for stage, seconds in _by(checkout, name).items():
                found.setdefault(f"{name} {stage}", []).append(seconds)
        print(f"{name}: done", flush=True)
    return [compared(found)]


def compared(found: dict[str, list[Seconds]]) -> Table:
    """By stage: what was measured before, and after."""
    table = Table(
        title=f"Time at 1K, tile 256, to the stage's own forward by stock kernels, medians of {ROUNDS} runs "
        "in turn, before and after; in brackets seconds of the processor"
    )
    ways = [way for way in next(iter(found.values()))[0] if way != STOCK]
    for heading in ("stage", STOCK, *(f"{way}, {when}" for way in ways for when in ("before", "after"))):
        table.add_column(heading)
    for stage, both in found.items():
        stock = " and ".join(f"{_processor(seconds[STOCK]):.2f}" for seconds in both)
        table.add_row(stage, f"({stock} s)", *(_cell(seconds, way) for way in ways for seconds in both))
    return table


def _cell(seconds: Seconds, way: str) -> str:
    ratios = [own / stock for (own, _), (stock, _) in zip(seconds[way], seconds[STOCK], strict=True)]
    return f"{median(ratios):.2f} ({_processor(seconds[way]):.2f} s)"


def _processor(rounds: list[tuple[float, float]]) -> float:
    return median(seconds for _, seconds in rounds)


def _by(checkout: Path, name: str) -> dict[str, Seconds]:
    """This very program, run with the packages of another checkout."""
    packages = map(str, (checkout, *checkout.glob("plugins/*")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(packages)}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-", name],
        input=Path(__file__).read_text(),
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if run.returncode:
        raise SystemExit(f"{name} cannot be measured by {checkout}: see above")
    return json.loads(run.stdout.splitlines()[-1])


@torch.no_grad()
def measured(name: str) -> dict[str, Seconds]:
    model = checkpoint.load_checkpoint(f"zoo:{name}").model
    stream = tiled_stages(overlap_tool.wrap(model, tile=256, schedule="stream"))
    tiles = tiled_stages(overlap_tool.wrap(model, tile=256, schedule="tiles"))
    found: dict[str, Seconds] = {}
    for stage in STAGES:
        original = stream[stage].original

        def whole(x: Tensor, original: Callable[[Tensor], Tensor] = original) -> Tensor:
            with exact_kernels():
                return original(x)

        ways: dict[str, Callable[[Tensor], Tensor]] = {
            STOCK: original,
            "exact, whole": whole,
            "exact, stream": stream[stage],
            "exact, tiles": tiles[stage],
        }
        side = int(1024 * stream[stage].input_scale)
        image = torch.rand(1, stream[stage].network.ops[0].channels, side, side)
        for way, run in ways.items():
            for _ in range(WARM.get(way, 1)):
                run(image)
        found[stage] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, run in ways.items():
                found[stage][way].append(_timed(run, image))
    return found


def _timed(run: Callable[[Tensor], Tensor], image: Tensor) -> tuple[float, float]:
    start, used = time.perf_counter(), _used()
    run(image)
    return time.perf_counter() - start, _used() - used


def _used() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1])))
