"""Runs that are stopped, at any band and by force, and gone on with: the same bytes at the end."""

from __future__ import annotations

import functools
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from support.photographs import codec, photograph

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.errors import OptionError
from overlap_tool.files import Codec, compress, decompress
from overlap_tool.files.formats.pictures import NumpyFile
from overlap_tool.files.job import PASSING, Job
from overlap_tool.files.running import BetweenPasses
from overlap_tool.geometry import Span

pytestmark = pytest.mark.usefixtures("one_thread")

PIXELS = photograph("coffee", 220, 150)


class Stopped(BaseException):
    """As a process is stopped: no handler of ours waits for it."""


@pytest.fixture
def stop_after(monkeypatch):
    """Stop a job once so many bands are on the disk."""

    mark = Job.mark

    def set_to(bands: int) -> None:
        counted = 0

        def count(job: Job, name: str, rows: int) -> None:
            nonlocal counted
            mark(job, name, rows)
            counted += 1
            if counted == bands:
                raise Stopped

        monkeypatch.setattr(Job, "mark", count)

    return set_to


@pytest.mark.parametrize("suffix", ["npy", "png", "tif", "zarr"])
@pytest.mark.parametrize("in_memory", [1000, 256 << 20])
def test_stopped_after_every_band(tmp_path, stop_after, monkeypatch, suffix, in_memory) -> None:
    monkeypatch.setattr("overlap_tool.files.formats.outputs.CHUNK", (50, 50))
    np.save(tmp_path / "in.npy", PIXELS)
    model = codec("bmshj2018-factorized")

    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    stops = 0
    for folder in (whole, pieces):
        folder.mkdir()
        for step, source, target in (
            (compress, tmp_path / "in.npy", folder / "it.lic"),
            (decompress, folder / "it.lic", folder / f"out.{suffix}"),
        ):
            if folder is pieces:
                stop_after(1)
            while not target.exists():
                try:
                    step(model, source, target, in_memory=in_memory, resume=True)
                except Stopped:
                    stops += 1
                    assert not target.exists()
                    stop_after(1)
    assert stops > 3
    assert _bytes_of(pieces) == _bytes_of(whole)
    assert [path for path in pieces.iterdir() if path.name.startswith(".")] == []


def test_position_by_position_no_band_is_coded_twice(tmp_path, stop_after, monkeypatch) -> None:
    model = codec("mbt2018")
    np.save(tmp_path / "in.npy", PIXELS[:70, :60])
    compress(model, tmp_path / "in.npy", tmp_path / "whole.lic", in_memory=1000)
    decompress(model, tmp_path / "whole.lic", tmp_path / "whole.npy", in_memory=1000)
    coded: list[int] = []
    kind = type(model.model)
    for name, at in (("_compress_ar", 3), ("_decompress_ar", 4)):
        original = getattr(kind, name)

        @functools.wraps(original)
        def counting(*args, original=original, at=at):
            coded.append(args[at])
            return original(*args)

        monkeypatch.setattr(kind, name, counting)
    for step, source, target in (
        (compress, "in.npy", "it.lic"),
        (decompress, "it.lic", "it.npy"),
    ):
        coded.clear()
        stop_after(1)
        while not (tmp_path / target).exists():
            try:
                step(model, tmp_path / source, tmp_path / target, in_memory=1000, resume=True)
            except Stopped:
                stop_after(1)
        assert coded == [1] * 8
    assert (tmp_path / "it.lic").read_bytes() == (tmp_path / "whole.lic").read_bytes()
    assert (tmp_path / "it.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_was_done_is_not_done_again(tmp_path, stop_after, monkeypatch) -> None:
    np.save(tmp_path / "in.npy", PIXELS)
    stop_after(2)
    with pytest.raises(Stopped):
        compress(codec("bmshj2018-factorized"), tmp_path / "in.npy", tmp_path / "it.lic")
    monkeypatch.undo()
    read: list[int] = []
    of_file = NumpyFile.read

    def watched(*args, **kwargs):
        read.append(1)
        return of_file(*args, **kwargs)

    monkeypatch.setattr(NumpyFile, "read", watched)
    told = compress(codec("bmshj2018-factorized"), tmp_path / "in.npy", tmp_path / "it.lic", resume=True)
    resumed, read[:] = len(read), []
    assert told.resumed
    assert not compress(codec("bmshj2018-factorized"), tmp_path / "in.npy", tmp_path / "other.lic").resumed
    assert resumed < len(read)
    assert (tmp_path / "it.lic").read_bytes() == (tmp_path / "other.lic").read_bytes()


def test_another_input_is_not_gone_on_with(tmp_path, stop_after, monkeypatch) -> None:
    np.save(tmp_path / "in.npy", PIXELS)
    stop_after(2)
    with pytest.raises(Stopped):
        compress(codec("bmshj2018-factorized"), tmp_path / "in.npy", tmp_path / "it.lic")
    monkeypatch.undo()
    np.save(tmp_path / "in.npy", PIXELS[::-1])
    with pytest.raises(OptionError, match=r"resume=True.*differs in its input"):
        compress(codec("bmshj2018-factorized"), tmp_path / "in.npy", tmp_path / "it.lic", resume=True)
    compress(codec("bmshj2018-factorized"), tmp_path / "in.npy", tmp_path / "it.lic")
    assert (tmp_path / "it.lic").exists()


def test_a_refused_run_leaves_nothing(tmp_path) -> None:
    np.save(tmp_path / "in.npy", PIXELS)
    (tmp_path / "it.lic").write_bytes(b"nothing")
    with pytest.raises(overlap_tool.errors.ContainerError):
        decompress(codec("bmshj2018-factorized"), tmp_path / "it.lic", tmp_path / "out.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "it.lic"]


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path) -> None:
    np.save(tmp_path / "in.npy", PIXELS)
    (tmp_path / ".it.lic.job").mkdir()
    (tmp_path / ".it.lic.job" / "diary").write_text("dear")
    with pytest.raises(OptionError, match="not a folder of this tool"):
        compress(codec("bmshj2018-factorized"), tmp_path / "in.npy", tmp_path / "it.lic")
    assert (tmp_path / ".it.lic.job" / "diary").exists()


def test_a_journal_that_was_cut_off_in_a_line(tmp_path) -> None:
    job = Job(tmp_path / "it", {"a": 1}, resume=False)
    job.__enter__()
    job.mark("map", 3)
    with (tmp_path / ".it.job" / "journal").open("a") as journal:
        journal.write('["map", 9')
    job.__exit__(Stopped, Stopped(), None)  # a process that is killed gives its lock back, too
    with Job(tmp_path / "it", {"a": 1}, resume=True) as job:
        assert job.done == {"map": 3}


@pytest.mark.parametrize(
    ("command", "kills"),
    [
        ("compress", 1),
        pytest.param("compress", 20, marks=pytest.mark.slow),
        pytest.param("decompress", 20, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments(tmp_path, command, kills) -> None:
    """By SIGKILL, in another process: at the end the file is that of a run that was left alone."""
    known = checkpoint.find("mbt2018-mean")
    arguments = {"N": 12, "M": 16}
    tiled = overlap_tool.wrap(checkpoint.seeded_model(known, arguments), tile=64)
    overlap_tool.save(tiled, tmp_path / "it.tiled.pt", known.name, arguments)
    np.save(tmp_path / "in.npy", np.tile(PIXELS, (3, 2, 1)))
    model = Codec.load(tmp_path / "it.tiled.pt")
    compress(model, tmp_path / "in.npy", tmp_path / "whole.lic")
    decompress(model, tmp_path / "whole.lic", tmp_path / "whole.npy")
    source, whole = {"compress": ("in.npy", "whole.lic"), "decompress": ("whole.lic", "whole.npy")}[command]
    killed = tmp_path / f"killed{Path(whole).suffix}"
    options = ["--model", str(tmp_path / "it.tiled.pt"), "-o", str(killed), "--resume", "--quiet"]
    tool = [sys.executable, "-W", "ignore", "-m", "overlap_tool", command, str(tmp_path / source), *options]
    chance = random.Random(kills)
    for _ in range(kills):
        _kill_within_the_work(tool, killed.with_name(f".{killed.name}.job") / "journal", chance)
    subprocess.run(tool, check=True, timeout=600)
    assert killed.read_bytes() == (tmp_path / whole).read_bytes()
    assert not killed.with_name(f".{killed.name}.job").exists()


def _kill_within_the_work(command: list[str], journal: Path, chance: random.Random) -> None:
    """Some moment after the next band is told to be on the disk."""
    before = journal.stat().st_size if journal.exists() else 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.stat().st_size > before:
            time.sleep(chance.random() * 0.3)
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_the_journal_is_lines_of_json(tmp_path, stop_after) -> None:
    np.save(tmp_path / "in.npy", PIXELS)
    stop_after(2)
    with pytest.raises(Stopped):
        compress(codec("bmshj2018-factorized"), tmp_path / "in.npy", tmp_path / "it.lic")
    lines = (tmp_path / ".it.lic.job" / "journal").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [["compress-1-g_a", 3], ["compress-1-g_a", 7]]


def test_what_a_killed_process_left_behind_is_deleted(tmp_path) -> None:
    """Maps between passes and pieces of workers stayed until the end of the run that was resumed."""

    class Killed(BaseException):
        pass

    target = tmp_path / "it.lic"
    with suppress(Killed), Job(target, {}, resume=False) as job:
        job.mark("rows", 1)
        between = BetweenPasses(job.folder, 2, 3)  # deleted with the object
        between.write(Span(0, 2), Span(0, 3), torch.zeros(1, 4, 2, 3))
        tempfile.mkdtemp(prefix=PASSING, dir=job.folder)
        raise Killed
    assert len(list(job.folder.glob(f"{PASSING}*"))) == 2
    with Job(target, {}, resume=True) as job:
        assert job.resumed
        assert sorted(path.name for path in job.folder.iterdir()) == ["about.json", "journal", "lock"]
