"""What workers would take of a scene, before any of them is asked."""

from __future__ import annotations

import json
import re
from math import ceil

import numpy as np
import pytest
import torch
from support.networks import two_barriers
from support.photographs import LiveMemory, codec, photograph

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.distributed import compress, crew
from overlap_tool.distributed.models import file_bytes
from overlap_tool.distributed.outlook import OF_A_CODEC, ON_ITS_WAY, coding_outlook, outlook
from overlap_tool.distributed.pieces import compute_area, cut_pass
from overlap_tool.distributed.reading import SentWindow
from overlap_tool.errors import OptionError
from overlap_tool.files import Codec
from overlap_tool.files.coding import entropy
from overlap_tool.files.running import area_read, plan_of
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
    large, small = (outlook(model, SCENE, 4, memory, only="g_a")[0] for memory in (8 << 30, 40 << 20))
    assert (small.side < large.side, small.pieces > large.pieces) == (True, True)
    assert small.added > large.added
    assert small.memory <= 40 << 20 < large.memory
    with pytest.raises(OptionError, match=r"a piece of 256 pixels a side of g_a takes .* bytes of a worker"):
        outlook(model, SCENE, 4, 1000)


@pytest.mark.parametrize("name", ["g_a", "g_s"])
def test_a_worker_holds_what_is_foretold(name) -> None:
    """Beside the model's file; counted tensor by tensor, within 15 %."""
    model = codec("mbt2018-mean")
    (one,) = outlook(model, Size(512, 512), 1, 8 << 30, only=name)
    stage = next(stage for stage in model.stages if stage.name == name)
    side = int(512 * stage.input_scale)
    shape = Shape(1, side, side)
    with LiveMemory() as live:
        window = torch.zeros(1, stage.network.ops[0].channels, side, side)
        size = int(512 * stage.input_scale * stage.network.rows.scale)
        area = cut_pass(stage, plan_of(stage, shape).segments[-1], size)[0]
        area = type(area).whole(size, size)
        compute_area(stage, SentWindow(window, area_read(stage, shape, area)), shape, area)
    piece = one.memory - file_bytes(model.model) - OF_A_CODEC - int(ON_ITS_WAY * one.made)
    assert 0.85 * piece <= live.peak <= 1.15 * piece


def test_passes_of_a_network_with_barriers() -> None:
    network = Codec(overlap_tool.wrap(two_barriers(), tile=64), "net", "", "net")
    found = outlook(network, SCENE, 4, 8 << 30)
    assert [one.stage.partition(", ")[2] for one in found] == ["pass 1", "pass 2", "pass 3"]
    assert found[0].made >= 4 * 6 * SCENE.width * SCENE.height, "the map that the first barrier adds up"
    assert found[-1].made == 4 * 3 * SCENE.width * SCENE.height


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
    assert entropy.coding_bytes(symbols, len(string)) == held


def test_the_largest_band() -> None:
    """Latents whole, where they fit in memory, and otherwise as many rows as may be coded at once."""
    model = codec("mbt2018-mean")
    channels = next(stage for stage in model.stages if stage.name == "g_s").network.ops[0].channels
    found = coding_outlook(model, Size(640, 500))
    assert found is not None
    assert found.symbols == channels * (640 // 16) * (512 // 16)
    assert found.memory == file_bytes(model.model) + OF_A_CODEC + entropy.coding_bytes(*[found.symbols] * 2)
    found = coding_outlook(model, Size(100_000, 100_000))
    assert found is not None
    assert entropy.SYMBOLS_IN_A_BAND - channels * 6252 < found.symbols <= entropy.SYMBOLS_IN_A_BAND
    assert coding_outlook(codec("mbt2018"), SCENE) is None, "coded by the process that began"


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
    """Smaller ones for smaller workers, and the same bytes."""
    distributed = pytest.importorskip("distributed")
    known = checkpoint.find("mbt2018-mean")
    tiled = overlap_tool.wrap(checkpoint.seeded_model(known, known.small), tile=64)
    overlap_tool.save(tiled, tmp_path / "it.tiled.pt", known.name, known.small)
    model, made = Codec.load(tmp_path / "it.tiled.pt"), {}
    np.save(tmp_path / "in.npy", np.resize(photograph("chelsea", 128, 128), (512, 640, 3)))
    with distributed.LocalCluster(
        n_workers=1, processes=False, threads_per_worker=1, dashboard_address=None
    ) as started:
        for memory in (1 << 40, 1 << 20):
            monkeypatch.setattr(crew, "memory_of_a_worker", lambda client, memory=memory: memory)
            monkeypatch.setattr("overlap_tool.distributed.pieces.LEAST", 1 << 20)  # unless they have to be
            told = compress(model, tmp_path / "in.npy", tmp_path / "it.lic", dask=started.scheduler_address)
            cut = [note.partition(",")[0] for note in told.notes if note.startswith("g_a: ")]
            made[memory] = cut, (tmp_path / "it.lic").read_bytes()
    (large, first), (small, second) = made.values()
    assert (large, small) == ([], ["g_a: 6 pieces"])
    assert first == second
