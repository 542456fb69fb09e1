"""Any network from image to image, on files."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image
from support.networks import Doubles, PlainCnn, two_barriers
from support.photographs import LiveMemory, codec, photograph, rows_of
from torch import nn

import overlap_tool
from overlap_tool.errors import ImageFileError, OptionError
from overlap_tool.files import Codec, run
from overlap_tool.files.formats.pictures import open_picture

pytestmark = pytest.mark.usefixtures("one_thread")


class PadsToAMultiple(nn.Module):
    """Asks for the size of its input: its network is another one for every size."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 16, 5, stride=4, padding=2)
        self.up = nn.Conv2d(16, 48, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        padded = nn.functional.pad(x, (0, -width % 16, 0, -height % 16), mode="reflect")
        return torch.pixel_shuffle(self.up(self.down(padded).relu()), 4)[..., :height, :width] + x * 0.5


def _wrapped(model: nn.Module, **options) -> tuple[nn.Module, Codec]:
    torch.manual_seed(0)
    model = model.eval()
    return model, Codec(overlap_tool.wrap(model, **(options or {"tile": 32})), "mine:Net", "", "net")


@torch.no_grad()
def _expected(model: nn.Module, pixels) -> torch.Tensor:
    image = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / np.iinfo(pixels.dtype).max
    with overlap_tool.exact_kernels():
        return model(image)


def _rounded(values: torch.Tensor, dtype) -> np.ndarray:
    scaled = torch.round(values.clamp(0, 1) * np.iinfo(dtype).max)
    return scaled[0].permute(1, 2, 0).numpy().astype(dtype)


@pytest.mark.parametrize("name", ["out.tif", "out.npy", "out.zarr", "out.png"])
@pytest.mark.parametrize("options", [{}, {"tile": 32, "schedule": "tiles", "batch": 2}, {"memory": "4MiB"}])
def test_the_networks_own_pixels(tmp_path, name, options) -> None:
    model, wrapped = _wrapped(Doubles(), **options)
    pixels = photograph("chelsea", 73, 101)
    tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="rgb", tile=(32, 32))
    told = run(wrapped, tmp_path / "in.tif", tmp_path / name)
    expected = _rounded(_expected(model, pixels), np.uint8)
    found = open_picture(tmp_path / name)
    assert np.array_equal(rows_of(found, 0, 146), expected)
    assert len(np.unique(expected)) > 20
    assert (told.width, told.height, told.bits_per_pixel) == (202, 146, None)


@pytest.mark.parametrize("options", [{"tile": 32}, {"tile": 24, "schedule": "tiles"}, {"memory": "4MiB"}])
def test_a_network_that_asks_for_the_size(tmp_path, options) -> None:
    model, wrapped = _wrapped(PadsToAMultiple(), **options)
    pixels = photograph("chelsea", 173, 103)
    np.save(tmp_path / "in.npy", pixels)
    expected = _expected(model, pixels)[0].permute(1, 2, 0).numpy()
    run(wrapped, tmp_path / "in.npy", tmp_path / "out.npy", dtype="float32")
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)
    run(wrapped, tmp_path / "in.npy", tmp_path / "part.npy", dtype="float32", region=(17, 90, 60, 83))
    assert np.array_equal(np.load(tmp_path / "part.npy"), expected[90:173, 17:77])


def test_floats_are_the_networks_numbers(tmp_path) -> None:
    model, wrapped = _wrapped(PlainCnn())
    grey = photograph("camera", 60, 80).astype(np.uint16) * 255
    np.save(tmp_path / "in.npy", grey)
    run(wrapped, tmp_path / "in.npy", tmp_path / "out.npy", dtype="float32")
    expected = _expected(model, grey[..., None])
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected[0].permute(1, 2, 0).numpy())
    run(wrapped, tmp_path / "in.npy", tmp_path / "out16.npy")
    assert np.array_equal(np.load(tmp_path / "out16.npy"), _rounded(expected, np.uint16))


@pytest.mark.parametrize("options", [{"tile": 16}, {"tile": 16, "schedule": "tiles"}, {"memory": "1MiB"}])
def test_a_network_with_means_of_whole_maps(tmp_path, options) -> None:
    """In passes, with the maps between them in files."""
    model, wrapped = _wrapped(two_barriers(), **options)
    pixels = photograph("chelsea", 74, 102)
    np.save(tmp_path / "in.npy", pixels)
    run(wrapped, tmp_path / "in.npy", tmp_path / "out.npy", dtype="float32")
    expected = _expected(model, pixels)
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected[0].permute(1, 2, 0).numpy())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "out.npy"]


def test_memory_does_not_grow_with_the_image_whatever_lies_between_passes(tmp_path) -> None:
    _, wrapped = _wrapped(two_barriers(), tile=16)
    tall = np.tile(photograph("chelsea", 128, 64), (3, 1, 1))
    peaks = []
    for height in (64, 128, 384):  # the first time, the network is traced
        np.save(tmp_path / "in.npy", tall[:height])
        with LiveMemory() as live:
            run(wrapped, tmp_path / "in.npy", tmp_path / "out.npy")
        peaks.append(live.peak)
    sums_of_rows = 6 * (384 - 128) * 4
    assert peaks[2] <= peaks[1] + 2 * sums_of_rows, peaks


def test_grey_goes_into_a_network_for_colours(tmp_path) -> None:
    model, wrapped = _wrapped(Doubles())
    grey = photograph("camera", 40, 50)
    np.save(tmp_path / "in.npy", grey)
    run(wrapped, tmp_path / "in.npy", tmp_path / "out.npy")
    expected = _rounded(_expected(model, np.repeat(grey[..., None], 3, 2)), np.uint8)
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)


def test_a_codec_is_refused(tmp_path) -> None:
    np.save(tmp_path / "in.npy", photograph("chelsea", 64, 64))
    with pytest.raises(OptionError, match="overlap-tool compress"):
        run(codec("mbt2018-mean"), tmp_path / "in.npy", tmp_path / "out.npy")


def test_a_codec_without_stages_is_refused(tmp_path) -> None:
    np.save(tmp_path / "in.npy", photograph("chelsea", 64, 64))
    with pytest.raises(OptionError, match="not one network"):
        run(Codec(nn.Identity(), "closed loop", "", "it"), tmp_path / "in.npy", tmp_path / "out.npy")


def test_a_size_that_the_network_does_not_take_is_refused(tmp_path) -> None:
    _, wrapped = _wrapped(PlainCnn())
    np.save(tmp_path / "in.npy", photograph("camera", 61, 80))
    with pytest.raises(ImageFileError, match="80x61"):
        run(wrapped, tmp_path / "in.npy", tmp_path / "out.npy")


def test_numbers_that_are_no_colours_are_refused(tmp_path) -> None:
    """NaN is no sample of an image; as a number it is kept."""
    model, wrapped = _wrapped(nn.Conv2d(3, 3, 3, padding=1))
    model.bias.data[1] = wrapped.model.bias.data[1] = torch.nan
    np.save(tmp_path / "in.npy", photograph("chelsea", 40, 50))
    with pytest.raises(ImageFileError, match=r'in\.npy: .* is NaN in places.*`dtype="float32"`'):
        run(wrapped, tmp_path / "in.npy", tmp_path / "out.png")
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]
    run(wrapped, tmp_path / "in.npy", tmp_path / "out.npy", dtype="float32")
    assert np.isnan(np.load(tmp_path / "out.npy")).any((0, 1)).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("network", "suffix", "kept"),
    [
        (Doubles(), "png", True),
        (Doubles(), "tif", True),
        (Doubles(), "npy", False),
        (Doubles(), "zarr", False),
        (nn.Conv2d(3, 1, 3, padding=1), "png", False),  # of colours, and there are none any more
    ],
)
def test_a_colour_profile_is_kept_or_a_note_says_that_it_is_not(tmp_path, network, suffix, kept) -> None:
    _, wrapped = _wrapped(network)
    Image.fromarray(photograph("chelsea", 40, 50)).save(tmp_path / "in.png", icc_profile=b"a profile")
    notes = run(wrapped, tmp_path / "in.png", tmp_path / f"out.{suffix}").notes
    assert open_picture(tmp_path / f"out.{suffix}").profile == (b"a profile" if kept else None)
    told = f"the colour profile of {tmp_path}/in.png is not kept in {tmp_path}/out.{suffix}"
    assert notes == ([] if kept else [told])


def test_what_is_missing_of_an_image_is_noted(tmp_path) -> None:
    _, wrapped = _wrapped(Doubles())
    shape = (40, 50, 3)
    array = zarr.open_array(str(tmp_path / "in.zarr"), mode="w", shape=shape, chunks=(20, 50, 3), dtype="u1")
    array[:20] = 7
    notes = run(wrapped, tmp_path / "in.zarr", tmp_path / "out.npy").notes
    assert notes == [f"{tmp_path}/in.zarr: 1 of 2 chunks are not there, and are read as its fill value, 0"]
