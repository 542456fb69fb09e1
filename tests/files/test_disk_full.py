"""A full disk: one line, nothing by halves, and a run that is resumed once there is room. And two at once."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.disks import no_file_larger_than
from support.photographs import codec, photograph
from support.small_models import small_model

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.errors import CheckpointError, ImageFileError, OptionError
from overlap_tool.files import compress, decompress
from overlap_tool.files.job import Job

pytestmark = pytest.mark.usefixtures("one_thread")

PIXELS = photograph("coffee", 220, 150)
MODEL = "bmshj2018-factorized"


@pytest.fixture
def full(tmp_path) -> Iterator[Path]:
    """A small disk, where the system allows one to be made."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk], capture_output=True
    )
    if not made or made.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", ["npy", "png", "tif", "zarr", "webp"])
def test_a_small_disk_is_told_in_one_line_and_gone_on_with(tmp_path, full, suffix, monkeypatch) -> None:
    """The rows do not fit at first; then room is made, and the result is what it always is."""
    monkeypatch.setattr("overlap_tool.files.formats.outputs.CHUNK", (50, 50))
    model = codec(MODEL)
    np.save(tmp_path / "in.npy", PIXELS)
    compress(model, tmp_path / "in.npy", tmp_path / "it.lic")
    whole, target = tmp_path / f"whole.{suffix}", full / f"out.{suffix}"
    decompress(model, tmp_path / "it.lic", whole, in_memory=1000)
    free = shutil.disk_usage(full).free
    (full / "ballast").write_bytes(bytes(free - 60_000))
    # the check beforehand would refuse it: another process takes the room while this one runs
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1 << 40))
    with pytest.raises(ImageFileError, match=r"out\.\w+: it cannot be written \(No space left on device\)"):
        decompress(model, tmp_path / "it.lic", target, in_memory=1000)
    assert not target.exists()
    (full / "ballast").unlink()
    decompress(model, tmp_path / "it.lic", target, in_memory=1000, resume=True)
    assert names(full) == [target.name]
    assert files_of(target) == files_of(whole)


def files_of(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.99])
@pytest.mark.parametrize("in_memory", [1000, 256 << 20])
def test_compress_leaves_nothing_by_halves(tmp_path, share, in_memory) -> None:
    """Of the room that the result alone takes, a share is there."""
    model = codec(MODEL)
    np.save(tmp_path / "in.npy", PIXELS)
    whole, target = tmp_path / "whole.lic", tmp_path / "it.lic"
    compress(model, tmp_path / "in.npy", whole, in_memory=in_memory)
    size = int(share * whole.stat().st_size)
    with no_file_larger_than(size), pytest.raises(ImageFileError, match="File too large") as caught:
        compress(model, tmp_path / "in.npy", target, in_memory=in_memory)
    assert ("resume=True" in caught.value.way_out) == (tmp_path / ".it.lic.job").exists()
    assert not target.exists()
    compress(model, tmp_path / "in.npy", target, in_memory=in_memory, resume=True)
    assert target.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == ["in.npy", "it.lic", "whole.lic"]


@pytest.mark.parametrize("size", [0, 700, 5000])
def test_save_leaves_nothing_by_halves(tmp_path, size) -> None:
    tiled = overlap_tool.wrap(small_model(MODEL), tile=64)
    arguments = checkpoint.find(MODEL).small
    with (
        no_file_larger_than(size),
        pytest.raises(CheckpointError, match=r"cannot be written \(File too large"),
    ):
        overlap_tool.save(tiled, tmp_path / "it.tiled.pt", MODEL, arguments)
    assert names(tmp_path) == []


def test_commands_say_it_in_one_line(run, tmp_path) -> None:
    np.save(tmp_path / "in.npy", PIXELS)
    line = ("wrap", f"zoo:{MODEL}", "-o", tmp_path / "it.tiled.pt")
    with no_file_larger_than(10_000):
        code, out, err = run(*line)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "it.tiled.pt: it cannot be written (File too large)" in err
    assert run(*line)[0] == 0
    line = ("compress", tmp_path / "in.npy", "--model", tmp_path / "it.tiled.pt", "--in-memory", "10000")
    with no_file_larger_than(100_000):
        code, out, err = run(*line)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "in.lic: it cannot be written (File too large). Make room, and" in err
    assert run(*line, "--resume")[0] == 0
    assert names(tmp_path) == ["in.lic", "in.npy", "it.tiled.pt"]


def test_a_line_of_the_journal_that_was_cut_costs_that_line_only(tmp_path) -> None:
    """And those that follow it are told: they do not stand behind half a line."""

    def stopped(mark: tuple[str, int], cut: bool) -> dict[str, int]:
        job = Job(tmp_path / "it", {"of": "it"}, resume=True).__enter__()
        found = dict(job.done)
        job.mark(*mark)
        if cut:
            os.truncate(job.folder / "journal", (job.folder / "journal").stat().st_size - 3)
        job.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        return found

    assert stopped(("map", 10), cut=False) == {}
    assert stopped(("map", 20), cut=True) == {"map": 10}
    assert stopped(("map", 30), cut=False) == {"map": 10}
    assert stopped(("map", 40), cut=False) == {"map": 30}


def test_what_could_not_even_begin_is_begun_by_resume(tmp_path, monkeypatch) -> None:
    def full(*given: object) -> None:
        (tmp_path / ".it.job" / "about.json").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(ImageFileError, match="No space left"), Job(tmp_path / "it", {}, resume=False):
            pass
    assert names(tmp_path) == []
    (tmp_path / ".it.job").mkdir()
    (tmp_path / ".it.job" / "about.json").touch()  # as a kill leaves it
    with Job(tmp_path / "it", {}, resume=True):
        pass
    assert names(tmp_path) == []


# --- two at once ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_process_is_refused_and_harms_nothing(tmp_path, resume) -> None:
    second = (  # without what else the package imports
        "import sys, pathlib, importlib.util as i; spec = i.spec_from_file_location('job', sys.argv[1])\n"
        "job = i.module_from_spec(spec); spec.loader.exec_module(job)\n"
        "with job.Job(pathlib.Path(sys.argv[2]), {}, sys.argv[3] == 'True'): pass"
    )
    with Job(tmp_path / "it", {}, resume=False) as job:
        job.mark("map", 7)
        before = files_of(job.folder)
        done = subprocess.run(
            [sys.executable, "-c", second, inspect.getfile(Job), tmp_path / "it", str(resume)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "another process is making it. Wait for that one, or name another file" in done.stderr
        assert files_of(job.folder) == before
        with pytest.raises(OptionError, match="another process"), Job(tmp_path / "it", {}, resume):
            pass
    assert names(tmp_path) == []


def test_one_of_many_makes_it_and_no_lock_stays(tmp_path) -> None:
    """Eight threads begin and end jobs of one target: never are two in one."""
    inside, most, made = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, made
        for _ in range(10**6):
            if made >= 60:
                return
            with contextlib.suppress(OptionError), Job(tmp_path / "it", {}, resume=False) as job:
                with guard:
                    inside += 1
                    most = max(most, inside)
                job.mark("map", 1)
                assert names(job.folder) == ["about.json", "journal", "lock"]
                with guard:
                    inside -= 1
                    made += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert made >= 60
    assert names(tmp_path) == []


def test_a_folder_of_another_is_left_alone(tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    for make in (
        lambda path: os.symlink(tmp_path / "mine", path),
        lambda path: path.touch(),
        lambda path: shutil.copytree(tmp_path / "mine", path),
    ):
        path = tmp_path / ".it.job"
        make(path)
        with pytest.raises(OptionError, match="is not a folder of this tool's"):
            Job(tmp_path / "it", {}, resume=False).__enter__()
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    assert (tmp_path / "mine" / "file").exists()
