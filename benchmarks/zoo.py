"""All architectures of CompressAI: arithmetic, memory and time of each way to run their transforms.

Multiply-accumulates and bytes are those of the plans, exact, and tests hold them to what runs. All ways of a
stage run in turn in this process, so that the ratios hold when the machine's speed drifts. Time is measured
at 1K, which takes half an hour on two cores; the cases 2K and 4K time those sizes, in half an hour and in one
and a half. There a transform that has the layers of one before it is not timed again.
"""

from __future__ import annotations

from collections.abc import Hashable
from statistics import median

import torch
from rich.table import Table

import overlap_tool
from benchmarks.measuring import RUNS, Way, exact, ratio, seconds_in_turn
from overlap_tool import checkpoint
from overlap_tool.checkpoint.architectures import KNOWN
from overlap_tool.network import Op
from overlap_tool.retrofit import TiledForward, tiled_stages
from overlap_tool.schedule.choose import Schedule, Shape, StagePlan
from overlap_tool.schedule.cost import full_bytes, op_costs
from overlap_tool.schedule.plan import whole

STAGES = ("g_a", "g_s")
SIZES = {"1K": (1024, 1024), "2K": (1920, 1088), "4K": (3840, 2176)}
TILE = 256
SCHEDULES: tuple[Schedule, ...] = ("stream", "tiles")


def _shape(stage: TiledForward, size: tuple[int, int]) -> Shape:
    width, height = (int(side * stage.input_scale) for side in size)
    return Shape(1, height, width)


def _full_bytes(stage: TiledForward, shape: Shape) -> int:
    network = stage.network
    return full_bytes(
        op_costs(network), whole(network.rows, shape.rows), whole(network.columns, shape.columns)
    )


def _add_costs(table: Table, name: str, stages: dict[Schedule, TiledForward]) -> None:
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


def _layers(stage: TiledForward) -> Hashable:
    """What decides how long a stage takes, on images of one size."""
    network = stage.network
    return (
        network.rows,
        network.columns,
        tuple(op.kind for op in network.ops if isinstance(op, Op)),
        op_costs(network),
    )


def _add_times(
    table: Table, name: str, stages: dict[Schedule, TiledForward], size: tuple[int, int], device: str
) -> None:
    stage = stages["stream"]
    shape = _shape(stage, size)
    image = torch.rand(1, stage.network.ops[0].channels, shape.rows, shape.columns, device=device)
    ways: dict[str, Way] = {
        "stock, whole": stage.original,
        "exact, whole": exact(stage.original),
        **{f"exact, {schedule}": stages[schedule] for schedule in SCHEDULES},
    }
    stock, *others = ways
    corner = int(TILE * stage.input_scale)
    runs, results = seconds_in_turn(ways, image, first=image[..., :corner, :corner].contiguous())
    expected, *found = (results[way] for way in others)
    same = all(torch.equal(expected, result) for result in found)
    table.add_row(
        name,
        f"{median(run[stock] for run in runs):.2f} s",
        *(ratio(runs, way, stock) for way in others),
        "yes" if same else "NO",
    )


@torch.no_grad()
def main(only: str = "", device: str = "cpu") -> list[Table]:
    """`only` is a size to measure time at, and nothing else."""
    if only and only not in SIZES:
        raise SystemExit(f"{only} is none of {', '.join(SIZES)}")
    timed = only or "1K"
    costs = Table(title=f"Memory and arithmetic of a stage, tile {TILE}, 32-bit floats; no time is measured")
    for heading in (
        *("stage", "size", "bytes, whole", "bytes, stream / whole", "bytes, tiles / whole"),
        *("MACs, whole or stream", "MACs, tiles / stream"),
    ):
        costs.add_column(heading)
    times = Table(
        title=f"Time at {timed}, tile {TILE}, against the stage's own forward by stock kernels; median of "
        f"{RUNS} runs in turn (range)"
    )
    for heading in ("stage", "stock, whole", "exact, whole", "exact, stream", "exact, tiles", "same bits"):
        times.add_column(heading)
    first: dict[Hashable, str] = {}
    for name in (each.name for each in KNOWN):
        model = checkpoint.load(f"zoo:{name}").model.to(device)
        tiled = {
            schedule: tiled_stages(overlap_tool.wrap(model, tile=TILE, schedule=schedule))
            for schedule in SCHEDULES
        }
        for stage in STAGES:
            both = {schedule: tiled[schedule][stage] for schedule in SCHEDULES}
            label = f"{name} {stage}"
            same = first.setdefault(_layers(both["stream"]), label)
            _add_costs(costs, label, both)
            if only and same != label:
                times.add_row(label, f"as {same}")
            else:
                _add_times(times, label, both, SIZES[timed], device)
            print(f"{label}: done", flush=True)
    return [times] if only else [costs, times]
