"""Every architecture of the zoo: arithmetic and memory at 1K to 4K, and time at 1K, for each way to run it.

Multiply-accumulates and bytes are those of the plans, exact, and tests hold them to what runs. All ways of a
stage run in turn in this process, so that the ratios hold when the machine's speed drifts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from rich.table import Table
from torch import Tensor

import overlap_tool
from overlap_tool import checkpoint, exact_kernels
from overlap_tool.retrofit import Shape, TiledForward, tiled_stages
from overlap_tool.schedule.choose import Schedule, StagePlan
from overlap_tool.schedule.cost import full_bytes, op_costs
from overlap_tool.schedule.plan import whole

STAGES = ("g_a", "g_s")
SIZES = {"1K": (1024, 1024), "2K": (1920, 1088), "4K": (3840, 2176)}
TIMED = "1K"
TILE = 256
RUNS = 3
SCHEDULES: tuple[Schedule, ...] = ("stream", "tiles")


def _shape(stage: TiledForward, size: tuple[int, int]) -> Shape:
    width, height = (int(side * stage.input_scale) for side in size)
    return Shape(1, height, width)


def _full_bytes(stage: TiledForward, shape: Shape) -> int:
    network = stage.network
    return full_bytes(
        op_costs(network), whole(network.rows, shape.rows), whole(network.columns, shape.columns)
    )


def _seconds(run: Callable[[Tensor], Tensor], image: Tensor) -> float:
    start = time.perf_counter()
    run(image)
    return time.perf_counter() - start


def _exact_full(stage: TiledForward) -> Callable[[Tensor], Tensor]:
    def run(image: Tensor) -> Tensor:
        with exact_kernels():
            return stage.original(image)

    return run


def _costs(table: Table, name: str, stages: dict[Schedule, TiledForward]) -> None:
    for label, size in SIZES.items():
        shape = _shape(stages["stream"], size)
        full = _full_bytes(stages["stream"], shape)
        plans: dict[Schedule, StagePlan] = {schedule: stages[schedule].plan(shape) for schedule in SCHEDULES}
        table.add_row(
            name,
            label,
            f"{full / 1e6:.0f} MB",
            *(f"{plans[schedule].peak_bytes / full:.1%}" for schedule in SCHEDULES),
            f"{plans['stream'].macs / 1e9:.1f} G",
            f"{plans['tiles'].macs / plans['stream'].macs:.3f}",
        )


def _times(table: Table, name: str, stages: dict[Schedule, TiledForward]) -> None:
    stage = stages["stream"]
    shape = _shape(stage, SIZES[TIMED])
    image = torch.rand(1, stage.network.ops[0].channels, shape.rows, shape.columns)
    ways = {
        "stock, full": stage.original,
        "exact, full": _exact_full(stage),
        **{f"exact, {schedule}": stages[schedule] for schedule in SCHEDULES},
    }
    runs = [{way: _seconds(run, image) for way, run in ways.items()} for _ in range(RUNS + 1)][1:]
    stock = [run["stock, full"] for run in runs]
    cells = [f"{median(stock):.2f} s"]
    for way in list(ways)[1:]:
        ratios = [run[way] / full for run, full in zip(runs, stock, strict=True)]
        cells.append(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    table.add_row(name, *cells)


@torch.no_grad()
def main() -> list[Table]:
    costs = Table(title=f"Memory and arithmetic of a stage, tile {TILE}, 32-bit floats; no time is measured")
    for heading in ("stage", "size", "full image", "stream / full", "tiles / full", "MACs", "MACs of tiles"):
        costs.add_column(heading)
    times = Table(
        title=f"Time at {TIMED}, tile {TILE}, against the stage's own forward by stock kernels, "
        f"{torch.get_num_threads()} threads; median of {RUNS} runs in turn (range)"
    )
    for heading in ("stage", "stock, full", "exact, full", "exact, stream", "exact, tiles"):
        times.add_column(heading)
    for name in checkpoint.names():
        model = checkpoint.load(f"zoo:{name}").model
        tiled = {
            schedule: tiled_stages(overlap_tool.wrap(model, tile=TILE, schedule=schedule))
            for schedule in SCHEDULES
        }
        for stage in STAGES:
            both = {schedule: tiled[schedule][stage] for schedule in SCHEDULES}
            _costs(costs, f"{name} {stage}", both)
            _times(times, f"{name} {stage}", both)
            print(f"{name} {stage}: done")
    return [costs, times]
