"""What asks for far more than it is: refused before any work is done, in little memory."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr
from safetensors.torch import save_file
from support.confined import command, confined
from support.photographs import codec, photograph
from support.small_models import small_model

import overlap_tool
from overlap_tool import bounds, checkpoint
from overlap_tool.checkpoint import reading, third_party
from overlap_tool.checkpoint.artefact import Artefact
from overlap_tool.files import compress, decompress
from overlap_tool.files.formats import container

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are those of Linux"),
]


TELLING = """
import re, sys
from pathlib import Path
from overlap_tool import cli
try:
    cli.main()
finally:
    print(re.search(r"VmHWM:.*", Path("/proc/self/status").read_text())[0], file=sys.stderr)
    print("torch" in sys.modules, file=sys.stderr)
"""
"""The command line, and then the most memory that it took, and whether it imported torch."""


def _refused_at_once(*arguments: object) -> str:
    """In a process of its own, which takes far less memory than torch does, and time."""
    done = subprocess.run(
        [sys.executable, "-c", TELLING, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    *told, memory, torch_is_there = done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert "--large" in done.stderr
    assert torch_is_there == "False"
    assert int(memory.split()[1]) < 500 << 10, memory
    return "\n".join(told)


def _refused(work, seconds: int = 60) -> str:
    ended = confined(work, seconds=seconds)
    assert ended.code == 2, ended.told
    assert "Traceback" not in ended.told
    assert "--large" in ended.told
    return ended.told


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("wrapped") / "it.tiled.pt"
    overlap_tool.save(overlap_tool.wrap(small_model("mbt2018-mean"), tile=64), path, "mbt2018-mean")
    return path


def _pickle_of_100_megabytes(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("it/data.pkl", "w") as file:
            for _ in range(100):
                file.write(bytes(1 << 20))
        archive.writestr("it/version", "3")


def _sparse(path: Path) -> None:
    torch.save({"a": torch.ones(3)}, path)
    os.truncate(path, 200 << 30)


def _sparse_safetensors(path: Path) -> None:
    size = 200 << 30
    header = json.dumps({"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + size)


def _million_keys(path: Path) -> None:
    torch.save(dict.fromkeys(map(str, range(10**6)), 0), path)


def _million_keys_of_old(path: Path) -> None:
    torch.save(dict.fromkeys(map(str, range(10**6)), 0), path, _use_new_zipfile_serialization=False)


def _million_records(path: Path) -> None:
    """The list alone; zip files say at their end how long it is."""
    record = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 8) + bytes(16) + b"data/abc"
    entries = record * 200_000
    ends = struct.pack("<4s4HLLH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(entries), 0, 0)
    path.write_bytes(entries + ends)


def _many_pickles(path: Path) -> None:
    """Each within bounds, and all in the same place: a megabyte that is read a hundred times."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("it/data.pkl", b"N0" * 500_000)
        (whole,) = archive.infolist()
        archive.filelist += [whole] * 99


def _million_keys_of_safetensors(path: Path) -> None:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(f'"k{i}":{entry}' for i in range(10**6)) + "}").encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (_pickle_of_100_megabytes, "it.pt"),
        (_sparse, "it.pt"),
        (_sparse_safetensors, "it.safetensors"),
        (_million_keys, "it.pt"),
        (_million_keys_of_old, "it.pt"),
        (_million_records, "it.pt"),
        (_many_pickles, "it.pt"),
        (_million_keys_of_safetensors, "it.safetensors"),
    ],
)
def test_a_checkpoint_that_is_beyond_bounds(tmp_path, make, name) -> None:
    make(tmp_path / name)
    _refused_at_once("analyze", tmp_path / name)


def _tiff(path: Path, tags: dict[int, int], **how) -> None:
    """An honest file but for these numbers of its first page."""
    tifffile.imwrite(path, photograph("chelsea", 32, 32), **how)
    with tifffile.TiffFile(path) as file:
        places = {number: file.pages[0].tags[number].offset for number in tags}
    data = bytearray(path.read_bytes())
    for number, value in tags.items():
        data[places[number] : places[number] + 12] = struct.pack("<HHLL", number, 4, 1, value)
    path.write_bytes(data)


def _tiff_of_width(path: Path) -> None:
    _tiff(path, {256: 1 << 31})


def _tiff_of_one_huge_tile(path: Path) -> None:
    _tiff(path, {322: 1 << 19, 323: 1 << 19}, tile=(32, 32))


def _zarr_of_rows(path: Path) -> None:
    zarr.create_array(store=str(path), shape=(10**12, 8, 3), chunks=(64, 8, 3), dtype=np.uint8)


def _zarr_of_one_huge_chunk(path: Path) -> None:
    shape = (1 << 16, 1 << 16, 3)
    zarr.create_array(store=str(path), shape=shape, chunks=shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (_tiff_of_width, "it.tif"),
        (_tiff_of_one_huge_tile, "it.tif"),
        (_zarr_of_rows, "it.zarr"),
        (_zarr_of_one_huge_chunk, "it.zarr"),
    ],
)
def test_an_image_that_is_beyond_bounds(tmp_path, wrapped, make, name) -> None:
    make(tmp_path / name)
    _refused_at_once("compress", "--model", wrapped, tmp_path / name, "-o", tmp_path / "it.lic")
    assert not (tmp_path / "it.lic").exists()


def test_a_few_hundred_bytes_that_claim_to_be_a_large_image(tmp_path, wrapped) -> None:
    np.save(tmp_path / "in.npy", photograph("chelsea", 64, 64))
    compress(codec("mbt2018-mean"), tmp_path / "in.npy", tmp_path / "it.lic")
    data = (tmp_path / "it.lic").read_bytes()
    magic, version, length, _ = container.OUTSIDE.unpack(data[: container.OUTSIDE.size])
    head = json.loads(data[container.OUTSIDE.size :][:length])
    head.update(
        width=8192,
        height=8192,
        padding=[0, 0, 0, 0],
        shape=[128, 128],
        bands=[[[0, 60, ""]], [[0, 60, ""]]],
    )
    inside = json.dumps(head, separators=(",", ":")).encode()
    made = container.OUTSIDE.pack(magic, version, len(inside), 120) + inside + bytes(120)
    (tmp_path / "it.lic").write_bytes(made + hashlib.sha256(made).digest())
    told = _refused_at_once("decompress", "--model", wrapped, tmp_path / "it.lic", "-o", tmp_path / "out.npy")
    assert "claim to be an image of 8192x8192" in told


HUGE: dict[str, tuple[str, dict[str, object]]] = {
    "one layer": ("torch.nn:Conv2d", {"in_channels": 40_000, "out_channels": 30_000, "kernel_size": 1}),
    "one layer behind others": ("torchvision.models:vgg16", {"num_classes": 200_000}),
    "many layers": ("torchvision.models.densenet:DenseNet", {"block_config": [10**6]}),
    "many copies of a layer": ("torch.nn:Transformer", {"num_encoder_layers": 10**6}),
    "many small copies": ("torch.nn:Transformer", {"num_encoder_layers": 10**6, "d_model": 8}),
    "a codec": ("compressai.models:MeanScaleHyperprior", {"N": 2000, "M": 2000}),
}


@pytest.mark.parametrize("what", HUGE)
def test_arguments_that_ask_for_a_huge_model(what) -> None:
    """Refused by what it would be. Copies were not counted, and took all the memory there was."""
    named, wanted = HUGE[what]
    told = _refused(command("analyze", "--model", named, "--kwargs", json.dumps(wanted)), seconds=10)
    assert "over 2 GiB of weights" in told


ABOVE_TORCH = """
import importlib, re, sys, time
from pathlib import Path
import torch

def most():
    told = Path("/proc/self/status").read_text()
    peak, files = (int(re.search(f"{name}:[^0-9]*([0-9]+)", told)[1]) for name in ("VmHWM", "RssFile"))
    return (peak - files) >> 10

before = most()
importlib.import_module(sys.argv.pop(1))
began = time.process_time()
from overlap_tool import cli
try:
    cli.main()
finally:
    print(most() - before, "MB,", round(time.process_time() - began, 1), "s", file=sys.stderr)
"""
"""The command line, and the memory that it took beyond what a bare import of torch takes, and the processor's
    peak, files = (int(re.search(f"{name}:[^0-9]*([0-9]+)", told)[1]) for name in ("VmHWM", "RssFile"))
disk, the system maps as many as its cache happens to hold."""


@pytest.mark.parametrize("told_by", ["many layers", "a codec", "a file"])
def test_what_judging_a_huge_model_takes(tmp_path, wrapped, told_by) -> None:
    """Its class has to be imported, and so has torch; what is above that is bounded."""
    named, wanted = HUGE["a codec" if told_by == "a file" else told_by]
    asked = ["--model", named, "--kwargs", json.dumps(wanted)]
    if told_by == "a file":
        replace(Artefact.read(wrapped), architecture=named, arguments=wanted).write(tmp_path / "it.tiled.pt")
        asked = ["--trust", str(tmp_path / "it.tiled.pt")]
    module = named.partition(":")[0]
    done = subprocess.run(
        [sys.executable, "-c", ABOVE_TORCH, module, "analyze", *asked], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "over 2 GiB of weights" in done.stderr
    memory, seconds = re.findall(r"^(\d+) MB, ([\d.]+) s$", done.stderr, re.MULTILINE)[-1]
    assert int(memory) < 400, done.stderr
    assert float(seconds) < 5, done.stderr  # a second or two; a slow machine is no fault


def test_a_large_model_is_as_its_class_makes_it(monkeypatch) -> None:
    """Its sizes are made first, and then all of it, from the same seed."""
    wanted = {"num_classes": 10}
    small = third_party.construct("torchvision.models:squeezenet1_1", wanted).state_dict()
    monkeypatch.setattr(bounds, "SMALL_MODEL", 1 << 20)
    large = third_party.construct("torchvision.models:squeezenet1_1", wanted).state_dict()
    assert all(torch.equal(large[key], tensor) for key, tensor in small.items())


def test_what_a_constructor_makes_on_the_way_does_not_count(monkeypatch) -> None:
    """HiFiC's builds its tables, of thousands of tensors that are gone then."""
    monkeypatch.setattr(bounds, "TENSORS", 100)
    monkeypatch.setattr(bounds, "SMALL_MODEL", 1 << 20)
    monkeypatch.setattr(bounds, "MODEL", 1 << 20)
    assert third_party.construct(f"{__name__}:Tabled", {}).table.shape == (1000,)


class Tabled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(1000))
        for _ in range(400):
            self.table = torch.nn.Parameter(self.table.detach() + 1)


class Looking(torch.nn.Module):
    """Its constructor looks at numbers, of which a large tensor that is measured has none."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = torch.nn.Linear(1000, 1000)
        assert self.wide.weight.sum().item() != 0


def test_a_large_model_that_looks_at_its_numbers_is_built(monkeypatch) -> None:
    monkeypatch.setattr(bounds, "SMALL_MODEL", 1 << 20)
    assert third_party.construct(f"{__name__}:Looking", {}).wide.weight.device.type == "cpu"


def test_what_is_meant_is_taken(tmp_path, monkeypatch) -> None:
    """With --large on the command line, and inside `lifted`."""
    arguments = ("analyze", "--model", "torch.nn:Conv2d", "--kwargs")
    narrow = json.dumps({"in_channels": 3, "out_channels": 3, "kernel_size": 3})
    monkeypatch.setattr(bounds, "MODEL", 100)
    monkeypatch.setattr(bounds, "SMALL_MODEL", 100)
    _refused(command(*arguments, narrow))
    assert confined(command(*arguments, narrow, "--large")).code == 0
    monkeypatch.setattr(bounds, "FILE", 100)
    torch.save(small_model("mbt2018").state_dict(), tmp_path / "it.pt")
    _refused(command("analyze", tmp_path / "it.pt"))
    with bounds.lifted():
        assert checkpoint.load_checkpoint(tmp_path / "it.pt").architecture == "mbt2018"


def test_a_flat_image_stays_within_bounds(tmp_path) -> None:
    """The cheapest image that a codec can be given, of a size at which the bound is looked at."""
    np.save(tmp_path / "in.npy", np.full((2112, 2112, 3), 128, np.uint8))
    used = codec("bmshj2018-factorized")
    overlap_tool.rewrap(used.model, overlap_tool.Settings(tile=(512, 512)))
    compress(used, tmp_path / "in.npy", tmp_path / "it.lic")
    decompress(used, tmp_path / "it.lic", tmp_path / "out.npy")


def test_a_pickle_that_contains_itself(tmp_path) -> None:
    loop: dict[str, object] = {}
    loop["state_dict"] = loop
    torch.save(loop, tmp_path / "it.pt")
    ended = confined(command("analyze", tmp_path / "it.pt"))
    assert ended.code == 2, ended.told
    assert "it holds no weights" in ended.told


@pytest.mark.parametrize("name", ["it.pt", "it.safetensors"])
def test_a_file_that_is_cut_off_while_it_is_read(tmp_path, monkeypatch, name) -> None:
    """What is mapped then ends the process by SIGBUS."""
    path = tmp_path / name
    state = {key: tensor.contiguous() for key, tensor in small_model("mbt2018").state_dict().items()}
    (save_file if "safe" in name else torch.save)(state, path)
    check = reading.refuse_hollow_tensors

    def cut(*args) -> None:
        check(*args)
        os.truncate(path, 1)

    monkeypatch.setattr(reading, "refuse_hollow_tensors", cut)
    ended = confined(lambda: print(checkpoint.load_checkpoint(path).architecture))
    assert ended.code == 0, ended.told
    assert "mbt2018" in ended.told
    assert path.stat().st_size == 1
