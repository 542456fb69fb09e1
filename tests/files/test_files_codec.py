"""Files through a tiled codec: the bytes and the pixels of the untouched model on the whole image."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressai.entropy_models import EntropyModel
from compressai.models import MeanScaleHyperprior
from PIL import Image
from support.photographs import LiveMemory, codec, photograph, strings_in, untouched
from support.small_models import small_model, small_survey

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.errors import ContainerError, ImageFileError, OptionError
from overlap_tool.files import Codec, compress, decompress
from overlap_tool.files.coding import waiting
from overlap_tool.files.formats import container
from overlap_tool.files.task import IN_MEMORY
from overlap_tool.models import raster
from overlap_tool.runtime import deferred

pytestmark = pytest.mark.usefixtures("one_thread")

SERIAL = {"mbt2018", "mbt2018-vbr", "cheng2020-anchor", "cheng2020-attn"}
"""Coded one position after another, which takes long."""


def _round_trip(tmp_path: Path, architecture: str, pixels, **options):
    np.save(tmp_path / "in.npy", pixels)
    compress(codec(architecture), tmp_path / "in.npy", tmp_path / "it.lic", **options)
    decompress(codec(architecture), tmp_path / "it.lic", tmp_path / "out.npy", **options)
    return np.load(tmp_path / "out.npy")


def test_strings_and_pixels_are_the_untouched_models(tmp_path, architecture) -> None:
    height, width = (53, 71) if architecture in SERIAL or "elic" in architecture else (101, 131)
    pixels = photograph("chelsea", height, width)
    strings, shape, expected = untouched(architecture, pixels)
    found = _round_trip(tmp_path, architecture, pixels)
    assert strings_in(tmp_path / "it.lic") == strings
    assert container.as_the_model_had(container.read(tmp_path / "it.lic")[0].shape) == shape
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 3, "there is something to get wrong"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chelsea", "astronaut", "rocket"])
def test_whole_photographs(tmp_path, architecture, name) -> None:
    pixels = photograph(name, 427 - 14, 451 - 60, at=(0, 0))
    if architecture in SERIAL:
        pixels = pixels[100:227, 100:291]
    strings, _, expected = untouched(architecture, pixels)
    assert np.array_equal(_round_trip(tmp_path, architecture, pixels), expected)
    assert strings_in(tmp_path / "it.lic") == strings


def test_maps_that_do_not_fit_in_memory(tmp_path, architecture) -> None:
    """Nothing may be in memory here but a band: other strings, told as bands, and the same pixels."""
    small = architecture in SERIAL or "elic" in architecture
    pixels = photograph("coffee", *((70, 60) if small else (141, 80)))
    _, _, expected = untouched(architecture, pixels)
    notes: list[str] = []
    memory = 300 if "elic" in architecture else 1000
    found = _round_trip(tmp_path, architecture, pixels, in_memory=memory, notify=notes.append)
    head, strings = container.read(tmp_path / "it.lic")
    assert head.banded
    assert json.loads(_head_of(tmp_path / "it.lic"))["banded"] is True
    assert max(len(string.bands) for string in strings) > 3
    assert np.array_equal(found, expected)
    assert notes == []
    decompress(codec(architecture), tmp_path / "it.lic", tmp_path / "again.npy")  # all in memory
    assert np.array_equal(np.load(tmp_path / "again.npy"), expected)


def test_some_maps_fit_in_memory_and_others_do_not(tmp_path, architecture) -> None:
    """The latent does, to the byte; what the hyper decoder makes is larger."""
    pixels = photograph("coffee", 70, 60)
    _, _, expected = untouched(architecture, pixels)
    latent = (
        next(stage for stage in codec(architecture).stages if stage.name == "g_s").network.ops[0].channels
    )
    notes: list[str] = []
    found = _round_trip(tmp_path, architecture, pixels, in_memory=latent * 8 * 4 * 4, notify=notes.append)
    assert np.array_equal(found, expected)
    assert notes == []


QUICK = ("bmshj2018-factorized", "mbt2018-mean-vbr", "mbt2018", "cheng2020-anchor-checkerboard")


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in checkpoint.names()
        if name.startswith(("bmshj", "mbt", "cheng", "elic"))
    ],
)
def test_memory_does_not_grow_with_the_image(tmp_path, architecture, monkeypatch) -> None:
    """The bytes of all tensors alive at once, at two heights."""
    monkeypatch.setattr(deferred, "POSITIONS_AT_ONCE", 32)
    tall = np.tile(photograph("coffee", 128, 64), (2, 1, 1))
    peaks: dict[int, list[int]] = {}
    for height in (64, 128, 256):  # the first time, the model is traced
        np.save(tmp_path / "in.npy", tall[:height])
        for command, source, target in (
            (compress, "in.npy", "it.lic"),
            (decompress, "it.lic", "out.npy"),
        ):
            with LiveMemory() as live:
                command(codec(architecture), tmp_path / source, tmp_path / target, in_memory=1000)
            peaks.setdefault(height, []).append(live.peak)
    assert all(large <= 1.02 * small for small, large in zip(peaks[128], peaks[256], strict=True)), peaks


def test_an_older_compressai_that_takes_no_type(tmp_path, monkeypatch) -> None:
    """Forks are often of one, and their `dequantize` has two arguments."""

    def dequantize(inputs: torch.Tensor, means: torch.Tensor | None = None) -> torch.Tensor:
        return inputs.float() if means is None else inputs.type_as(means) + means

    pixels = photograph("chelsea", 53, 71)
    expected = _round_trip(tmp_path, "mbt2018-mean", pixels)
    monkeypatch.setattr(EntropyModel, "dequantize", staticmethod(dequantize))
    assert np.array_equal(_round_trip(tmp_path, "mbt2018-mean", pixels), expected)


def test_one_string_is_decoded_where_maps_do_not_fit(tmp_path) -> None:
    pixels = photograph("coffee", 141, 150)
    _, _, expected = untouched("mbt2018-mean", pixels)
    _round_trip(tmp_path, "mbt2018-mean", pixels)
    decompress(codec("mbt2018-mean"), tmp_path / "it.lic", tmp_path / "again.npy", in_memory=1000)
    assert np.array_equal(np.load(tmp_path / "again.npy"), expected)


class Flipping(MeanScaleHyperprior):
    """Its code between the stages moves positions."""

    def compress(self, x: torch.Tensor) -> dict[str, Any]:
        y = self.g_a(x).flip(3).flip(3)
        z = self.h_a(y)
        z_strings = self.entropy_bottleneck.compress(z)
        scales, means = self.h_s(self.entropy_bottleneck.decompress(z_strings, z.shape[2:])).chunk(2, 1)
        indexes = self.gaussian_conditional.build_indexes(scales)
        return {
            "strings": [self.gaussian_conditional.compress(y, indexes, means), z_strings],
            "shape": z.shape[2:],
        }


def test_code_that_moves_positions_gets_whole_maps_and_that_is_told(tmp_path) -> None:
    pixels = photograph("coffee", 70, 64)
    strings, _, _ = untouched("mbt2018-mean", pixels)
    model = copy.deepcopy(small_model("mbt2018-mean"))
    model.__class__ = Flipping
    flipping = dataclasses.replace(codec("mbt2018-mean"), model=overlap_tool.wrap(model, tile=64))
    np.save(tmp_path / "in.npy", pixels)
    compress(flipping, tmp_path / "in.npy", tmp_path / "small.lic")
    assert strings_in(tmp_path / "small.lic") == strings
    notes: list[str] = []
    compress(flipping, tmp_path / "in.npy", tmp_path / "it.lic", in_memory=1000, notify=notes.append)
    assert any("(flip): memory is not bounded" in note for note in notes)
    decompress(codec("mbt2018-mean"), tmp_path / "it.lic", tmp_path / "out.npy")
    assert np.array_equal(np.load(tmp_path / "out.npy"), untouched("mbt2018-mean", pixels)[2])


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (65, 2), (64, 128)])
def test_any_size(tmp_path, size) -> None:
    pixels = photograph("chelsea", *size)
    strings, _, expected = untouched("mbt2018-mean", pixels)
    assert np.array_equal(_round_trip(tmp_path, "mbt2018-mean", pixels), expected)
    assert strings_in(tmp_path / "it.lic") == strings


def test_sixteen_bits(tmp_path) -> None:
    pixels = photograph("chelsea", 70, 90).astype(np.uint16) * 257 + np.arange(90, dtype=np.uint16)[:, None]
    strings, _, expected = untouched("mbt2018-mean", pixels)
    assert np.array_equal(_round_trip(tmp_path, "mbt2018-mean", pixels), expected)
    assert strings_in(tmp_path / "it.lic") == strings


def test_grey_is_repeated_and_comes_back_grey(tmp_path) -> None:
    grey = photograph("camera", 90, 70)
    _, _, expected = untouched("mbt2018-mean", np.repeat(grey[..., None], 3, 2))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    compress(codec("mbt2018-mean"), tmp_path / "grey.png", tmp_path / "grey.lic")
    assert container.read(tmp_path / "grey.lic")[0].channels == 1
    decompress(codec("mbt2018-mean"), tmp_path / "grey.lic", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as found:
        assert found.mode == "L"
        assert np.array_equal(np.asarray(found), np.rint(expected.mean(2)))


@pytest.mark.parametrize(
    "settings",
    [{"memory": "40MiB"}, {"tile": 32, "schedule": "tiles", "batch": 3}, {"tile": 64, "uniform": True}],
)
def test_however_it_was_wrapped(tmp_path, settings) -> None:
    pixels = photograph("chelsea", 141, 203)
    strings, _, expected = untouched("mbt2018-mean", pixels)
    plain = codec("mbt2018-mean")
    other = dataclasses.replace(plain, model=overlap_tool.wrap(small_model("mbt2018-mean"), **settings))
    np.save(tmp_path / "in.npy", pixels)
    compress(other, tmp_path / "in.npy", tmp_path / "it.lic")
    assert strings_in(tmp_path / "it.lic") == strings
    decompress(other, tmp_path / "it.lic", tmp_path / "out.npy")
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)


def test_the_summary_tells_rate_and_quality(tmp_path) -> None:
    pixels = photograph("chelsea", 141, 203)
    _, _, expected = untouched("mbt2018-mean", pixels)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    told = compress(codec("mbt2018-mean"), tmp_path / "in.png", tmp_path / "it.lic", check=True)
    error = np.mean((expected.astype(np.float64) - pixels) ** 2)
    assert told.psnr == pytest.approx(10 * np.log10(255**2 / error), abs=1e-9)
    assert told.bytes == (tmp_path / "it.lic").stat().st_size
    assert told.bits_per_pixel == pytest.approx(8 * told.bytes / (141 * 203))
    assert (told.width, told.height, told.bands) == (203, 141, 1)
    assert told.peak_memory_bytes > 50e6


def test_the_multiple_is_the_surveys(architecture) -> None:
    assert codec(architecture).multiple == small_survey(architecture).multiple
    assert codec(architecture).channels == 3


def test_an_autoregressive_model_tells_how_long_it_takes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(waiting, "LONG_WAIT", -1.0)
    monkeypatch.setattr(waiting, "TRIALS_NOT_WORTH_IT", 0)
    np.save(tmp_path / "in.npy", photograph("chelsea", 60, 60))
    notes: list[str] = []
    compress(codec("mbt2018"), tmp_path / "in.npy", tmp_path / "it.lic", notify=notes.append)
    assert any("takes about" in note and note.endswith("and cannot be resumed") for note in notes)
    compress(codec("mbt2018"), tmp_path / "in.npy", tmp_path / "it.lic", in_memory=500, notify=notes.append)
    assert any(note.endswith("and can be resumed") for note in notes)


def test_bands_are_coded_in_generated_code(tmp_path, monkeypatch) -> None:
    """Each with the rows of the one before above it: as they are where the map is one piece."""
    pixels = photograph("coffee", 130, 250)
    _, _, expected = untouched("mbt2018", pixels)
    rows: list[int] = []
    own = raster.Loops._rows

    def counting(self, coder, y_hat, params):
        rows.append(params.shape[2])
        return own(self, coder, y_hat, params)

    monkeypatch.setattr(raster.Loops, "_rows", counting)
    found = _round_trip(tmp_path, "mbt2018", pixels, in_memory=9000)
    assert np.array_equal(found, expected)
    # before the first of six bands of 2 rows, a corner of it is coded and decoded, in both directions
    assert rows == [2, 2, *[2] * 6] * 2


def test_another_checkpoint_is_refused(tmp_path) -> None:
    np.save(tmp_path / "in.npy", photograph("chelsea", 20, 20))
    compress(codec("mbt2018-mean"), tmp_path / "in.npy", tmp_path / "it.lic")
    with pytest.raises(ContainerError, match="written by mbt2018-mean"):
        decompress(codec("bmshj2018-hyperprior"), tmp_path / "it.lic", tmp_path / "out.npy")
    other = dataclasses.replace(codec("mbt2018-mean"), weights_sha256="0" * 64)
    with pytest.raises(ContainerError, match="other weights"):
        decompress(other, tmp_path / "it.lic", tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


ENGINES = {
    "a version of the tool whose arithmetic is 2": {"kernels": "exact", "arithmetic": "2"},
    r'`engine="stock"`, on processor AVX512, torch 2.6': {
        "kernels": "stock",
        "torch": "2.6",
        "processor": "AVX512",
    },
}


@pytest.mark.parametrize("way_out", ENGINES)
def test_another_engine_is_refused_unless_it_is_asked_for(way_out, tmp_path, monkeypatch) -> None:
    np.save(tmp_path / "in.npy", photograph("chelsea", 20, 20))
    with monkeypatch.context() as there:
        there.setattr(Codec, "fingerprint", ENGINES[way_out])
        compress(codec("mbt2018-mean"), tmp_path / "in.npy", tmp_path / "it.lic")
    files = codec("mbt2018-mean"), tmp_path / "it.lic", tmp_path / "out.npy"
    with pytest.raises(ContainerError, match=re.escape(way_out)) as error:
        decompress(*files)
    assert error.value.way_out.endswith("or give `any_engine=True`")
    assert not (tmp_path / "out.npy").exists()
    notes: list[str] = []
    decompress(*files, any_engine=True, notify=notes.append)
    assert "another engine wrote it" in notes[0]
    assert (tmp_path / "out.npy").exists()


def test_exact_kernels_are_asked_for_where_they_wrote(tmp_path) -> None:
    np.save(tmp_path / "in.npy", photograph("chelsea", 20, 20))
    compress(codec("mbt2018-mean"), tmp_path / "in.npy", tmp_path / "it.lic")
    stock = overlap_tool.wrap(small_model("mbt2018-mean"), tile=64, engine="stock")
    off = dataclasses.replace(codec("mbt2018-mean"), model=stock)
    with pytest.raises(ContainerError, match=re.escape('Wrap its checkpoint without `engine="stock"`')):
        decompress(off, tmp_path / "it.lic", tmp_path / "out.npy")


def test_lost_symbols_are_an_error(tmp_path) -> None:
    """A scale that is off by a little sends the decoder astray: the file knows what the symbols were."""
    np.save(tmp_path / "in.npy", photograph("chelsea", 141, 203))
    compress(codec("mbt2018-mean"), tmp_path / "in.npy", tmp_path / "it.lic")
    state = small_model("mbt2018-mean").state_dict()
    model = checkpoint.find("mbt2018-mean").build(**checkpoint.find("mbt2018-mean").small)
    model.load_state_dict(state)
    with torch.no_grad():
        model.h_s[4].bias.mul_(1.5)
    off = dataclasses.replace(
        codec("mbt2018-mean"), model=overlap_tool.wrap(model.eval(), tile=64, engine="stock")
    )
    notes: list[str] = []
    with pytest.raises(ContainerError, match=r"not those that were written|it was altered"):
        decompress(off, tmp_path / "it.lic", tmp_path / "out.npy", notify=notes.append, any_engine=True)
    assert "kernels exact then and stock now" in notes[0]
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("in_memory", [1000, IN_MEMORY])
def test_lost_symbols_are_an_error_where_a_model_codes_position_by_position(tmp_path, in_memory) -> None:
    np.save(tmp_path / "in.npy", photograph("chelsea", 60, 60))
    compress(codec("mbt2018"), tmp_path / "in.npy", tmp_path / "it.lic", in_memory=in_memory)
    model = copy.deepcopy(small_model("mbt2018"))
    with torch.no_grad():
        model.entropy_parameters[4].bias.mul_(1.5)
    off = dataclasses.replace(codec("mbt2018"), model=overlap_tool.wrap(model, tile=64))
    with pytest.raises(ContainerError, match=r"not those that were written|it was altered"):
        decompress(off, tmp_path / "it.lic", tmp_path / "out.npy", in_memory=in_memory)


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch) -> None:
    np.save(tmp_path / "in.npy", photograph("chelsea", 20, 20))
    compress(codec("mbt2018-mean"), tmp_path / "in.npy", tmp_path / "it.lic")
    monkeypatch.setattr(codec("mbt2018-mean").model, "decompress", None)
    for name, reason in (("out.jpg", "lossy"), ("out.gif", "no format"), ("no/out.png", "folder")):
        with pytest.raises(ImageFileError, match=reason):
            decompress(codec("mbt2018-mean"), tmp_path / "it.lic", tmp_path / name)


def test_a_network_that_is_no_codec_is_refused(tmp_path) -> None:
    from support.networks import PlainCnn

    plain = Codec(overlap_tool.wrap(PlainCnn().eval(), tile=16), "mine:Net", "", "net")
    with pytest.raises(OptionError, match="overlap-tool run"):
        compress(plain, tmp_path / "in.npy", tmp_path / "it.lic")


def _head_of(path: Path) -> bytes:
    data = path.read_bytes()
    _, _, length, _ = container.OUTSIDE.unpack(data[: container.OUTSIDE.size])
    return data[container.OUTSIDE.size :][:length]


def test_an_image_of_nan_is_refused(tmp_path) -> None:
    """Weights that are finite are none of it: here a bias that no file could bring."""
    model = copy.deepcopy(small_model("bmshj2018-factorized"))
    broken = Codec(overlap_tool.wrap(model, tile=64), "bmshj2018-factorized", "", "broken")
    dict(broken.model.named_parameters())["g_s.6.bias"].data[1] = torch.nan
    np.save(tmp_path / "in.npy", photograph("coffee", 64, 64))
    compress(broken, tmp_path / "in.npy", tmp_path / "it.lic")
    with pytest.raises(ImageFileError, match=r"it\.lic: what the model makes of it is NaN in places"):
        decompress(broken, tmp_path / "it.lic", tmp_path / "out.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "it.lic"]
