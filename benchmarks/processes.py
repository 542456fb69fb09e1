"""A scene of 6,000 x 5,000 pixels by one process, and by 1, 2 and 4 workers: bytes and memory.

Every model runs in one process first. Then workers make the same file and the same image, to the byte and to
the sample. `held` is what a worker had resident at most while it computed a piece of a stage, above what it
had before its first piece of the scene, when the model was loaded there and had run on a small image;
`foretold` is the planner's figure for these pieces. `coding` is the same while it coded a band of symbols, or
decoded one; foretold of that is the figure for the strings of the file.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import CDLL
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
import dask.utils
import distributed
import numpy as np
import torch
import zarr
from rich.table import Table
from torch import nn
from torchvision.ops import SqueezeExcitation

import overlap_tool
from benchmarks.files import make_image
from overlap_tool import checkpoint, files
from overlap_tool.distributed import compress, decompress, run
from overlap_tool.distributed.cluster import OF_OUR_OWN
from overlap_tool.distributed.outlook import coding_outlook, outlook
from overlap_tool.files import Codec
from overlap_tool.files.formats import container
from overlap_tool.settings import Size

WIDTH, HEIGHT = 6000, 5000
WORKERS = (1, 2, 4)
LIMIT = 4 << 30
"""What a worker is given, Python and PyTorch included."""
HEADINGS = (
    "model",
    "workers",
    "same file",
    "same image",
    "foretold",
    "held",
    "held / foretold",
    "coding foretold",
    "coding held",
    "held / foretold",
)
CODING = "compute_with"
"""The task that codes a band, or decodes one; all others are pieces."""


@dataclass(frozen=True)
class Case:
    name: str
    architecture: str
    arguments: Mapping[str, Any] | None
    """Those of a narrower model; of the zoo's own, None."""
    workers: tuple[int, ...] = WORKERS
    piece: int = 2048


CASES = (
    Case("mbt2018-mean, N=32, M=48", "mbt2018-mean", {"N": 32, "M": 48}),
    Case("cheng2020-anchor-checkerboard, N=8", "cheng2020-anchor-checkerboard", {"N": 8}),
    Case("ELIC, N=8, M=12", "elic2022-official", {"N": 8, "M": 12, "groups": [2, 4, 6]}),
    Case("squeeze-and-excitation", "benchmarks.processes:Excited", None),
    Case("mbt2018-mean", "mbt2018-mean", {"N": 128, "M": 192}, workers=(2,), piece=4096),
)


class Excited(nn.Sequential):
    """A network with squeeze-and-excitation at the image's size, and one at half of it."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            SqueezeExcitation(16, 4),
            nn.Conv2d(16, 24, 5, stride=2, padding=2),
            nn.ReLU(),
            SqueezeExcitation(24, 6),
            nn.ConvTranspose2d(24, 3, 4, stride=2, padding=1),
        )


def resident(what: str) -> int:
    """Of this process: `VmRSS`, or `VmHWM`, the most since the mark was set back."""
    return int(Path("/proc/self/status").read_text().partition(f"{what}:")[2].split()[0]) * 1024


class Marks(distributed.WorkerPlugin):
    """The most that was resident in a worker while it had a task of each kind."""

    name = "marks"

    def begin(self) -> int:
        """Forget what was; what is resident now."""
        self.most: dict[str, int] = {}
        CDLL("libc.so.6").malloc_trim(0)
        return resident("VmRSS")

    def transition(self, key: Any, start: str, finish: str, **_: object) -> None:
        if finish == "executing":
            Path("/proc/self/clear_refs").write_text("5")
        if start == "executing":
            kind = dask.utils.key_split(key)
            self.most[kind] = max(self.most.get(kind, 0), resident("VmHWM"))


def begin(dask_worker: Any) -> int:
    marks: Marks = dask_worker.plugins[Marks.name]
    return marks.begin()


def most(dask_worker: Any) -> dict[str, int]:
    marks: Marks = dask_worker.plugins[Marks.name]
    return marks.most


@contextmanager
def cluster(workers: int) -> Iterator[Any]:
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        dask.config.set(OF_OUR_OWN),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=LIMIT,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as started,
        distributed.Client(started, set_as_default=False) as client,
    ):
        yield client


class Scene:
    """A model, an image, and what one process makes of it."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.folder = folder
        self.plain = case.arguments is None
        if case.arguments is None:
            torch.manual_seed(0)
            model: nn.Module = Excited().eval()
            arguments = dict[str, Any]()
        else:
            model = checkpoint.seeded_model(checkpoint.find(case.architecture), case.arguments)
            arguments = dict(case.arguments)
        overlap_tool.save(
            overlap_tool.wrap(model, tile=256), folder / "it.tiled.pt", case.architecture, arguments
        )
        self.codec = Codec.load(folder / "it.tiled.pt", trust=self.plain)
        make_image(folder / "small.zarr", 1024, 2048)
        make_image(folder / "in.zarr", WIDTH, HEIGHT)
        if self.plain:
            files.run(self.codec, folder / "in.zarr", folder / "one.zarr")
        else:
            files.compress(self.codec, folder / "in.zarr", folder / "one.lic")
            files.decompress(self.codec, folder / "one.lic", folder / "one.zarr")

    def by(self, address: str, image: str, piece: int) -> None:
        """What workers make of an image: many.zarr, and of a codec, many.lic."""
        how: dict[str, Any] = {"dask": address, "piece": piece, "trust": self.plain}
        source, coded, made = (self.folder / name for name in (image, "many.lic", "many.zarr"))
        shutil.rmtree(made, ignore_errors=True)
        coded.unlink(missing_ok=True)
        if self.plain:
            run(self.codec, source, made, **how)
        else:
            compress(self.codec, source, coded, **how)
            decompress(self.codec, coded, made, **how)

    def same_file(self) -> str:
        if self.plain:
            return ""
        one, many = ((self.folder / name).read_bytes() for name in ("one.lic", "many.lic"))
        return "yes" if one == many else "NO"

    def same_image(self) -> str:
        one, many = (
            zarr.open_array(store=str(self.folder / name), mode="r") for name in ("one.zarr", "many.zarr")
        )
        bands = range(0, HEIGHT, 500)
        same = one.shape == many.shape == (HEIGHT, WIDTH, 3) and one.dtype == many.dtype
        same = same and all(np.array_equal(one[top : top + 500], many[top : top + 500]) for top in bands)
        return "yes" if same else "NO"

    def foretold(self, workers: int) -> int:
        passes = outlook(self.codec, Size(WIDTH, HEIGHT), workers, LIMIT, piece=self.case.piece)
        return max(each.memory for each in passes)

    def coding_foretold(self) -> int:
        head, _ = container.read(self.folder / "one.lic")
        found = coding_outlook(self.codec, Size(WIDTH, HEIGHT), head=head)
        assert found is not None
        return found.memory


def rows(case: Case, folder: Path) -> Iterator[tuple[str, ...]]:
    scene = Scene(case, folder)
    for workers in case.workers:
        with cluster(workers) as client:
            address = client.scheduler.address
            client.register_plugin(Marks())
            client.run(begin)
            scene.by(address, "small.zarr", 256)  # every worker loads the model
            before = client.run(begin)
            scene.by(address, "in.zarr", case.piece)
            marks = client.run(most)
        above = [(kind, mark - before[on]) for on, of in marks.items() for kind, mark in of.items()]
        held = max(bytes for kind, bytes in above if kind != CODING)
        coding = max((bytes for kind, bytes in above if kind == CODING), default=0)
        figures = [(scene.foretold(workers), held)]
        if coding:
            figures.append((scene.coding_foretold(), coding))
        told = [
            text
            for expected, found in figures
            for text in (f"{expected / 2**20:.0f} MiB", f"{found / 2**20:.0f} MiB", f"{found / expected:.2f}")
        ]
        told += [""] * (6 - len(told))
        yield case.name, str(workers), scene.same_file(), scene.same_image(), *told


def main(only: str = "") -> list[Table]:
    """`only` is the number of a case, from 0 on."""
    table = Table(*HEADINGS, title=f"{WIDTH}x{HEIGHT} pixels, tile 256: what workers give, and hold")
    for case in CASES if not only else [CASES[int(only)]]:
        with tempfile.TemporaryDirectory() as made:
            for cells in rows(case, Path(made)):
                table.add_row(*cells)
                print(*cells, flush=True)
    return [table]
