"""Pieces of a scene on Dask's workers: the bits of one process, whoever computes what, and whoever dies."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from support import zarrs
from support.networks import Doubles, PlainCnn, two_barriers
from support.photographs import codec, photograph
from torch import nn

import overlap_tool
from overlap_tool.errors import OptionError
from overlap_tool.files import Codec
from overlap_tool.files import run as run_in_one_process

distributed = pytest.importorskip("distributed")
dask = pytest.importorskip("dask")
dask_array = pytest.importorskip("dask.array")

from overlap_tool.distributed import map_tiles, scenes  # noqa: E402
from overlap_tool.distributed.arrays import only_stage  # noqa: E402
from overlap_tool.distributed.pieces import cut_scene  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


# --- Dask arrays ------------------------------------------------------------------------------------------


def _seeded(network: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return network().eval()


@torch.no_grad()
def _whole(network: nn.Module, values: np.ndarray) -> np.ndarray:
    given = torch.from_numpy(values)
    with overlap_tool.exact_kernels():
        return (network(given) if given.ndim == 4 else network(given[None])[0]).numpy()


@pytest.mark.parametrize(
    ("network", "shape", "chunks"),
    [
        (Doubles, (3, 61, 47), (3, 20, 17)),
        (Doubles, (3, 61, 47), (1, (1, 50, 10), (46, 1))),
        (Doubles, (2, 3, 40, 30), (1, 3, 15, 30)),
        (PlainCnn, (1, 64, 48), (1, 31, 21)),
    ],
)
@pytest.mark.parametrize("options", [{"tile": 16}, {"tile": 16, "schedule": "tiles"}], ids=str)
def test_a_chunked_array_gives_the_bits_of_the_whole(network, shape, chunks, options) -> None:
    network = _seeded(network)
    values = np.random.default_rng(1).random(shape, np.float32)
    tiled = overlap_tool.wrap(network, **options)
    lazily = map_tiles(tiled, dask_array.from_array(values, chunks=chunks))
    found = lazily.compute(scheduler="sync")
    assert (lazily.shape, lazily.dtype) == (found.shape, found.dtype)
    assert np.array_equal(found, _whole(network, values))
    part = lazily[..., 7:19, 3:11].compute(scheduler="sync")
    assert np.array_equal(part, found[..., 7:19, 3:11])


def test_a_chunk_reads_its_overlap_and_no_more() -> None:
    """Two convolutions, of 5 and 3: 3 samples on each side."""
    seen: list[tuple[int, int]] = []

    def block(block_info) -> np.ndarray:
        place = block_info[None]["array-location"]
        seen.append((place[1][0], place[2][0]))
        return np.ones((3, 4, 4), np.float32)

    array = dask_array.map_blocks(
        block, chunks=((3,), (4,) * 10, (4,) * 10), dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)
    )
    lazily = map_tiles(_seeded(Doubles), array)
    lazily[:, 32:40, 48:56].compute(scheduler="sync")  # from row 16 and column 24 of the input on
    assert sorted(seen) == [(row, column) for row in (12, 16, 20) for column in (20, 24, 28)]


def test_neighbours_get_the_edges_of_a_chunk_and_no_more() -> None:
    """3 rows or columns of 20, and corners of 3x3: of a chunk in the middle, what is around its centre."""
    values = np.random.default_rng(1).random((3, 60, 60), np.float32)
    graph = map_tiles(_seeded(Doubles), dask_array.from_array(values, chunks=(3, 20, 20))).dask
    (middle,) = [key for key in graph if "-edges" in key[0] and key[2:] == (1, 1)]
    edges = dask.get(graph, middle)
    assert sum(area.size for area, _ in edges) == 4 * 3 * 20 + 4 * 3 * 3
    assert all(np.array_equal(part, values[:, slice(*rows), slice(*down)]) for (rows, down), part in edges)
    assert all(part.base is None for _, part in edges), "not a view, which would keep the chunk"


def test_a_network_comes_to_other_processes_as_it_was() -> None:
    """Dask's own way to send modules lost which of them is tiled."""
    network = overlap_tool.wrap(_seeded(Doubles), tile=16)
    graph = map_tiles(network, dask_array.zeros((3, 30, 30), dtype=np.float32)).dask
    (model,) = [key for key in graph if isinstance(key, str) and key.endswith("-model")]
    sent = distributed.protocol.deserialize(*distributed.protocol.serialize(dask.get(graph, model)))
    values = torch.rand(1, 3, 30, 30)
    with torch.no_grad():
        assert torch.equal(only_stage(sent.model)(values), network(values))


@pytest.mark.parametrize(("side", "chunks"), [(4096, 625), (6144, 289)])
def test_the_graph_of_a_large_scene(side, chunks) -> None:
    """Three tasks for each chunk, the array's own among them, and one for the model."""
    scene = dask_array.zeros((3, 100_000, 100_000), chunks=(3, side, side), dtype=np.float32)
    assert len(map_tiles(_seeded(Doubles), scene).dask) == 3 * chunks + 1


def test_a_zarr_array_is_read_by_those_who_need_it(tmp_path, monkeypatch) -> None:
    """As many whole chunks of it as come near a side make one of the result; each task reads its window."""
    monkeypatch.setattr("overlap_tool.distributed.arrays.SIDE", 24)
    values = np.random.default_rng(1).random((3, 61, 47), np.float32)
    lazily = map_tiles(_seeded(Doubles), zarrs.written(tmp_path / "in.zarr", values, (1, 10, 30)))
    assert len(lazily.dask) == 4 * 2 + 1
    assert lazily.chunks == ((3,), (40, 40, 40, 2), (60, 34))
    found = distributed.protocol.deserialize(*distributed.protocol.serialize(lazily)).compute()
    assert np.array_equal(found, _whole(_seeded(Doubles), values))
    assert np.array_equal(lazily[..., 35:50, 50:70].compute(scheduler="sync"), found[..., 35:50, 50:70])


def test_the_graph_of_a_large_zarr_array() -> None:
    """One task for each chunk of the result, and one for the model: planned in under 10 s."""
    array = zarr.open_array(
        store={}, mode="w", shape=(3, 100_000, 100_000), chunks=(3, 1024, 1024), dtype="f4"
    )
    started = time.process_time()
    lazily = map_tiles(_seeded(Doubles), array)
    assert time.process_time() - started < 10
    assert (lazily.chunks[1][0], len(lazily.dask)) == (8192, 626)


@pytest.mark.parametrize(
    ("network", "array", "reason"),
    [
        (Doubles, np.zeros((4, 20, 20), np.float32), "its last axes are not 3 channels"),
        (Doubles, np.zeros((20, 20), np.float32), "its last axes are not 3 channels"),
        (Doubles, np.zeros((3, 20, 20), np.uint8), r"are uint8, and the network's float32.*astype"),
        (two_barriers, np.zeros((3, 20, 20), np.float32), "needs the whole map, which no worker has"),
    ],
)
def test_arrays_and_networks_that_do_not_go_are_refused(network, array, reason) -> None:
    with pytest.raises(OptionError, match=reason):
        map_tiles(_seeded(network), dask_array.from_array(array, chunks=-1))


def test_an_array_without_chunks_is_refused() -> None:
    with pytest.raises(OptionError, match="it is of numpy, and neither Dask's nor Zarr's"):
        map_tiles(_seeded(Doubles), np.zeros((3, 20, 20), np.float32))


def test_chunks_of_another_library_are_not_taken_for_zarrs() -> None:
    """A data set of h5py has some, but none of a worker's tasks can read it: its file stays behind."""

    class Dataset:
        shape, ndim, dtype, chunks = (3, 20, 20), 3, np.dtype(np.float32), (3, 10, 10)

    Dataset.__module__ = "h5py._hl.dataset"
    with pytest.raises(OptionError, match="it is of h5py, and neither Dask's nor Zarr's"):
        map_tiles(_seeded(Doubles), Dataset())


def test_an_array_of_unknown_size_is_refused() -> None:
    array = dask_array.zeros((3, 20, 20), dtype=np.float32)
    with pytest.raises(OptionError, match="does not know how many rows, columns or images") as refused:
        map_tiles(_seeded(Doubles), array[:, array[0, :, 0] == 0])
    assert "compute_chunk_sizes()" in str(refused.value)


def test_a_codec_is_no_network_from_map_to_map() -> None:
    with pytest.raises(OptionError, match="not one network"):
        map_tiles(codec("mbt2018-mean").model, dask_array.zeros((3, 64, 64), dtype=np.float32))


def test_kernels_whose_bits_follow_the_pieces_are_refused() -> None:
    stock = overlap_tool.wrap(_seeded(Doubles), tile=32, engine="stock")
    with pytest.raises(OptionError, match=r"^engine='stock': .* where a piece begins"):
        map_tiles(stock, dask_array.zeros((3, 64, 64), dtype=np.float32))


# --- scenes in files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> tuple[Codec, Path]:
    """A network in a file, a Zarr array of 600x512, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("scene")
    torch.manual_seed(0)
    tiled = overlap_tool.wrap(PlainCnn().eval(), tile=64)
    overlap_tool.save(tiled, folder / "net.tiled.pt", "support.networks:PlainCnn", {})
    grey = np.resize(photograph("camera", 300, 256), (600, 512))
    zarrs.written(folder / "in.zarr", grey, (100, 100))
    model = Codec.load(folder / "net.tiled.pt", trust=True)
    run_in_one_process(model, folder / "in.zarr", folder / "whole.zarr", dtype="float32")
    return model, folder


def _same(found: Path, folder: Path) -> bool:
    first, second = zarrs.values_of(found), zarrs.values_of(folder / "whole.zarr")
    return first.dtype == second.dtype and np.array_equal(first, second)


def _run(scene, output: Path, **how):
    model, folder = scene
    return scenes.run(model, folder / "in.zarr", output, dtype="float32", trust=True, **how)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("piece", [None, 128, 1000])
def test_workers_give_the_samples_of_one_process(tmp_path, scene, address, piece) -> None:
    told = _run(scene, tmp_path / "out.zarr", dask=address, piece=piece)
    assert _same(tmp_path / "out.zarr", scene[1])
    assert (told.width, told.height) == (512, 600)
    assert [note for note in told.notes if "whose halos add" in note]
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


def test_no_two_workers_write_one_chunk() -> None:
    for size, chunk, side in (((600, 512), (64, 128), 128), ((6000, 5000), (256, 1024), None)):
        areas = cut_scene(size, chunk, side)
        written = np.zeros(size, np.uint8)
        for area in areas:
            assert (area.rows.start % chunk[0], area.columns.start % chunk[1]) == (0, 0)
            written[slice(*area.rows), slice(*area.columns)] += 1
        assert (written == 1).all()
    assert 8 <= len(cut_scene((6000, 5000), (256, 1024), None)) < 20
    assert len(cut_scene((100_000, 100_000), (256, 1024), None)) < 1000


@pytest.mark.usefixtures("small_chunks")
def test_pieces_of_workers_with_other_memory_are_not_taken_for_these(
    tmp_path, scene, address, disk, monkeypatch
) -> None:
    """Areas of larger pieces with the numbers of smaller ones that were finished were left empty."""
    monkeypatch.setattr("overlap_tool.distributed.passes.fitting_side", lambda *_, **__: 64)
    disk.room = 4
    with pytest.raises(overlap_tool.ImageFileError, match="No space left"):
        _run(scene, tmp_path / "out.zarr", dask=address)
    disk.room = 1000
    monkeypatch.setattr("overlap_tool.distributed.passes.fitting_side", lambda *_, **__: 128)
    with pytest.raises(overlap_tool.OptionError, match="would be cut into other pieces"):
        _run(scene, tmp_path / "out.zarr", dask=address, resume=True)
    monkeypatch.setattr("overlap_tool.distributed.passes.fitting_side", lambda *_, **__: 64)
    assert _run(scene, tmp_path / "out.zarr", dask=address, resume=True).resumed
    assert _same(tmp_path / "out.zarr", scene[1])


@pytest.mark.usefixtures("small_chunks")
def test_what_is_finished_is_kept(tmp_path, scene, address, disk) -> None:
    """When the run stops at a full disk, and goes on when there is room."""
    disk.room = 4
    with pytest.raises(overlap_tool.ImageFileError, match=r"No space left.*resume=True"):
        _run(scene, tmp_path / "out.zarr", dask=address, piece=128)
    assert not (tmp_path / "out.zarr").exists()
    assert len(set(disk.marked)) == len(disk.marked) == 4
    disk.room = 1000
    told = _run(scene, tmp_path / "out.zarr", dask=address, piece=128, resume=True)
    assert told.resumed
    pieces = [f"piece-0-{number}" for number in range(len(cut_scene((600, 512), (64, 128), 128)))]
    assert sorted(name for name, _ in disk.marked if name != "image") == sorted(pieces), "each once"
    assert _same(tmp_path / "out.zarr", scene[1])


@pytest.mark.parametrize(
    ("how", "output", "reason"),
    [
        ({}, "out.zarr", "give one of the two"),
        ({"workers": 0}, "out.zarr", "workers=0: is not a number of processes"),
        ({"workers": 2}, "out.npy", "only Zarr has"),
    ],
)
def test_what_workers_cannot_do_is_refused(tmp_path, scene, how, output, reason) -> None:
    with pytest.raises(OptionError, match=reason):
        _run(scene, tmp_path / output, **how)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_chunks")
def test_from_the_command_line(tmp_path, scene, address, run) -> None:
    folder = scene[1]
    command = ["run", "--model", folder / "net.tiled.pt", "--trust", folder / "in.zarr", "-o"]
    output = tmp_path / "out.zarr"
    code, out, _ = run(*command, output, "--dtype", "float32", "--dask", address, "--piece", 128)
    assert (code, "512x600" in out) == (0, True)
    assert _same(output, folder)
    for wrong, reason in (
        (["--workers", 2, "--region", "1,2,3,4"], "--region: is computed in one process"),
        (["--piece", 128], "--piece: is for several processes"),
        (["--workers", 0], "--workers 0: is not a number of processes"),
    ):
        code, out, err = run(*command, tmp_path / "no.zarr", *wrong)
        assert (code, out) == (2, "")
        assert reason in err


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("workers", [1, 2])
def test_processes_give_the_samples_of_one(tmp_path, scene, workers) -> None:
    _run(scene, tmp_path / "out.zarr", workers=workers, piece=128)
    assert _same(tmp_path / "out.zarr", scene[1])
