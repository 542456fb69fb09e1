"""A rectangle of a file's output: the crop of the whole to the bit, from what it depends on alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import tifffile
import torch
import zarr
from support.networks import two_barriers
from support.photographs import codec, photograph
from torch import nn

import overlap_tool
from overlap_tool.errors import OptionError
from overlap_tool.files import Codec, compress, decompress, run
from overlap_tool.files.formats.pictures import NumpyFile

pytestmark = pytest.mark.usefixtures("one_thread")

PIXELS = photograph("chelsea", 90, 140)


class Halves(nn.Module):
    """Its output is coarser than the image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 5, 2, 2), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + 0.3


class Doubles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.pixel_shuffle(self.body(x), 2) * 0.5 + 0.4


def _wrapped(model: nn.Module, **options) -> Codec:
    torch.manual_seed(0)
    return Codec(overlap_tool.wrap(model.eval(), **(options or {"tile": 32})), "mine:Net", "", "net")


def _regions(shape: tuple[int, ...], count: int) -> list[tuple[int, int, int, int]]:
    """The whole, its corners, and random ones."""
    height, width = shape[:2]
    drawn = random.Random(0)
    found = [(0, 0, width, height), (0, 0, 1, 1), (width - 1, height - 1, 1, 1)]
    for _ in range(count):
        x, y = drawn.randrange(width), drawn.randrange(height)
        found.append((x, y, drawn.randint(1, width - x), drawn.randint(1, height - y)))
    return found


def _crop(pixels: np.ndarray, region: tuple[int, int, int, int]) -> np.ndarray:
    x, y, width, height = region
    return pixels[y : y + height, x : x + width]


@pytest.mark.parametrize("network", [Doubles, Halves, two_barriers])
@pytest.mark.parametrize(
    "options",
    [
        {"tile": 32},
        {"tile": 32, "schedule": "tiles", "batch": 2},
        {"tile": 32, "uniform": True},
        {"memory": "4MiB"},
    ],
    ids=str,
)
def test_a_region_is_the_crop_of_the_whole(tmp_path, network, options) -> None:
    wrapped = _wrapped(network(), **options)
    np.save(tmp_path / "in.npy", PIXELS)
    run(wrapped, tmp_path / "in.npy", tmp_path / "whole.npy", dtype="float32")
    whole = np.load(tmp_path / "whole.npy")
    for region in _regions(whole.shape, 3):
        told = run(wrapped, tmp_path / "in.npy", tmp_path / "part.npy", dtype="float32", region=region)
        assert np.array_equal(np.load(tmp_path / "part.npy"), _crop(whole, region)), region
        assert (told.width, told.height) == region[2:]


def test_nothing_else_of_the_input_is_read(tmp_path, monkeypatch) -> None:
    """Two convolutions, of 5 and 3, read 3 pixels around; a tile is read once, and all of it is one tile."""
    read: list[int] = []
    samples = NumpyFile._samples

    def counting(self, file, first, count):
        read.append(count * self.dtype.itemsize)
        return samples(self, file, first, count)

    monkeypatch.setattr(NumpyFile, "_samples", counting)
    np.save(tmp_path / "in.npy", PIXELS)
    run(_wrapped(Doubles(), tile=64), tmp_path / "in.npy", tmp_path / "out.npy", region=(60, 40, 20, 10))
    one_row_to_see_its_type = 1
    assert sum(read) == (5 + 6 + one_row_to_see_its_type) * (10 + 6) * 3


def test_chunks_and_tiles_that_a_region_does_not_meet_may_be_missing(tmp_path) -> None:
    """They are not read: damage there does no harm."""
    array = zarr.open_array(
        store=str(tmp_path / "in.zarr"), mode="w", shape=PIXELS.shape, chunks=(32, 32, 3), dtype="u1"
    )
    array[:] = PIXELS
    tifffile.imwrite(tmp_path / "in.tif", PIXELS, photometric="rgb", tile=(32, 32), compression="zlib")
    np.save(tmp_path / "in.npy", PIXELS)
    wrapped = _wrapped(Doubles())
    run(wrapped, tmp_path / "in.npy", tmp_path / "whole.npy")
    region = (90, 70, 30, 40)  # of pixels 42 to 63 and 32 to 58 of the input: columns 1 and rows 1 of chunks
    with tifffile.TiffFile(tmp_path / "in.tif") as file:
        offset, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    with (tmp_path / "in.tif").open("r+b") as file:
        file.seek(offset)
        file.write(bytes(length))
    for chunk in (tmp_path / "in.zarr" / "c").glob("0/*/*"):
        chunk.write_bytes(b"damaged")
    for name in ("in.tif", "in.zarr"):
        run(wrapped, tmp_path / name, tmp_path / "part.npy", region=region)
        assert np.array_equal(np.load(tmp_path / "part.npy"), _crop(np.load(tmp_path / "whole.npy"), region))


def test_what_needs_the_whole_map_is_told(tmp_path) -> None:
    np.save(tmp_path / "in.npy", PIXELS)
    told = run(_wrapped(two_barriers()), tmp_path / "in.npy", tmp_path / "o.npy", region=(5, 6, 7, 8))
    assert [note for note in told.notes if "needs the whole map" in note]
    told = run(_wrapped(Doubles()), tmp_path / "in.npy", tmp_path / "o.npy", region=(5, 6, 7, 8))
    assert told.notes == []


@pytest.mark.parametrize("name", ["bmshj2018-factorized", "mbt2018-mean", "cheng2020-anchor-checkerboard"])
@pytest.mark.parametrize("in_memory", [1000, 256 << 20])
def test_a_region_of_a_compressed_image(tmp_path, name, in_memory) -> None:
    np.save(tmp_path / "in.npy", PIXELS[:64, :100])
    compress(codec(name), tmp_path / "in.npy", tmp_path / "it.lic", in_memory=in_memory)
    decompress(codec(name), tmp_path / "it.lic", tmp_path / "whole.npy", in_memory=in_memory)
    whole = np.load(tmp_path / "whole.npy")
    for region in _regions(whole.shape, 2):
        told = decompress(
            codec(name), tmp_path / "it.lic", tmp_path / "part.npy", in_memory=in_memory, region=region
        )
        assert np.array_equal(np.load(tmp_path / "part.npy"), _crop(whole, region)), region
        assert (told.width, told.height, told.bits_per_pixel) == (*region[2:], None)


def test_a_region_of_what_is_coded_position_by_position(tmp_path) -> None:
    np.save(tmp_path / "in.npy", PIXELS[:40, :40])
    compress(codec("mbt2018"), tmp_path / "in.npy", tmp_path / "it.lic")
    decompress(codec("mbt2018"), tmp_path / "it.lic", tmp_path / "whole.npy")
    told = decompress(codec("mbt2018"), tmp_path / "it.lic", tmp_path / "part.npy", region=(3, 4, 5, 6))
    assert told.notes == ["mbt2018 codes one position after another: all of its strings are decoded"]
    assert np.array_equal(np.load(tmp_path / "part.npy"), np.load(tmp_path / "whole.npy")[4:10, 3:8])


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        ((0, 0, 181, 10), r"^region=\[0, 0, 181, 10\]: is not inside of an image of 180x120"),
        ((0, 119, 10, 2), "is not inside"),
        ((-1, 0, 10, 10), "is not inside"),
        ((0, 0, 0, 10), "is not inside"),
        ((0, 0, 10), "four whole numbers"),
        ((0, 0, 1.5, 10), "four whole numbers"),
    ],
)
def test_a_region_that_is_none_is_refused(tmp_path, region, reason) -> None:
    np.save(tmp_path / "in.npy", PIXELS[:60, :90])
    with pytest.raises(OptionError, match=reason):
        run(_wrapped(Doubles()), tmp_path / "in.npy", tmp_path / "out.npy", region=region)
    assert not (tmp_path / "out.npy").exists()
