"""A region of 1,024 x 1,024 pixels from a file of 20,000 x 20,000: seconds and bytes, against all of it.

The file is coded in blocks of 512 by a mbt2018-mean of few features, whose latents are as large as those of a
codec that is used. Bytes are those of the file that are read: its head, and the strings that are asked for.
Then 500 regions at random places, up to 1,024 pixels high and wide, are held to the whole. The commands of
every row run in this process, one after another; a region is decoded once before it is timed.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import zarr
from rich.table import Table

import overlap_tool
from benchmarks.files import make_image
from overlap_tool import checkpoint
from overlap_tool.files import Codec, compress, decompress
from overlap_tool.files.formats import container
from overlap_tool.files.formats.container import StringInFile

MODEL, ARGUMENTS = "mbt2018-mean", {"N": 8, "M": 96}
SIDE, BLOCK, REGION, REGIONS = 20_000, 512, 1024, 500
HEADINGS = ("decoded", "seconds", "of the whole", "bytes read", "of the whole", "same samples")


@contextmanager
def counted(coded: Path) -> Iterator[list[int]]:
    """The bytes of a file that are read meanwhile, its head first."""
    head, _ = container.read(coded)
    read = [coded.stat().st_size - head.payload]
    part = StringInFile.part

    def counting(string: StringInFile, start: int, stop: int) -> bytes:
        read.append(stop - start)
        return part(string, start, stop)

    with mock.patch.object(StringInFile, "part", counting):
        yield read


def regions(count: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    chance = random.Random(22)
    for _ in range(count):
        width, height = chance.randint(1, REGION), chance.randint(1, REGION)
        yield chance.randrange(side - width + 1), chance.randrange(side - height + 1), width, height


def main(only: str = "") -> list[Table]:
    """`only` is a side of the image, for a trial."""
    side = int(only) if only else SIDE
    table = Table(*HEADINGS, title=f"{MODEL} {ARGUMENTS}, {side}x{side} pixels in blocks of {BLOCK}")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = overlap_tool.wrap(checkpoint.seeded_model(checkpoint.find(MODEL), ARGUMENTS), tile=256)
        overlap_tool.save(model, folder / "it.tiled.pt", MODEL, ARGUMENTS)
        codec, coded = Codec.load(folder / "it.tiled.pt"), folder / "it.lic"
        make_image(folder / "in.zarr", side, side)
        compress(codec, folder / "in.zarr", coded, blocks=BLOCK)
        started = time.perf_counter()
        decompress(codec, coded, folder / "whole.zarr")
        seconds = time.perf_counter() - started
        whole, size = zarr.open_array(store=str(folder / "whole.zarr"), mode="r"), coded.stat().st_size
        table.add_row("all", f"{seconds:.1f}", "", f"{size:,}", "", "")

        def decoded(region: tuple[int, int, int, int]) -> bool:
            x, y, width, height = region
            decompress(codec, coded, folder / "region.npy", region=region)
            found = np.load(folder / "region.npy")
            (folder / "region.npy").unlink()
            return np.array_equal(found, whole[y : y + height, x : x + width])

        middle = (side // 2 - 300, side // 2 - 100, REGION, REGION)
        decoded(middle)
        with counted(coded) as read:
            started = time.perf_counter()
            same = decoded(middle)
            took = time.perf_counter() - started
        share = f"{took / seconds:.2%}", f"{sum(read):,}", f"{sum(read) / size:.2%}"
        table.add_row(f"{REGION}x{REGION}", f"{took:.2f}", *share, "yes" if same else "NO")
        wrong = [region for region in regions(REGIONS, side) if not decoded(region)]
        told = "yes" if not wrong else f"NO: {len(wrong)}, the first {wrong[0]}"
        table.add_row(f"{REGIONS} random regions", "", "", "", "", told)
    return [table]
