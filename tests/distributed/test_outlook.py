"""What workers would take of a scene, before any of them is asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.networks import two_barriers
from support.photographs import LiveMemory, codec, photograph
from torch import nn

import overlap_tool
from overlap_tool import checkpoint, files
from overlap_tool.distributed import compress, crew, decompress
from overlap_tool.distributed.models import file_bytes
from overlap_tool.distributed.outlook import (
    BESIDE,
    BOTH,
    _bands,
    _bands_of,
    coding_outlook,
    memory_of_a_piece,
    outlook,
)
from overlap_tool.distributed.passes import cut_passes
from overlap_tool.distributed.pieces import PIECES, compute_area, cut_pass, cut_scene
from overlap_tool.distributed.reading import PictureWindow, SentWindow
from overlap_tool.errors import CodingError, ContainerError, OptionError
from overlap_tool.files import Codec
from overlap_tool.files.coding import entropy
from overlap_tool.files.formats import container
from overlap_tool.files.formats.frame import Frame
from overlap_tool.files.formats.pixels import PictureNumbers
from overlap_tool.files.running import ALL, area_read, plan_of
from overlap_tool.geometry.walk import Area
from overlap_tool.models import range_coding
from overlap_tool.planning.choose import Shape
from overlap_tool.settings import Size

pytestmark = pytest.mark.usefixtures("one_thread")

SCENE = Size(9000, 7000)


@pytest.mark.parametrize("architecture", ["mbt2018-mean", "cheng2020-anchor-checkerboard"])
def test_pieces_and_traffic_are_those_of_the_run(architecture) -> None:
    """By what is asked of every single piece then."""
    model = codec(architecture)
    found = {one.stage: one for one in outlook(model, SCENE, 4, 8 << 30)}
    assert list(found) == [stage.name for stage in model.stages]
    padded = [side + -side % 64 for side in SCENE[::-1]]
    for stage in model.stages:
        one = found[stage.name]
        rows, columns = (int(side * stage.input_scale) for side in padded)
        shape = Shape(1, rows, columns)
        areas = cut_pass(stage, plan_of(stage, shape).segments[-1], one.side)
        assert one.pieces == len(areas) == ceil(padded[0] / one.side) * ceil(padded[1] / one.side)
        channels = stage.network.ops[0].channels
        assert one.read == sum(4 * channels * area_read(stage, shape, area).size for area in areas)
        assert one.read > 4 * channels * rows * columns, "halos are read more than once"
        assert 0 <= one.added < 0.2
        assert 1 <= one.busiest < 2


def test_smaller_workers_get_smaller_pieces_and_recompute_more() -> None:
    model = codec("mbt2018-mean")
    large, small = (outlook(model, SCENE, 4, memory, only="g_s")[0] for memory in (8 << 30, 40 << 20))
    assert (small.side < large.side, small.pieces > large.pieces) == (True, True)
    assert small.added > large.added
    assert small.memory <= 40 << 20 < large.memory
    with pytest.raises(OptionError, match=r"^g_a: a piece of 256 pixels a side takes .* bytes of a worker"):
        outlook(model, SCENE, 4, 1000)


def test_a_worker_holds_what_is_foretold() -> None:
    """Beside the model's file; counted tensor by tensor, within 15 %."""
    model = codec("mbt2018-mean")
    (one,) = outlook(model, Size(512, 512), 1, 8 << 30, only="g_s", piece=512)
    stage = next(stage for stage in model.stages if stage.name == "g_s")
    shape, area = Shape(1, 32, 32), Area.whole(512, 512)
    with LiveMemory() as live:
        window = torch.zeros(1, stage.network.ops[0].channels, 32, 32)
        compute_area(stage, SentWindow(window, area_read(stage, shape, area)), shape, area)
    assert one.sent == 2 * window.nbytes, "one is read, and one waits"
    piece = one.memory - file_bytes(model.model) - BESIDE - window.nbytes
    assert 0.85 * piece <= live.peak <= 1.15 * piece


def test_a_picture_is_read_in_bands(tmp_path) -> None:
    """No worker holds all that its piece reads."""
    model = codec("mbt2018-mean")
    (one,) = outlook(model, Size(512, 2048), 1, 8 << 30, only="g_a", piece=2048)
    stage = next(stage for stage in model.stages if stage.name == "g_a")
    np.save(tmp_path / "in.npy", np.resize(photograph("chelsea", 128, 128), (2048, 512, 3)))
    picture = PictureWindow(str(tmp_path / "in.npy"), Frame(2048, 512, 3, np.dtype(np.uint8)), (3,))
    area = Area.whole(128, 32)
    with LiveMemory() as live:
        compute_area(stage, picture.opened(Area.whole(2048, 512)), Shape(1, 2048, 512), area)
    assert one.read == 4 * 3 * 2048 * 512
    assert max(live.peak, one.memory - file_bytes(model.model) - BESIDE) < one.read / 16
    assert one.sent == 0


def test_passes_of_a_network_with_barriers() -> None:
    network = Codec(overlap_tool.wrap(two_barriers(), tile=64), "net", "", "net")
    found = outlook(network, SCENE, 4, 8 << 30)
    assert [one.stage.partition(", ")[2] for one in found] == ["pass 1", "pass 2", "pass 3"]
    assert found[0].made >= 4 * 6 * SCENE.width * SCENE.height, "the map that the first barrier adds up"
    assert found[-1].made == 4 * 3 * SCENE.width * SCENE.height


def test_every_pass_is_cut_into_enough_pieces() -> None:
    """Only the last one was, so that a few workers took turns in the others."""
    network, size = Codec(overlap_tool.wrap(two_barriers(), tile=64), "net", "", "net"), Size(3000, 2000)
    (stage,) = network.stages
    last = partial(cut_scene, (2000, 3000), (256, 256))
    cut = cut_passes(stage, Shape(1, 2000, 3000), 8 << 30, None, True, 1, last)
    found = outlook(network, size, 2, 8 << 30)
    assert [one.pieces for one in found[:-1]] == [len(areas) for areas in cut[: len(found) - 1]]
    assert min(map(len, cut[: len(found)])) >= PIECES <= min(one.pieces for one in found)
    assert max(one.busiest for one in found) < 1.1


def test_on_the_command_line(run) -> None:
    how = ["analyze", "zoo:bmshj2018-factorized", "--size", "20000x10000", "--workers", "16x2GiB"]
    code, out, err = run(*how)
    assert (code, err) == (0, "")
    assert "20000x10000 on 16 workers" in out
    assert [line for line in out.splitlines() if "g_a" in line and "4096 px" in line and "%" in line]
    code, out, _ = run(*how, "--format", "json", "--stage", "g_s")
    (told,) = json.loads(out)["passes"]
    assert (code, told["stage"], told["pieces"], told["side"]) == (0, "g_s", 15, 4096)
    assert json.loads(out)["coding"] is None
    coded = json.loads(run(*how, "--format", "json")[1])["coding"]
    assert f"To code up to {coded['symbols']:,} symbols at once" in " ".join(run(*how)[1].split())


def test_a_decoder_is_foretold_the_string_that_it_gets() -> None:
    """Three times, as CompressAI copies it twice, beside the band's own string and its tables' numbers."""
    symbols, string = 1000, bytes(700)
    held = 3 * len(range_coding.guarded(string, symbols)) + len(string) + 4 * symbols
    assert entropy.decoding_bytes(symbols, len(string), False) == held


MEASURED = """
import sys
from pathlib import Path
import numpy as np
from compressai.entropy_models import GaussianConditional
from compressai.models.base import get_scale_table
from overlap_tool.files.coding import entropy

def resident(what):
    return int(Path("/proc/self/status").read_text().partition(f"{what}:")[2].split()[0]) * 1024

symbols, spread = int(sys.argv[1]), float(sys.argv[2])
model = GaussianConditional(None)
model.update_scale_table(get_scale_table())
tables = model.quantized_cdf.tolist(), model.cdf_length.tolist(), model.offset.tolist()
entropy.string_to_band(*[entropy.band_to_string(*[np.zeros((1, 1, 9), np.int32)] * 2, tables)[0],
                         np.zeros((1, 1, 9), np.int32), tables])
chance = np.random.default_rng(0)
made = np.rint(chance.standard_normal((8, symbols // 8, 1)) * spread).astype(np.int32)
indexes = np.full(made.shape, int((model.scale_table < spread).sum()), np.int32)

def held(code):
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    result = code()
    return result, resident("VmHWM") - before

(string, _), encoding = held(lambda: entropy.band_to_string(made, indexes, tables))
_, decoding = held(lambda: entropy.string_to_band(string, indexes, tables))
print(len(string), encoding + made.nbytes + indexes.nbytes, decoding + len(string) + indexes.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says what is resident")
@pytest.mark.parametrize("spread", [0.1, 30])
@pytest.mark.parametrize("symbols", [2_000_000, 2_200_000])
def test_coding_takes_what_is_foretold(symbols, spread) -> None:
    """Measured, for strings short and long, just before and after the encoder's vector doubles. Allocations
    of this size are returned at once, as on Dask's workers."""
    made = subprocess.run(
        [sys.executable, "-c", MEASURED, str(symbols), str(spread)],
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    string, encoding, decoding = map(int, made.split())
    assert 0.85 <= encoding / entropy.encoding_bytes(symbols, string, False) <= 1.15
    assert 0.85 <= decoding / entropy.decoding_bytes(symbols, string, False) <= 1.15


def test_the_largest_band() -> None:
    """Latents whole, where they fit in memory, and otherwise as many rows as may be coded at once."""
    model = codec("mbt2018-mean")
    channels = next(stage for stage in model.stages if stage.name == "g_s").network.ops[0].channels
    found = coding_outlook(model, Size(640, 500))
    assert found is not None
    assert found.symbols == channels * (640 // 16) * (512 // 16)
    beside = file_bytes(model.model) + BESIDE
    takes = entropy.decoding_bytes(found.symbols, found.symbols, False)
    assert found.memory == beside + takes
    found = coding_outlook(model, Size(100_000, 100_000), 1 << 28)
    assert found is not None
    hyper = next(stage for stage in model.stages if stage.name == "h_s").network.ops[0].channels
    assert found.symbols == hyper * 1563**2, "hyper-latents fit in memory, so that they are one band"
    assert found.memory == beside + entropy.decoding_bytes(found.symbols, found.symbols, False)
    found = coding_outlook(model, Size(100_000, 100_000), 1 << 24)
    assert found is not None
    assert (1 << 20) - channels * 6252 < found.symbols <= 1 << 20
    assert found.memory == beside + entropy.decoding_bytes(found.symbols, found.symbols, True)
    assert coding_outlook(codec("mbt2018"), SCENE) is None, "coded by the process that began"


@pytest.mark.parametrize("memory", [1 << 12, 1 << 28])
@pytest.mark.parametrize(
    "architecture",
    ["bmshj2018-factorized", "mbt2018-mean", "cheng2020-anchor-checkerboard", "elic2022-official"],
)
def test_bands_are_those_of_the_run(architecture, memory, tmp_path, monkeypatch) -> None:
    """A checkerboard codes two halves, ELIC those of groups of channels; of a file, the bands are known."""
    model, coded = codec(architecture), list[tuple[int, int]]()
    code = entropy.band_to_string

    def noting(symbols, *how):
        made = code(symbols, *how)
        coded.append((symbols.size, len(made[0])))
        return made

    monkeypatch.setattr(entropy, "band_to_string", noting)
    np.save(tmp_path / "in.npy", photograph("chelsea", 200, 300, at=(0, 0)))
    files.compress(model, tmp_path / "in.npy", tmp_path / "it.lic", in_memory=memory)
    size = Size(300, 200)
    found = coding_outlook(model, size, memory, ways=[entropy.encoding_bytes])
    assert found is not None
    assert found.symbols == max(symbols for symbols, _ in coded)
    head, strings = container.read(tmp_path / "it.lic")
    found = coding_outlook(model, size, head=head, ways=[lambda symbols, string, _: string])
    assert found is not None
    assert found.memory - file_bytes(model.model) - BESIDE == max(string for _, string in coded)
    assert found.symbols in [symbols for symbols, _ in coded]
    assert (len(coded) > len(strings)) == (memory == 1 << 12)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["--workers", "16"], "--workers 16: is not a number of workers and their memory"),
        (["--workers", "0x2GiB"], "--workers 0x2GiB: is not a number of workers"),
        (["--workers", "4x2bananas"], "--workers 4x2bananas: is not a number of workers and their memory"),
        (["--workers", "4x2GiB", "--format", "dot"], "--format dot: does not have what workers take"),
        (["--workers", "4x2GiB", "--stage", "h_a"], "--stage h_a: is no stage of"),
        (["--workers", "4x1KiB"], "takes .* bytes of a worker"),
    ],
)
def test_what_workers_cannot_be_asked(run, wrong, reason) -> None:
    code, out, err = run("analyze", "zoo:bmshj2018-factorized", *wrong)
    assert (code, out) == (2, "")
    assert re.search(reason, err)


def test_a_run_takes_pieces_that_fit_its_workers(tmp_path, monkeypatch) -> None:
    """Smaller ones for smaller workers, and the same samples."""
    distributed = pytest.importorskip("distributed")
    known = checkpoint.find("mbt2018-mean")
    tiled = overlap_tool.wrap(checkpoint.seeded_model(known, known.small), tile=64)
    overlap_tool.save(tiled, tmp_path / "it.tiled.pt", known.name, known.small)
    model, made = Codec.load(tmp_path / "it.tiled.pt"), {}
    np.save(tmp_path / "in.npy", np.resize(photograph("chelsea", 128, 128), (512, 640, 3)))
    with distributed.LocalCluster(
        n_workers=1, processes=False, threads_per_worker=1, dashboard_address=None
    ) as started:
        files.compress(model, tmp_path / "in.npy", tmp_path / "it.lic")
        head, _ = container.read(tmp_path / "it.lic")
        coding = coding_outlook(model, Size(640, 512), head=head, ways=[entropy.decoding_bytes])
        room = max(one.memory for one in outlook(model, Size(640, 512), 1, 8 << 30, piece=256))
        monkeypatch.setattr("overlap_tool.distributed.pieces.LEAST", 1 << 20)  # unless they have to be
        for memory in (1 << 40, max(room, coding.memory)):
            monkeypatch.setattr(crew, "memory_of_a_worker", lambda client, memory=memory: memory)
            how = {"dask": started.scheduler_address}
            told = decompress(model, tmp_path / "it.lic", tmp_path / "it.npy", **how)
            cut = [note.partition(",")[0] for note in told.notes if note.startswith("g_s: ")]
            made[memory] = cut, np.load(tmp_path / "it.npy").tobytes()
    (large, first), (small, second) = made.values()
    assert (large, small) == ([], ["g_s: 6 pieces"])
    assert first == second


def test_bands_that_fit_no_worker_are_refused(tmp_path, monkeypatch) -> None:
    """Before anything is computed, with memory or limits that do; and so are pieces."""
    distributed = pytest.importorskip("distributed")
    known = checkpoint.find("mbt2018-mean")
    tiled = overlap_tool.wrap(checkpoint.seeded_model(known, known.small), tile=64)
    overlap_tool.save(tiled, tmp_path / "it.tiled.pt", known.name, known.small)
    model, size = Codec.load(tmp_path / "it.tiled.pt"), Size(640, 512)
    np.save(tmp_path / "in.npy", np.resize(photograph("chelsea", 128, 128), (512, 640, 3)))
    files.compress(model, tmp_path / "in.npy", tmp_path / "one.lic")
    head, _ = container.read(tmp_path / "one.lic")

    def given(memory: int) -> None:
        monkeypatch.setattr(crew, "memory_of_a_worker", lambda client: memory)

    with distributed.LocalCluster(
        n_workers=1, processes=False, threads_per_worker=1, dashboard_address=None
    ) as started:
        how = {"dask": started.scheduler_address, "piece": 256}
        monkeypatch.setattr(crew.Workers, "compute", lambda *_: pytest.fail("began"))
        coding = coding_outlook(model, size, ways=[entropy.encoding_bytes])
        given(coding.memory - 1)
        with pytest.raises(
            OptionError, match=r"^in_memory=.* Give workers more memory, or write "
        ) as refused:
            compress(model, tmp_path / "in.npy", tmp_path / "it.lic", **how)
        decoding = coding_outlook(model, size, head=head, ways=[entropy.decoding_bytes])
        given(decoding.memory - 1)
        with pytest.raises(OptionError, match=r"more memory, or leave `workers` and `dask` out"):
            decompress(model, tmp_path / "one.lic", tmp_path / "it.npy", **how)
        given(0)
        with pytest.raises(OptionError, match=r"more memory, or leave `workers` and `dask` out"):
            compress(model, tmp_path / "in.npy", tmp_path / "it.lic", **how)
        monkeypatch.undo()
        given(coding.memory - 1)
        less = int(re.search(r"`in_memory=(\d+)`", str(refused.value))[1])
        compress(model, tmp_path / "in.npy", tmp_path / "it.lic", in_memory=less, **how)
        given(decoding.memory)
        decompress(model, tmp_path / "one.lic", tmp_path / "it.npy", **how)
        given(file_bytes(model.model) + BESIDE)
        monkeypatch.setattr(crew.Workers, "refuse_too_large", lambda *_: None)
        with pytest.raises(
            OptionError, match=r"^g_a: a piece of 256 pixels a side takes .* bytes of a worker"
        ):
            compress(model, tmp_path / "in.npy", tmp_path / "no.lic", dask=started.scheduler_address)
    files.compress(model, tmp_path / "in.npy", tmp_path / "less.lic", in_memory=less)
    assert (tmp_path / "it.lic").read_bytes() == (tmp_path / "less.lic").read_bytes()
    files.decompress(model, tmp_path / "one.lic", tmp_path / "one.npy")
    assert np.array_equal(np.load(tmp_path / "it.npy"), np.load(tmp_path / "one.npy"))


@pytest.fixture
def saved(tmp_path) -> Codec:
    """A small codec in a file, and beside it an image, `in.npy`."""
    known = checkpoint.find("mbt2018-mean")
    tiled = overlap_tool.wrap(checkpoint.seeded_model(known, known.small), tile=64)
    overlap_tool.save(tiled, tmp_path / "it.tiled.pt", known.name, known.small)
    np.save(tmp_path / "in.npy", np.resize(photograph("chelsea", 128, 128), (512, 640, 3)))
    return Codec.load(tmp_path / "it.tiled.pt")


@pytest.fixture
def worker() -> Iterator[str]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, processes=False, threads_per_worker=1, dashboard_address=None
    ) as started:
        yield started.scheduler_address


def test_a_given_piece_is_refused_if_it_fits_no_worker(tmp_path, monkeypatch, saved, worker) -> None:
    """Rather than if pieces of the least default side do not; so are samples of 16 bits that take more."""
    monkeypatch.setattr(crew.Workers, "refuse_too_large", lambda *_: None)

    def coded(piece: int, memory: int) -> None:
        monkeypatch.setattr(crew, "memory_of_a_worker", lambda client: memory)
        made = tmp_path / f"{piece}.lic"
        compress(saved, tmp_path / "in.npy", made, dask=worker, piece=piece, in_memory=1 << 12)

    need = {}
    for piece in (128, 512):
        stages = outlook(saved, Size(640, 512), 1, 8 << 30, piece=piece)
        need[piece] = max(one.memory for one in stages if one.stage != "g_s")
    assert need[128] < need[512]
    with pytest.raises(OptionError, match=r"a piece of 512 pixels .* or write a smaller `piece`"):
        coded(512, need[512] - 1)
    coded(512, need[512])
    coded(128, need[128])
    (takes,) = (one.memory for one in outlook(saved, Size(640, 512), 1, 8 << 30, piece=128, only="g_a"))
    monkeypatch.setattr(crew.StagePasses, "run", lambda *_: pytest.fail("began"))
    np.save(tmp_path / "in.npy", np.load(tmp_path / "in.npy").astype(np.uint16))
    with pytest.raises(OptionError, match=r"^g_a: a piece of 128 pixels"):
        coded(128, takes)


def test_pieces_in_whole_chunks_have_to_fit(tmp_path) -> None:
    """A chunk may be larger than the side that fits: what is really cut is what counts."""
    (stage,) = Codec(overlap_tool.wrap(nn.Conv2d(3, 3, 3, padding=1), tile=64), "net", "", "net").stages
    shape = Shape(1, 2048, 2048)

    def pieces(memory: int, chunk: int, piece: int | None) -> list[list[Area]]:
        last = partial(cut_scene, (2048, 2048), (chunk, chunk))
        return cut_passes(stage, shape, memory, piece, True, 1, last)

    (each,) = plan_of(stage, shape).segments
    largest = {
        side: memory_of_a_piece(stage, shape, each, cut_pass(stage, each, side), True, 1)
        for side in (256, 1024)
    }
    assert largest[256] < largest[1024]
    for piece in (None, 256):
        assert {area.size for area in pieces(largest[256], 256, piece)[-1]} == {256 * 256}
        with pytest.raises(OptionError, match="a piece of 256 pixels a side takes"):
            pieces(largest[256], 1024, piece)
        assert {area.size for area in pieces(largest[1024], 1024, piece)[-1]} == {1024 * 1024}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_bands_of_a_picture_are_in_its_own_samples(dtype) -> None:
    """Counted as a byte each, whatever they were."""
    stage = next(stage for stage in codec("mbt2018-mean").stages if stage.name == "g_a")
    shape, read = Shape(1, 256, 256), []
    frame = Frame(256, 256, 3, np.dtype(dtype))

    class Ones:
        def read(self, rows, columns):
            read.append(np.ones((rows.length, columns.length, 3), dtype))
            return read[-1]

    numbers = PictureNumbers("it", Ones(), frame, torch.device("cpu"))
    compute_area(stage, numbers, shape, Area.whole(16, 16))
    (each,) = plan_of(stage, shape).segments
    areas = cut_pass(stage, each, 256)
    size = np.dtype(dtype).itemsize
    one, two = (memory_of_a_piece(stage, shape, each, areas, False, sample) for sample in (size, 2 * size))
    assert 1 <= (two - one) / (2 * max(band.nbytes for band in read)) <= 1.15


def test_a_check_that_fits_no_worker_is_refused_at_the_start(tmp_path, monkeypatch, saved, worker) -> None:
    """Not when all has been coded: decoding takes more."""

    class Began(Exception):
        pass

    def began(*_):
        raise Began

    coding = coding_outlook(saved, Size(640, 512), ways=[entropy.encoding_bytes])
    both = coding_outlook(saved, Size(640, 512))
    assert coding.memory < both.memory
    monkeypatch.setattr(crew, "memory_of_a_worker", lambda client: both.memory - 1)
    monkeypatch.setattr(crew.Workers, "compute", began)
    how = {"dask": worker, "piece": 128}
    with pytest.raises(OptionError, match=r"^in_memory=.* Give workers more memory, or write ") as refused:
        compress(saved, tmp_path / "in.npy", tmp_path / "it.lic", check=True, **how)
    with pytest.raises(Began):  # it began
        compress(saved, tmp_path / "in.npy", tmp_path / "it.lic", **how)
    less = int(re.search(r"`in_memory=(\d+)`", str(refused.value))[1])
    with pytest.raises(Began):
        compress(saved, tmp_path / "in.npy", tmp_path / "it.lic", check=True, in_memory=less, **how)


def test_a_check_whose_pieces_fit_no_worker_is_refused_at_the_start(
    tmp_path, monkeypatch, saved, worker
) -> None:
    """Not at the synthesis, which may take more than the analysis."""
    stages = {one.stage: one.memory for one in outlook(saved, Size(640, 512), 1, 8 << 30, piece=256)}
    assert stages["g_s"] == max(stages.values()) > stages["g_a"]
    monkeypatch.setattr(crew, "memory_of_a_worker", lambda client: stages["g_s"] - 1)
    monkeypatch.setattr(crew.Workers, "compute", lambda *_: pytest.fail("began"))
    how = {"dask": worker, "piece": 256, "in_memory": 1 << 12}
    with pytest.raises(OptionError, match=r"^g_s: a piece of 256 pixels"):
        compress(saved, tmp_path / "in.npy", tmp_path / "it.lic", check=True, **how)


def test_a_file_of_more_strings_than_maps_is_no_index_error(tmp_path, saved, worker) -> None:
    files.compress(saved, tmp_path / "in.npy", tmp_path / "it.lic", in_memory=1 << 12)
    head, strings = container.read(tmp_path / "it.lic")
    assert head.order
    forged = replace(
        head,
        bands=(*head.bands, (container.Band(0, 0, ""),)),
        order=(*head.order, len(head.bands)),
        strings=[*head.strings, len(head.bands)],
    )
    with (tmp_path / "it.lic").open("wb") as file:
        container.write(file, forged, [*strings, b""])
    refusals = []
    for decode in (files.decompress, partial(decompress, dask=worker)):
        with pytest.raises(ContainerError) as refused:
            decode(saved, tmp_path / "it.lic", tmp_path / "it.npy")
        refusals.append(str(refused.value))
    assert refusals[0] == refusals[1]


def test_what_is_not_known_of_a_file_is_not_refused(tmp_path, monkeypatch, saved) -> None:
    """Maps that cannot be predicted, strings without an order; a latent vector counts as one of the maps."""
    files.compress(saved, tmp_path / "in.npy", tmp_path / "it.lic", in_memory=1 << 12)
    head, _ = container.read(tmp_path / "it.lic")
    size = Size(640, 512)
    known = coding_outlook(saved, size, head=head)
    assert known is not None
    assert coding_outlook(saved, size, head=replace(head, order=())) is None
    code = entropy.maps_coded
    monkeypatch.setattr("overlap_tool.distributed.outlook.maps_coded", lambda *how: [(1, 8), *code(*how)])
    longer = replace(
        head,
        bands=((container.Band(1, 1 << 30, ""),), *head.bands),
        order=(0, *(turn + 1 for turn in head.order)),
    )
    assert coding_outlook(saved, size, head=longer) == known

    def refused(*_):
        raise CodingError("it", "cannot", "Go")

    monkeypatch.setattr("overlap_tool.distributed.outlook.maps_coded", refused)
    assert coding_outlook(saved, size, head=head) is None


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 50)), min_size=1, max_size=6), st.randoms())
def test_of_maps_that_look_alike_no_more_is_foretold_than_is_coded(maps, chance) -> None:
    """Whichever map a string is of; channels and lengths of strings are drawn."""
    shapes = [(1, channels, 4, 5) for channels, _ in maps]
    chance.shuffle(shapes)
    coded = [(20 * channels, length) for channels, length in maps]
    head = SimpleNamespace(
        bands=tuple((container.Band(4, length, ""),) for _, length in coded), order=(), banded=False
    )
    for way in BOTH:
        told = max(way(*band) for band in _bands_of(shapes, head))
        assert told <= max(way(*band, False) for band in coded)
        if len({channels for channels, _ in maps}) == 1:
            assert told == max(way(*band, False) for band in coded)


def test_stages_of_one_height_and_two_widths() -> None:
    """Were taken for one: a small map was thought to be coded in bands, as a large one beside it is."""
    wide, narrow = (
        overlap_tool.wrap(nn.Conv2d(3, channels, 3, stride=stride, padding=1), tile=64)
        for channels, stride in ((64, (2, 1)), (2, (2, 2)))
    )
    stages = [*Codec(wide, "net", "", "net").stages, *Codec(narrow, "net", "", "net").stages]
    both = SimpleNamespace(stages=stages, multiple=2)
    found = list(_bands(both, Size(1024, 1024), [(1, 2, 512, 512), (1, 64, 512, 1024)], 4 << 20, ALL))
    assert [several for _, _, several in found] == [False, True]
