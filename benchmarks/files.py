"""Peak resident memory of `compress` and `decompress` on large images, each in a process of its own.

Beside it stands what the whole image would take: the most bytes of tensors alive at once in the untouched
model's transforms, counted on fake tensors, which have shapes and storages of the true size but no data.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.planning.live_bytes import LiveBytes

MODEL = "mbt2018-mean"


@dataclass(frozen=True)
class Case:
    width: int
    height: int
    suffix: str
    limit: int
    """What the process may hold."""

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}"


CASES = (Case(7680, 4320, ".npy", 3 << 30), Case(20000, 20000, ".zarr", 4 << 30))
HEADINGS = ("image", "command", "peak", "limit", "holds", "tensors of the whole image", "bands", "seconds")


def _bands(width: int, height: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Made-up rows with detail at several scales, and noise."""
    chance = np.random.default_rng(0)
    across = np.arange(width)
    for start in range(0, height, 256):
        down = np.arange(start, min(start + 256, height))[:, None]
        waves = 40 * np.sin(across / 97) * np.cos(down / 61) + 30 * np.sin((across + 2 * down) / 11)
        noise = chance.integers(-12, 13, (len(down), width, 3), np.int16)
        yield start, np.clip(128 + waves[..., None] + noise, 0, 255).astype(np.uint8)


def make_image(path: Path, width: int, height: int) -> None:
    shape = (height, width, 3)
    array = (
        zarr.open_array(store=str(path), mode="w", shape=shape, chunks=(256, 1024, 3), dtype="uint8")
        if path.suffix == ".zarr"
        else np.lib.format.open_memmap(path, mode="w+", shape=shape, dtype=np.uint8)
    )
    for start, rows in _bands(width, height):
        array[start : start + len(rows)] = rows


def measured(command: str, model: Path, source: Path, target: Path) -> dict[str, Any] | str:
    """What the command tells of itself, or why it tells nothing."""
    tool = [sys.executable, "-W", "ignore", "-m", "overlap_tool", command, str(source)]
    done = subprocess.run(
        [*tool, "--model", str(model), "-o", str(target), "--json"], capture_output=True, text=True
    )
    if done.returncode == 0:
        return json.loads(done.stdout)
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


@torch.no_grad()
def _whole_image_bytes(width: int, height: int) -> int:
    model: Any = checkpoint.seeded_model(checkpoint.find(MODEL))
    peaks = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        for stage, channels, scale in ((model.g_a, 3, 1), (model.g_s, model.M, 16)):
            image = torch.empty(1, channels, -(-height // 64) * 64 // scale, -(-width // 64) * 64 // scale)
            with LiveBytes(image, *model.parameters()) as live:
                stage(image)
            peaks.append(live.peak + image.untyped_storage().nbytes())
    return max(peaks)


def row(case: Case, command: str, told: dict[str, Any] | str, whole: int) -> tuple[str, ...]:
    first = f"{case.name} {case.suffix}", command
    limit, beside = f"{case.limit / 2**30:.0f} GiB", f"{whole / 2**30:.1f} GiB"
    if isinstance(told, str):
        return (*first, "failed", limit, "NO", beside, "", told)
    peak = told["peak_memory_bytes"]
    holds = "yes" if peak < case.limit else "NO"
    figures = f"{peak / 2**30:.2f} GiB", limit, holds, beside, str(told["bands"]), f"{told['seconds']:.0f}"
    return (*first, *figures)


def main(only: str = "") -> list[Table]:
    """`only` is the name of a case, such as 7680x4320."""
    cases = [case for case in CASES if only in ("", case.name)]
    if not cases:
        raise SystemExit(f"{only} is none of {', '.join(case.name for case in CASES)}")
    table = Table(*HEADINGS, title=f"{MODEL}, tile 256, 32-bit floats: peak resident memory of the process")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        loaded = checkpoint.load_checkpoint(f"zoo:{MODEL}")
        tiled = overlap_tool.wrap(loaded.model, tile=256)
        model = folder / "it.tiled.pt"
        overlap_tool.save(tiled, model, loaded.architecture, loaded.arguments)
        for case in cases:
            image, coded = folder / f"in{case.suffix}", folder / "it.lic"
            make_image(image, case.width, case.height)
            whole = _whole_image_bytes(case.width, case.height)
            for command, source, target in (
                ("compress", image, coded),
                ("decompress", coded, folder / f"out{case.suffix}"),
            ):
                table.add_row(*(cells := row(case, command, measured(command, model, source, target), whole)))
                print(*cells, flush=True)
            coded.unlink(missing_ok=True)
    return [table]
