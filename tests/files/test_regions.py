"""A rectangle of a file's output: the crop of the whole to the bit, from what it depends on alone."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr
from support.networks import Doubles, two_barriers
from support.photographs import codec, photograph
from support.small_models import small_model
from torch import nn

import overlap_tool
from overlap_tool.errors import ContainerError, ImageFileError, OptionError
from overlap_tool.files import Codec, compress, decompress, run
from overlap_tool.files.formats import arrays, container
from overlap_tool.files.formats.container import StringInFile
from overlap_tool.files.running import StageNumbers

pytestmark = pytest.mark.usefixtures("one_thread")

PIXELS = photograph("chelsea", 90, 140)


class Halves(nn.Module):
    """Its output is coarser than the image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 5, 2, 2), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + 0.3


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
    read_into = arrays._read_into

    def counting(file, values):
        read.append(values.nbytes)
        return read_into(file, values)

    monkeypatch.setattr(arrays, "_read_into", counting)
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


def test_an_array_with_its_channels_first_is_told_of_their_order(tmp_path) -> None:
    np.save(tmp_path / "in.npy", np.moveaxis(PIXELS[:60, :90], 2, 0))
    told = "90 channels, and the model takes 3: arrays are taken as rows, columns and channels.*channels last"
    with pytest.raises(ImageFileError, match=told):
        run(_wrapped(Doubles()), tmp_path / "in.npy", tmp_path / "out.npy")


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        ((0, 0, 0, 10), r"^region=\[0, 0, 0, 10\]: has no pixels"),
        ((0, 0, 181, 10), r"^region=\[0, 0, 181, 10\]: is not inside of an image of 180x120"),
        ((0, 119, 10, 2), "is not inside"),
        ((-1, 0, 10, 10), "is not inside"),
        ((0, 0, 10), "four whole numbers"),
        ((0, 0, 1.5, 10), "four whole numbers"),
    ],
)
def test_a_region_that_is_none_is_refused(tmp_path, region, reason) -> None:
    np.save(tmp_path / "in.npy", PIXELS[:60, :90])
    with pytest.raises(OptionError, match=reason):
        run(_wrapped(Doubles()), tmp_path / "in.npy", tmp_path / "out.npy", region=region)
    assert not (tmp_path / "out.npy").exists()


# --- blocks: what is not under a region is not read -------------------------------------------------------


WITHOUT_CONTEXT = ["bmshj2018-factorized", "mbt2018-mean"]
IN_BLOCKS = [
    *WITHOUT_CONTEXT,
    "cheng2020-anchor-checkerboard",
    pytest.param("elic2022-official", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=IN_BLOCKS)
def in_blocks(request, tmp_path_factory) -> tuple[str, Path, np.ndarray]:
    """A name, a folder with an image that is coded in blocks of 64, and what it decodes to without."""
    folder = tmp_path_factory.mktemp("blocks")
    np.save(folder / "in.npy", photograph("coffee", 130, 250))
    model = codec(request.param)
    compress(model, folder / "in.npy", folder / "plain.lic")
    decompress(model, folder / "plain.lic", folder / "whole.npy")
    compress(model, folder / "in.npy", folder / "it.lic", blocks=64)
    return request.param, folder, np.load(folder / "whole.npy")


def test_blocks_decode_to_the_same_image(tmp_path, in_blocks) -> None:
    name, folder, whole = in_blocks
    decompress(codec(name), folder / "it.lic", tmp_path / "out.npy")
    assert np.array_equal(np.load(tmp_path / "out.npy"), whole)
    decompress(codec(name), folder / "it.lic", tmp_path / "again.npy", in_memory=1000)
    assert np.array_equal(np.load(tmp_path / "again.npy"), whole)
    head, _ = container.read(folder / "it.lic")
    assert head.most_bands == 3 * 4


@pytest.mark.parametrize("in_memory", [4000, 256 << 20])
def test_a_region_decodes_from_its_blocks_alone(tmp_path, in_blocks, in_memory) -> None:
    name, folder, whole = in_blocks
    for region in [*_regions(whole.shape, 2)[:3], (150, 70, 60, 50)]:
        decompress(codec(name), folder / "it.lic", tmp_path / "o.npy", region=region, in_memory=in_memory)
        assert np.array_equal(np.load(tmp_path / "o.npy"), _crop(whole, region)), region


def test_no_other_blocks_are_read(tmp_path, in_blocks, monkeypatch) -> None:
    """And none twice. Which blocks of the latent a region is made of, the model's own gradients say."""
    name, folder, whole = in_blocks
    read: list[int] = []
    part = StringInFile.part

    def counting(self, start, stop):
        read.append(self.offset + start)
        return part(self, start, stop)

    monkeypatch.setattr(StringInFile, "part", counting)
    region = x, y, width, height = 40, 10, 20, 30
    decompress(codec(name), folder / "it.lic", tmp_path / "o.npy", region=region)
    assert np.array_equal(np.load(tmp_path / "o.npy"), _crop(whole, region))
    assert len(set(read)) == len(read)
    if name not in WITHOUT_CONTEXT:
        return
    head, _ = container.read(folder / "it.lic")
    model = small_model(name)
    latent = torch.rand(1, next(model.g_s.parameters()).shape[0], *(n // 16 for n in head.frame.padded))
    latent.requires_grad_()
    left, _, top, _ = head.padding
    model.g_s(latent)[..., y + top : y + top + height, x + left : x + left + width].sum().backward()
    assert latent.grad is not None
    down, across = np.nonzero(latent.grad.abs().sum((0, 1)).numpy())
    of = {(i // 4) * 4 + j // 4 for i, j in zip(down, across, strict=True)}  # rows of four, 64 pixels each
    first = (folder / "it.lic").stat().st_size - container.CHECKSUM - head.payload
    starts = first + np.cumsum([0, *(band.length for band in head.bands[0])])
    assert sorted(one for one in read if one < starts[-1]) == [starts[i] for i in sorted(of)]
    assert 1 < len(of) < 12


def test_blocks_side_by_side_do_not_compute_all_of_a_map_again(tmp_path, monkeypatch) -> None:
    """Their scales and means are computed where they are read. What is computed at once was full rows, and of
    blocks that lay in two of these, each asked for both: a wide scene took forty times as long."""
    computed = Counter[str]()
    compute = StageNumbers._compute

    def counting(self, area, sink, quiet) -> None:
        computed[self.stage.name] += area.size
        compute(self, area, sink, quiet)

    monkeypatch.setattr(StageNumbers, "_compute", counting)
    np.save(tmp_path / "in.npy", photograph("chelsea", 256, 448))
    size = (256 // 16) * (448 // 16)
    compress(codec("mbt2018-mean"), tmp_path / "in.npy", tmp_path / "it.lic", in_memory=4000, blocks=96)
    assert computed.pop("h_s") == size
    decompress(codec("mbt2018-mean"), tmp_path / "it.lic", tmp_path / "out.npy", in_memory=4000)
    assert computed.pop("h_s") == size


def test_an_altered_block_is_refused_where_it_is_read(tmp_path, in_blocks) -> None:
    name, folder, whole = in_blocks
    head, _ = container.read(folder / "it.lic")
    data = bytearray((folder / "it.lic").read_bytes())
    end = len(data) - container.CHECKSUM
    data[end - head.bands[-1][-1].length : end] = bytes(head.bands[-1][-1].length)  # its last block
    (tmp_path / "bad.lic").write_bytes(data)
    if name in WITHOUT_CONTEXT:  # else the opposite corner is read as well, of so small an image
        decompress(codec(name), tmp_path / "bad.lic", tmp_path / "o.npy", region=(0, 0, 20, 20))
        assert np.array_equal(np.load(tmp_path / "o.npy"), whole[:20, :20])
    with pytest.raises(ContainerError, match="altered"):
        decompress(codec(name), tmp_path / "bad.lic", tmp_path / "no.npy", region=(230, 120, 20, 10))
    with pytest.raises(ContainerError, match="checksum"):
        decompress(codec(name), tmp_path / "bad.lic", tmp_path / "no.npy")


def test_an_altered_head_is_refused_without_the_rest(tmp_path, in_blocks) -> None:
    name, folder, _ = in_blocks
    data = bytearray((folder / "it.lic").read_bytes())
    data[container.OUTSIDE.size + 200] ^= 1
    (tmp_path / "bad.lic").write_bytes(data)
    with pytest.raises(ContainerError, match="checksum"):
        decompress(codec(name), tmp_path / "bad.lic", tmp_path / "no.npy", region=(0, 0, 20, 20))


@pytest.mark.parametrize(
    ("name", "blocks", "reason"),
    [
        ("mbt2018-mean", 0, r"^blocks=0: is not a number of pixels"),
        ("mbt2018-mean", "1", r"is not a number of pixels"),
        ("mbt2018", 64, r"^blocks=64: mbt2018 codes one position after another"),
    ],
)
def test_blocks_that_cannot_be_are_refused(tmp_path, name, blocks, reason) -> None:
    np.save(tmp_path / "in.npy", PIXELS)
    with pytest.raises(OptionError, match=reason):
        compress(codec(name), tmp_path / "in.npy", tmp_path / "it.lic", blocks=blocks)


def test_a_region_of_an_image_that_is_not_in_blocks(tmp_path) -> None:
    np.save(tmp_path / "in.npy", PIXELS)
    compress(codec("mbt2018-mean"), tmp_path / "in.npy", tmp_path / "it.lic")
    told = decompress(codec("mbt2018-mean"), tmp_path / "it.lic", tmp_path / "o.npy", region=(0, 0, 2, 2))
    assert told.notes == [f"{tmp_path / 'it.lic'} is not coded in blocks: all of its strings are decoded"]
