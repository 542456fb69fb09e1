"""What exact tiling costs: time against stock full-image inference, and the most tensor bytes alive at once.

All variants of a stage run in turn in this process, so that the ratios hold when the machine's speed drifts.
Bytes are counted, not sampled: every op's result is seen by a dispatch mode. The full image's are counted on
fake tensors, which have shapes and storages of the true size but no data.
"""

from __future__ import annotations

import time
from fractions import Fraction
from statistics import median

import torch
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import overlap_tool
from benchmarks.live_memory import LiveBytes
from overlap_tool import checkpoint
from overlap_tool.retrofit import Shape, TiledForward, tiled_stages

LIMITS = {"mbt2018": 0.75, "cheng2020-attn": 0.95, "elic2022-official": 0.95}
STAGES = ("g_a", "g_s")
RUNS = 3
TILE = 256
SIDE = 2048
IMAGE_4K = (3840, 2160)


def _input(stage: TiledForward, width: int, height: int, **options: object) -> Tensor:
    scale: Fraction = stage.input_scale
    channels = stage.network.ops[0].channels
    return torch.rand(1, channels, int(height * scale), int(width * scale), **options)


def _seconds(run: nn.Module | TiledForward, image: Tensor) -> float:
    start = time.perf_counter()
    run(image)
    return time.perf_counter() - start


def _peak_bytes(run: object, image: Tensor) -> int:
    weights = run.module.parameters() if isinstance(run, TiledForward) else ()
    with LiveBytes(image, *weights) as live:
        result = run(image)
    del result
    return live.peak + image.untyped_storage().nbytes()


def _same_bits(stage: TiledForward, image: Tensor) -> bool:
    """Whether the stream is what the stage's own forward gives with exact kernels."""
    with overlap_tool.exact_kernels():
        return torch.equal(stage.original(image), stage(image))


def _stages() -> list[tuple[str, TiledForward]]:
    found = []
    for name in LIMITS:
        tiled = overlap_tool.wrap(checkpoint.load(f"zoo:{name}").model, tile=TILE, inplace=True)
        found += [(name, tiled_stages(tiled)[stage]) for stage in STAGES]
    return found


@torch.no_grad()
def main() -> list[Table]:
    speed = Table(
        title=f"stream by the exact engine, tile {TILE}, on {SIDE}x{SIDE}, against the stock full image, "
        f"{torch.get_num_threads()} threads; median of {RUNS} runs in turn"
    )
    for heading in ("stage", "stock, full", "exact, stream", "stream / full (range)", "limit", "same bits"):
        speed.add_column(heading)
    memory = Table(
        title=f"Tensor bytes alive at once at {IMAGE_4K[0]}x{IMAGE_4K[1]}, input and output included, "
        f"32-bit floats, tile {TILE}"
    )
    for heading in ("stage", "full image", "stream", "stream / full", "predicted"):
        memory.add_column(heading)

    for name, stage in _stages():
        label = f"{name} {stage.name}"
        image = _input(stage, SIDE, SIDE)
        pairs = [(_seconds(stage.original, image), _seconds(stage, image)) for _ in range(RUNS + 1)][1:]
        ratios = [tiled / full for full, tiled in pairs]
        speed.add_row(
            label,
            f"{median(full for full, _ in pairs):.2f} s",
            f"{median(tiled for _, tiled in pairs):.2f} s",
            f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
            f"{LIMITS[name]}",
            "yes" if _same_bits(stage, image) else "NO",
        )
        with FakeTensorMode(allow_non_fake_inputs=True):
            full = _peak_bytes(stage.original, _input(stage, *IMAGE_4K))
        large = _input(stage, *IMAGE_4K)
        tiled = _peak_bytes(stage, large)
        plan = stage.plan(Shape(1, large.shape[2], large.shape[3]))
        memory.add_row(
            label,
            f"{full / 1e6:.1f} MB",
            f"{tiled / 1e6:.1f} MB",
            f"{tiled / full:.2%}",
            f"{plan.peak_bytes / 1e6:.1f} MB",
        )
        print(f"{label}: {median(ratios):.3f} of the time, {tiled / full:.2%} of the bytes")
    return [speed, memory]
