"""No command writes over what it reads, by whatever name; what stood there stays."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from support.photographs import photograph
from support.small_models import small_model
from torch import nn

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.checkpoint.writing import refuse_overwriting
from overlap_tool.errors import OptionError

pytestmark = pytest.mark.usefixtures("one_thread")

PIXELS = photograph("camera", 64, 64)[..., None]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("read")
    arguments = checkpoint.find("bmshj2018-factorized").small
    codec = overlap_tool.wrap(small_model("bmshj2018-factorized"), tile=64)
    overlap_tool.save(codec, folder / "codec.tiled.pt", "bmshj2018-factorized", arguments)
    network = overlap_tool.wrap(nn.Conv2d(1, 1, 3, padding=1).eval(), tile=32)
    sizes = {"in_channels": 1, "out_channels": 1, "kernel_size": 3, "padding": 1}
    overlap_tool.save(network, folder / "net.tiled.pt", "torch.nn:Conv2d", sizes)
    np.save(folder / "same.npy", PIXELS)
    Image.fromarray(PIXELS[..., 0]).save(folder / "photo.png")
    array = zarr.open_array(
        str(folder / "in.zarr"), mode="w", shape=PIXELS.shape, chunks=(32, 64, 1), dtype="u1"
    )
    array[:] = PIXELS
    (folder / "rules.py").write_text("")
    return folder


@pytest.fixture
def here(written, tmp_path, monkeypatch) -> Path:
    shutil.copytree(written, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    os.symlink("same.npy", "link.npy")
    os.link("same.npy", "hard.npy")
    os.symlink("codec.tiled.pt", "link.pt")
    os.symlink(".", "around")
    return tmp_path / "here"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "line",
    [
        "run same.npy --model net.tiled.pt --trust -o same.npy",
        "run same.npy --model net.tiled.pt --trust -o ./around/same.npy",
        "run link.npy --model net.tiled.pt --trust -o same.npy",
        "run same.npy --model net.tiled.pt --trust -o link.npy",
        "run same.npy --model net.tiled.pt --trust -o hard.npy",
        "compress same.npy --model codec.tiled.pt -o codec.tiled.pt",
        "compress same.npy --model codec.tiled.pt -o link.pt",
        "compress same.npy --model link.pt -o codec.tiled.pt",
        "compress same.npy --model codec.tiled.pt -o same.npy",
        "compress in.zarr --model codec.tiled.pt -o in.zarr/zarr.json",
        "compress in.zarr --model codec.tiled.pt -o around/in.zarr/new.lic",
        "compress same.npy --model codec.tiled.pt --plugin rules.py -o rules.py",
        "wrap codec.tiled.pt",
        "wrap codec.tiled.pt -o link.pt",
        "wrap codec.tiled.pt --plugin rules.py -o rules.py",
        "analyze codec.tiled.pt --html codec.tiled.pt",
        "verify codec.tiled.pt --report codec.tiled.pt",
        "verify codec.tiled.pt --image photo.png --html photo.png",
    ],
)
def test_what_is_read_is_not_written_over(run, here, line) -> None:
    before = contents(here)
    code, out, err = run(*line.split())
    assert (code, out) == (2, "")
    assert "which is read. Name another file" in err
    assert contents(here) == before


def test_what_is_decoded_is_not_written_over(run, here) -> None:
    model = ("--model", "codec.tiled.pt")
    assert run("compress", "photo.png", *model, "-o", "coded.png")[0] == 0
    before = contents(here)
    code, _, err = run("decompress", "coded.png", *model)
    assert code == 2
    assert "--output coded.png: it would be written over coded.png, which is read" in err
    assert contents(here) == before


def test_another_file_is_written_over(run, here) -> None:
    """Of the same name elsewhere, or what an earlier run made."""
    (here / "elsewhere").mkdir()
    for target in ("out.npy", "out.npy", "elsewhere/same.npy"):
        assert run("run", "same.npy", "--model", "net.tiled.pt", "--trust", "-o", target)[0] == 0


def test_names_that_lead_nowhere_are_nobodys(tmp_path) -> None:
    os.symlink("loop", tmp_path / "loop")
    refuse_overwriting("", tmp_path / "loop", [tmp_path / "in.npy", "zoo:mbt2018", ""])


def test_case_where_it_does_not_count(tmp_path, monkeypatch) -> None:
    """By what the file system says: here it says that letters' case does not count."""
    (tmp_path / "photo.npy").touch()
    of = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: of(str(path).lower(), **how))
    with pytest.raises(OptionError, match="which is read"):
        refuse_overwriting("", tmp_path / "PHOTO.NPY", [tmp_path / "photo.npy"])
