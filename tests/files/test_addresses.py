"""Zarr arrays at addresses: the samples of files, no more read than is needed, nothing half written."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from support.networks import PlainCnn
from support.photographs import codec, photograph

import overlap_tool
from overlap_tool.errors import ImageFileError, OptionError
from overlap_tool.files import Codec, compress, decompress, run, update
from overlap_tool.files.formats.addresses import Address, located
from overlap_tool.files.job import Job

fsspec = pytest.importorskip("fsspec")

pytestmark = pytest.mark.usefixtures("one_thread")

PIXELS = photograph("camera", 300, 400, at=(0, 0))


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """An empty memory://, and a folder of its own for jobs."""
    monkeypatch.setattr("overlap_tool.files.formats.outputs.CHUNK", (64, 128))
    monkeypatch.chdir(tmp_path)
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def stored(place: str, pixels: np.ndarray = PIXELS) -> str:
    array = zarr.open_array(
        store=place, mode="w", shape=pixels.shape, chunks=(100, 100, *pixels.shape[2:]), dtype="u1"
    )
    array[:] = pixels
    return place


def samples(place: str | Path) -> np.ndarray:
    return zarr.open_array(store=str(place), mode="r")[:]


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Codec:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("net") / "net.tiled.pt"
    tiled = overlap_tool.wrap(PlainCnn().eval(), tile=64)
    overlap_tool.save(tiled, path, "support.networks:PlainCnn", {})
    return Codec.load(path, trust=True)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("s3://bucket/a/b.zarr", "s3://bucket/a/b.zarr"),
        (Path("http://host:80/b.zarr"), "http://host:80/b.zarr"),
        ("memory://b.zarr", "memory://b.zarr"),
    ],
)
def test_addresses_survive_what_paths_do_to_slashes(given, kept) -> None:
    found = located(given)
    assert isinstance(found, Address)
    assert (str(found), found.suffix, found.name) == (kept, ".zarr", "b.zarr")
    assert str(found.with_name("c.zarr")) == kept.replace("b.zarr", "c.zarr")


def test_files_are_no_addresses(tmp_path) -> None:
    assert located("file:///a/b.zarr") == Path("/a/b.zarr")
    (tmp_path / "odd:").mkdir()
    (tmp_path / "odd:" / "b").touch()
    for path in ("a/b.zarr", "C:/a.zarr", "odd:/b"):
        assert type(located(path)) is type(Path())


def test_from_and_to_memory(tmp_path, memory, network) -> None:
    stored("memory://in/scene.zarr")
    stored(str(tmp_path / "scene.zarr"))
    run(network, "memory://in/scene.zarr", "memory://out/made.zarr", dtype="float32")
    run(network, "scene.zarr", "made.zarr", dtype="float32")
    assert np.array_equal(samples("memory://out/made.zarr"), samples("made.zarr"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.zarr", "scene.zarr"]
    assert [path["name"] for path in memory.ls("/out")] == ["/out/made.zarr"]
    with pytest.raises(ImageFileError, match=r"^memory://out/made.zarr: something is there already"):
        run(network, "memory://in/scene.zarr", "memory://out/made.zarr")


def test_a_codec(tmp_path) -> None:
    model, pixels = codec("bmshj2018-factorized"), photograph("chelsea", 96, 160)
    stored("memory://scene.zarr", pixels)
    np.save("scene.npy", pixels)
    compress(model, "memory://scene.zarr", "address.lic", blocks=64)
    compress(model, "scene.npy", "file.lic", blocks=64)
    assert Path("address.lic").read_bytes() == Path("file.lic").read_bytes()
    decompress(model, "file.lic", "memory://made.zarr")
    decompress(model, "file.lic", "made.npy")
    assert np.array_equal(samples("memory://made.zarr"), np.load("made.npy"))
    update(model, "file.lic", "memory://scene.zarr", (0, 0, 10, 10))
    with pytest.raises(OptionError, match="cannot be written there"):
        compress(model, "memory://scene.zarr", "memory://it.lic")


def test_what_stops_half_way_is_no_array(tmp_path, memory, network, monkeypatch) -> None:
    """Before it is moved to its place, and while it is."""
    stored("memory://scene.zarr")
    moved, move = [], memory.mv

    def stopping(source: str, place: str, **how) -> None:
        moved.append(source)
        if len(moved) > 3:
            raise OSError("gone")
        move(source, place, **how)

    monkeypatch.setattr(type(memory), "mv", lambda self, *args, **how: stopping(*args, **how))
    with pytest.raises(ImageFileError, match="gone"):
        run(network, "memory://scene.zarr", "memory://made.zarr", dtype="float32")
    assert len(moved) == 4
    with pytest.raises(Exception, match=r"made.zarr|found"):
        zarr.open_array(store="memory://made.zarr", mode="r")


def test_a_run_that_stopped_goes_on(tmp_path, memory, network, monkeypatch) -> None:
    stored("memory://scene.zarr")
    mark, left = Job.mark, [2]

    def filling(self, name, rows) -> None:
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        mark(self, name, rows)

    monkeypatch.setattr(Job, "mark", filling)
    with pytest.raises(ImageFileError, match="No space left"):
        run(network, "memory://scene.zarr", "memory://made.zarr", dtype="float32")
    assert not memory.exists("/made.zarr")
    left[0] = 1000
    assert run(network, "memory://scene.zarr", "memory://made.zarr", dtype="float32", resume=True).resumed
    run(network, "memory://scene.zarr", "whole.zarr", dtype="float32")
    assert np.array_equal(samples("memory://made.zarr"), samples("whole.zarr"))
    assert not memory.exists("/made.zarr.partial")


def test_over_http_no_more_is_read_than_is_needed(tmp_path, network) -> None:
    pytest.importorskip("aiohttp")
    stored(str(tmp_path / "served" / "scene.zarr"))
    asked: list[str] = []

    class Counting(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Counting, directory=str(tmp_path / "served")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/scene.zarr"
    try:
        run(network, address, "crop.zarr", dtype="float32", region=(10, 10, 40, 30))
        chunks = {path for path in asked if not path.endswith((".json", ".zarray", ".zattrs", ".zgroup"))}
        assert len(chunks) == 1, "of twelve"
        run(network, address, "made.zarr", dtype="float32")
        assert np.array_equal(samples("crop.zarr"), samples("made.zarr")[10:40, 10:50])
        with pytest.raises(ImageFileError, match=r"cannot be read .*Give the address of a Zarr array"):
            run(network, address.replace("scene.zarr", "photo.png"), "no.zarr")
    finally:
        server.shutdown()
        server.server_close()
    run(network, tmp_path / "served" / "scene.zarr", "whole.zarr", dtype="float32")
    assert np.array_equal(samples("made.zarr"), samples("whole.zarr"))


@pytest.mark.parametrize(
    ("image", "output", "reason"),
    [
        ("memory://nothing.zarr", "made.zarr", "^memory://nothing.zarr: it cannot be read"),
        ("nosuchscheme://a/b.zarr", "made.zarr", "^nosuchscheme://a/b.zarr: it cannot be read"),
        (
            "memory://scene.zarr",
            "memory://made.npy",
            "^memory://made.npy: only Zarr is written to",
        ),
        ("memory://scene.zarr", "nosuchscheme://a.zarr", "^nosuchscheme://a.zarr: it cannot be reached"),
    ],
)
def test_addresses_that_lead_nowhere(tmp_path, network, image, output, reason) -> None:
    stored("memory://scene.zarr")
    with pytest.raises(ImageFileError, match=reason):
        run(network, image, output)
    assert list(tmp_path.iterdir()) == []


def test_on_the_command_line(tmp_path, network, run) -> None:
    stored("memory://scene.zarr", photograph("camera", 64, 80))
    command = ["run", "--model", network.where, "--trust", "memory://scene.zarr", "-o", "memory://it.zarr"]
    assert run(*command)[0] == 0
    assert samples("memory://it.zarr").shape[:2] == (64, 80)
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert "memory://it.zarr: something is there already" in err
