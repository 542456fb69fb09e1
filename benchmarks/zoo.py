"""All architectures of CompressAI: arithmetic, memory and time of each way to run their transforms.

Multiply-accumulates and bytes are those of the plans, exact, and tests hold them to what runs; those of the
whole image by exact kernels are counted. The cases 1K, 2K and 4K measure time; on two cores, 2K takes half an
hour and 4K over an hour and a half. All ways of a stage run in turn in this process, so that the ratios hold
when the machine's speed drifts. What has the layers of one before it is not run again.
"""

from __future__ import annotations

from collections.abc import Hashable
from statistics import median
from unittest.mock import patch

import torch
from rich.table import Table
from torch import Tensor

import overlap_tool
from benchmarks.measuring import RUNS, Way, exact, peak_bytes, ratio, seconds_in_turn
from overlap_tool import checkpoint
from overlap_tool.checkpoint.architectures import KNOWN
from overlap_tool.geometry.plan import whole
from overlap_tool.graph.network import Op
from overlap_tool.kernels import threads
from overlap_tool.planning.choose import Shape, StagePlan
from overlap_tool.planning.cost import full_bytes, op_costs
from overlap_tool.settings import Schedule
from overlap_tool.wrapping.retrofit import TiledForward, tiled_stages

STAGES = ("g_a", "g_s")
SIZES = {"1K": (1024, 1024), "2K": (1920, 1088), "4K": (3840, 2176)}
TILE = 256
SCHEDULES: tuple[Schedule, ...] = ("stream", "tiles")
COSTS = (
    *("stage", "size", "bytes, whole", "bytes, exact whole / whole", "bytes, stream / whole"),
    *("bytes, tiles / whole", "MACs, whole or stream", "MACs, tiles / stream"),
)
TIMES = ("stage", "stock, whole", "exact, whole", "exact, stream", "exact, tiles", "same bits")


def _shape(stage: TiledForward, size: tuple[int, int]) -> Shape:
    width, height = (int(side * stage.input_scale) for side in size)
    return Shape(1, height, width)


def _full_bytes(stage: TiledForward, shape: Shape) -> int:
    network = stage.network
    return full_bytes(
        op_costs(network), whole(network.rows, shape.rows), whole(network.columns, shape.columns)
    )


def _image(stage: TiledForward, shape: Shape, device: str) -> Tensor:
    return torch.rand(1, stage.network.ops[0].channels, shape.rows, shape.columns, device=device)


def _corner(stage: TiledForward, image: Tensor) -> Tensor:
    """A tile of it, on which kernels are compiled and tried."""
    side = int(TILE * stage.input_scale)
    return image[..., :side, :side].contiguous()


def _exact_bytes(stage: TiledForward, image: Tensor) -> int:
    """Of the whole image by exact kernels. What convolutions compute takes time, and no memory: it is left
    out."""
    way = exact(stage.original)
    way(_corner(stage, image))
    with patch.object(threads, "run_on_threads", lambda *_: None):
        return peak_bytes(way, image, stage.module.parameters())[0]


def _add_costs(
    table: Table, name: str, stages: dict[Schedule, TiledForward], counted: dict[Hashable, int], device: str
) -> None:
    stage = stages["stream"]
    for label, size in SIZES.items():
        shape = _shape(stage, size)
        full = _full_bytes(stage, shape)
        layers = _layers(stage), label
        if layers not in counted:
            counted[layers] = _exact_bytes(stage, _image(stage, shape, device))
        plans: dict[Schedule, StagePlan] = {schedule: stages[schedule].plan(shape) for schedule in SCHEDULES}
        table.add_row(
            name,
            label,
            f"{full / 1e6:.0f} MB",
            f"{counted[layers] / full:.1%}",
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
    image = _image(stage, _shape(stage, size), device)
    ways: dict[str, Way] = {
        "stock, whole": stage.original,
        "exact, whole": exact(stage.original),
        **{f"exact, {schedule}": stages[schedule] for schedule in SCHEDULES},
    }
    stock, *others = ways
    runs, results = seconds_in_turn(ways, image, first=_corner(stage, image))
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
    """`only` is a size to measure time at, in place of memory and arithmetic."""
    if only and only not in SIZES:
        raise SystemExit(f"{only} is none of {', '.join(SIZES)}")
    table = Table(
        title=f"Time at {only}, tile {TILE}, against the stage's own forward by stock kernels; median of "
        f"{RUNS} runs in turn (range)"
        if only
        else f"Memory and arithmetic of a stage, tile {TILE}, 32-bit floats; no time is measured. Stream and "
        f"tiles are by exact kernels"
    )
    for heading in TIMES if only else COSTS:
        table.add_column(heading)
    first: dict[Hashable, str] = {}
    counted: dict[Hashable, int] = {}
    for name in (each.name for each in KNOWN):
        model = checkpoint.load_checkpoint(f"zoo:{name}").model.to(device)
        tiled = {
            schedule: tiled_stages(overlap_tool.wrap(model, tile=TILE, schedule=schedule))
            for schedule in SCHEDULES
        }
        for stage in STAGES:
            both = {schedule: tiled[schedule][stage] for schedule in SCHEDULES}
            label = f"{name} {stage}"
            same = first.setdefault(_layers(both["stream"]), label)
            if not only:
                _add_costs(table, label, both, counted, device)
            elif same != label:
                table.add_row(label, f"as {same}")
            else:
                _add_times(table, label, both, SIZES[only], device)
            print(f"{label}: done", flush=True)
    return [table]
