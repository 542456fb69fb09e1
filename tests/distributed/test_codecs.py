"""`compress` and `decompress` on workers: the bytes and the samples of one process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from support.networks import excited_codec
from support.photographs import coded_whole, photograph, strings_in
from torch import nn

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.errors import OptionError
from overlap_tool.files import Codec
from overlap_tool.files import compress as compress_in_one_process
from overlap_tool.files import decompress as decompress_in_one_process
from overlap_tool.files.coding import entropy
from overlap_tool.files.formats import container
from overlap_tool.files.running import plan_of
from overlap_tool.planning.choose import Shape

pytest.importorskip("distributed")

from overlap_tool.distributed import compress, decompress
from overlap_tool.distributed.cluster import this_worker

pytestmark = pytest.mark.usefixtures("one_thread")

BAND_TO_STRING = entropy.band_to_string

SMALL = 1 << 14
"""Bytes that may be in memory, so that maps are coded in bands."""


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    """Small codecs in files, by their names."""
    folder = tmp_path_factory.mktemp("codecs")

    @cache
    def of(architecture: str, **options) -> Codec:
        known = checkpoint.find(architecture)
        model = overlap_tool.wrap(checkpoint.seeded_model(known, known.small), **{"tile": 64, **options})
        path = folder / f"{architecture}-{len(list(folder.iterdir()))}.tiled.pt"
        overlap_tool.save(model, path, architecture, known.small)
        return Codec.load(path)

    return of


def _coded_twice(codec: Codec, folder: Path, address: str, height: int, width: int, **how) -> None:
    """By one process and by workers: the files, and what becomes of them."""
    np.save(folder / "in.npy", photograph("chelsea", height, width, at=(0, 0)))
    trust = {"trust": how.pop("trust", False)}
    compress_in_one_process(codec, folder / "in.npy", folder / "one.lic", **how)
    told = compress(codec, folder / "in.npy", folder / "many.lic", dask=address, piece=64, **how, **trust)
    assert (folder / "many.lic").read_bytes() == (folder / "one.lic").read_bytes()
    assert [note for note in told.notes if "g_a: " in note and "whose halos add" in note]
    how.pop("blocks", None)
    decompress_in_one_process(codec, folder / "one.lic", folder / "one.npy", **how)
    told = decompress(codec, folder / "one.lic", folder / "many.npy", dask=address, piece=64, **how, **trust)
    assert np.array_equal(np.load(folder / "many.npy"), np.load(folder / "one.npy"))
    assert [note for note in told.notes if "g_s: " in note and "whose halos add" in note]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("architecture", "memory"),
    [("mbt2018-mean", SMALL), ("mbt2018-mean", 1 << 28), ("cheng2020-anchor-checkerboard", SMALL)],
)
def test_workers_give_the_bytes_of_one_process(tmp_path, codecs, address, architecture, memory) -> None:
    _coded_twice(codecs(architecture), tmp_path, address, 120, 170, in_memory=memory)


@pytest.fixture(scope="module")
def excited(tmp_path_factory) -> tuple[nn.Module, Codec]:
    """A codec with summaries of whole maps: the model itself, and in tiles, from a file."""
    path = tmp_path_factory.mktemp("excited") / "it.tiled.pt"
    model = excited_codec()
    overlap_tool.save(overlap_tool.wrap(model, tile=64), path, "support.networks:ExcitedCodec", {})
    return model, Codec.load(path, trust=True)


@pytest.mark.parametrize("memory", [SMALL, 1 << 28])
def test_a_codec_with_barriers(tmp_path, excited, address, memory) -> None:
    model, codec = excited
    assert {stage.name: len(plan_of(stage, Shape(1, 64, 64)).segments) for stage in codec.stages} == {
        "g_a": 2,
        "h_a": 1,
        "h_s": 2,
        "g_s": 2,
    }
    _coded_twice(codec, tmp_path, address, 120, 170, in_memory=memory, trust=True)
    how = {"in_memory": memory, "check": True}
    told = compress(codec, tmp_path / "in.npy", tmp_path / "it.lic", dask=address, trust=True, **how)
    assert told.psnr == compress_in_one_process(codec, tmp_path / "in.npy", tmp_path / "it.lic", **how).psnr
    strings, _, pixels = coded_whole(model, photograph("chelsea", 120, 170, at=(0, 0)))
    assert np.array_equal(np.load(tmp_path / "many.npy"), pixels)
    if memory > SMALL:  # otherwise coded in bands
        assert strings_in(tmp_path / "many.lic") == strings


@pytest.mark.parametrize("architecture", ["elic2022-official", "mbt2018", "bmshj2018-factorized"])
def test_channel_groups_positions_in_order_and_one_transform(tmp_path, codecs, address, architecture) -> None:
    _coded_twice(codecs(architecture), tmp_path, address, 53, 71, in_memory=SMALL)


CODED_BY: list[str] = []


def _noted(symbols, indexes, tables):
    CODED_BY.append(this_worker())
    return BAND_TO_STRING(symbols, indexes, tables)


def test_bands_are_coded_by_workers(tmp_path, codecs, address, monkeypatch) -> None:
    """Those of the hyper-latents and of the latents; not by the process that began."""
    codec = codecs("mbt2018-mean")
    np.save(tmp_path / "in.npy", photograph("chelsea", 256, 128, at=(0, 0)))
    compress_in_one_process(codec, tmp_path / "in.npy", tmp_path / "one.lic", in_memory=SMALL)
    monkeypatch.setattr(entropy, "band_to_string", _noted)
    CODED_BY.clear()
    compress(codec, tmp_path / "in.npy", tmp_path / "it.lic", dask=address, in_memory=SMALL)
    assert (tmp_path / "it.lic").read_bytes() == (tmp_path / "one.lic").read_bytes()
    head, _ = container.read(tmp_path / "it.lic")
    assert len(CODED_BY) == sum(map(len, head.bands)) > 1
    assert all(who.startswith("a worker on ") for who in CODED_BY)


def test_blocks(tmp_path, codecs, address) -> None:
    _coded_twice(codecs("mbt2018-mean"), tmp_path, address, 150, 210, in_memory=SMALL, blocks=64)


def test_what_cannot_be_cut_is_refused(tmp_path, codecs, address) -> None:
    stock = codecs("mbt2018-mean", engine="stock")
    np.save(tmp_path / "in.npy", photograph("chelsea", 64, 64))
    with pytest.raises(OptionError, match=r"^engine='stock': .* where a piece begins"):
        compress(stock, tmp_path / "in.npy", tmp_path / "it.lic", dask=address)
    codec = codecs("mbt2018-mean")
    compress_in_one_process(codec, tmp_path / "in.npy", tmp_path / "it.lic")
    with pytest.raises(OptionError, match=r"region=\[0, 0, 8, 8\]: is decoded in one process"):
        decompress(codec, tmp_path / "it.lic", tmp_path / "it.npy", dask=address, region=(0, 0, 8, 8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "it.lic"]


def test_what_one_process_began_is_not_resumed_by_workers(tmp_path, codecs, address, monkeypatch) -> None:
    """Other maps lie in the folder of such a job."""
    codec = codecs("mbt2018-mean")
    np.save(tmp_path / "in.npy", photograph("chelsea", 128, 128))
    monkeypatch.setattr("overlap_tool.files.compressing.written", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compress_in_one_process(codec, tmp_path / "in.npy", tmp_path / "it.lic", in_memory=SMALL)
    with pytest.raises(OptionError, match="differs in its workers"):
        compress(codec, tmp_path / "in.npy", tmp_path / "it.lic", dask=address, in_memory=SMALL, resume=True)


def test_from_the_command_line(tmp_path, codecs, address, run) -> None:
    codec = codecs("mbt2018-mean")
    np.save(tmp_path / "in.npy", photograph("chelsea", 90, 128))
    compress_in_one_process(codec, tmp_path / "in.npy", tmp_path / "one.lic")
    decompress_in_one_process(codec, tmp_path / "one.lic", tmp_path / "one.npy")
    how = ["--model", codec.where, "--dask", address, "--piece", 64]
    code, out, err = run("compress", *how, tmp_path / "in.npy", "-o", tmp_path / "it.lic")
    assert (code, "128x90" in out, "whose halos add" in err) == (0, True, True)
    assert (tmp_path / "it.lic").read_bytes() == (tmp_path / "one.lic").read_bytes()
    code, out, _ = run("decompress", *how, tmp_path / "it.lic", "-o", tmp_path / "it.npy")
    assert code == 0
    assert np.array_equal(np.load(tmp_path / "it.npy"), np.load(tmp_path / "one.npy"))
    wrong = ["decompress", *how, tmp_path / "it.lic", "-o", tmp_path / "no.npy", "--region", "0,0,8,8"]
    code, out, err = run(*wrong)
    assert (code, out) == (2, "")
    assert "--region: is computed in one process" in err
