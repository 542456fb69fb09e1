"""Peak resident memory of `compress` and `decompress` on large images, each in a process of its own.

Beside it stands what the whole image would take: the most bytes of tensors alive at once in the untouched
model's transforms, counted on fake tensors, which have shapes and storages of the true size but no data.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode

import overlap_tool
from benchmarks.live_memory import LiveBytes
from overlap_tool import checkpoint

MODEL = "mbt2018-mean"
CASES = ((7680, 4320, "in.npy", 3 << 30), (20000, 20000, "in.zarr", 4 << 30))
"""Width, height, file, and what the process may hold."""


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


def _measured(command: str, model: Path, source: Path, target: Path) -> dict[str, float]:
    tool = [sys.executable, "-W", "ignore", "-m", "overlap_tool", command, str(source)]
    done = subprocess.run(
        [*tool, "--model", str(model), "-o", str(target), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@torch.no_grad()
def _whole_image_bytes(width: int, height: int) -> int:
    model = checkpoint.seeded_model(checkpoint.find(MODEL))
    peaks = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        for stage, channels, scale in ((model.g_a, 3, 1), (model.g_s, model.M, 16)):
            image = torch.empty(1, channels, -(-height // 64) * 64 // scale, -(-width // 64) * 64 // scale)
            with LiveBytes(image, *model.parameters()) as live:
                stage(image)
            peaks.append(live.peak + image.untyped_storage().nbytes())
    return max(peaks)


def main() -> list[Table]:
    table = Table(title=f"{MODEL}, tile 256, 32-bit floats: peak resident memory of the process")
    for heading in (
        "image",
        "command",
        "peak",
        "limit",
        "holds",
        "tensors of the whole image",
        "bands",
        "seconds",
    ):
        table.add_column(heading)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        loaded = checkpoint.load(f"zoo:{MODEL}")
        tiled = overlap_tool.wrap(loaded.model, tile=256)
        overlap_tool.save(tiled, folder / "it.tiled.pt", loaded.architecture, loaded.arguments)
        for width, height, name, limit in CASES:
            make_image(folder / name, width, height)
            whole = _whole_image_bytes(width, height)
            for command, source, target in (
                ("compress", name, "it.lic"),
                ("decompress", "it.lic", f"out{Path(name).suffix}"),
            ):
                told = _measured(command, folder / "it.tiled.pt", folder / source, folder / target)
                peak = told["peak_memory_bytes"]
                table.add_row(
                    f"{width}x{height} {Path(name).suffix}",
                    command,
                    f"{peak / 2**30:.2f} GiB",
                    f"{limit / 2**30:.0f} GiB",
                    "yes" if peak < limit else "NO",
                    f"{whole / 2**30:.1f} GiB",
                    str(told["bands"]),
                    f"{told['seconds']:.0f}",
                )
                print(f"{width}x{height} {command}: {peak / 2**30:.2f} GiB")
    return [table]
