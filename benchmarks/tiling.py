"""What exact tiling costs: time against stock full-image inference, and the most tensor bytes alive at once.

Both kernels of a stage are run in turn with the stage's own forward. On the CPU, the bytes of the full image
are counted on fake tensors, which have shapes and storages of the true size but no data.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median

import torch
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import overlap_tool
from benchmarks.measuring import RUNS, Way, exact, peak_bytes, ratio, seconds_in_turn
from overlap_tool import checkpoint
from overlap_tool.planning.choose import Shape
from overlap_tool.settings import Engine
from overlap_tool.wrapping.retrofit import TiledForward, tiled_stages

TILE = 256
SIDE = 2048
IMAGE_4K = (3840, 2160)
STAGES = ("g_a", "g_s")
ENGINES: tuple[Engine, ...] = ("stock", "exact")


@dataclass(frozen=True)
class Limit:
    """Of the time of the whole image, by engine."""

    stock: float
    exact: float


LIMITS = {
    "mbt2018": Limit(stock=1.0, exact=0.75),
    "cheng2020-attn": Limit(stock=1.1, exact=0.95),
    "elic2022-official": Limit(stock=1.1, exact=0.95),
}
MEMORY_LIMIT = 0.05
"""Of the bytes of the whole image, with stock kernels."""


def _image(stage: TiledForward, width: int, height: int, device: str) -> Tensor:
    scale, channels = stage.input_scale, stage.network.ops[0].channels
    return torch.rand(1, channels, int(height * scale), int(width * scale), device=device)


def _largest_difference(stage: TiledForward, image: Tensor) -> float:
    """Between the stream and the stage's own forward, both with the kernels of the stream, relative to the
    largest sample."""
    whole = exact(stage.original) if stage.settings.engine == "exact" else stage.original
    expected = whole(image)
    return float((stage(image) - expected).abs().max() / expected.abs().max())


def _full_bytes(stage: TiledForward, device: str, weights: list[nn.Parameter]) -> int:
    with FakeTensorMode(allow_non_fake_inputs=True) if device == "cpu" else nullcontext():
        return peak_bytes(stage.original, _image(stage, *IMAGE_4K, device), weights)[0]


def _add_times(table: Table, name: str, stages: dict[Engine, TiledForward], device: str) -> None:
    image = _image(stages["exact"], SIDE, SIDE, device)
    ways: dict[str, Way] = {
        "whole": stages["exact"].original,
        **{engine: stages[engine] for engine in ENGINES},
    }
    runs, _ = seconds_in_turn(ways, image)
    limits = LIMITS[name.split()[0]]
    for engine, stage in stages.items():
        limit = getattr(limits, engine)
        holds = median(run[engine] / run["whole"] for run in runs) <= limit
        table.add_row(
            name,
            engine,
            f"{median(run['whole'] for run in runs):.2f} s",
            ratio(runs, engine, "whole"),
            f"{limit}",
            "yes" if holds else "NO",
            f"{_largest_difference(stage, image):.1e}".replace("0.0e+00", "0"),
        )


def _add_memory(table: Table, name: str, stages: dict[Engine, TiledForward], device: str) -> None:
    weights = [*stages["exact"].module.parameters()]
    full = _full_bytes(stages["exact"], device, weights)
    image = _image(stages["exact"], *IMAGE_4K, device)
    for engine, stage in stages.items():
        peak, _ = peak_bytes(stage, image, weights)
        predicted = stage.plan(Shape(1, image.shape[2], image.shape[3])).peak_bytes
        holds = "yes" if peak <= MEMORY_LIMIT * full else "NO"
        table.add_row(
            name,
            engine,
            f"{full / 1e6:.1f} MB",
            f"{peak / 1e6:.1f} MB",
            f"{predicted / 1e6:.1f} MB",
            f"{peak / full:.2%}",
            *((f"{MEMORY_LIMIT:.0%}", holds) if engine == "stock" else ()),
        )


@torch.no_grad()
def main(device: str = "cpu") -> list[Table]:
    times = Table(
        title=f"stream with tile {TILE} on {SIDE}x{SIDE}, against the stage's own forward by stock kernels; "
        f"median of {RUNS} runs in turn (range). The difference is to the whole image by the same kernels, "
        f"relative to the largest sample"
    )
    for heading in ("stage", "kernels", "whole", "stream / whole", "limit", "holds", "difference"):
        times.add_column(heading)
    memory = Table(
        title=f"Tensor bytes alive at once at {IMAGE_4K[0]}x{IMAGE_4K[1]}, input and output included, "
        f"tile {TILE}; exact kernels have a packed copy of the weights"
    )
    for heading in ("stage", "kernels", "whole", "stream", "predicted", "stream / whole", "limit", "holds"):
        memory.add_column(heading)
    for name in LIMITS:
        model = checkpoint.load_checkpoint(f"zoo:{name}").model.to(device)
        wrapped = {
            engine: tiled_stages(overlap_tool.wrap(model, tile=TILE, engine=engine)) for engine in ENGINES
        }
        for stage in STAGES:
            both = {engine: wrapped[engine][stage] for engine in ENGINES}
            _add_times(times, f"{name} {stage}", both, device)
            _add_memory(memory, f"{name} {stage}", both, device)
            print(f"{name} {stage}: done", flush=True)
    return [times, memory]
