"""Workers that die, differ or cannot be reached, and disks that are full: the right result, or one error."""

from __future__ import annotations

import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from support import zarrs
from support.disks import no_file_larger_than
from support.dying import dies_until
from support.networks import TwoBarriers, excited_codec
from support.photographs import photograph

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.errors import ClusterError, ImageFileError, OptionError
from overlap_tool.files import Codec
from overlap_tool.files import compress as compress_in_one_process
from overlap_tool.files import run as run_in_one_process
from overlap_tool.files.job import Job

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

from overlap_tool.distributed import cluster, compress, crew, models, run, scenes  # noqa: E402
from overlap_tool.distributed.cluster import OnWorkers  # noqa: E402
from overlap_tool.distributed.models import Wanted  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "small_chunks")

SMALL = 1 << 14


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """A codec, a network with barriers, a scene, and what one process makes of it by each."""
    folder = tmp_path_factory.mktemp("given")
    known = checkpoint.find("mbt2018-mean")
    tiled = overlap_tool.wrap(checkpoint.seeded_model(known, known.small), tile=64)
    overlap_tool.save(tiled, folder / "codec.tiled.pt", known.name, known.small)
    torch.manual_seed(0)
    network = overlap_tool.wrap(TwoBarriers().eval(), tile=64)
    overlap_tool.save(network, folder / "net.tiled.pt", "support.networks:TwoBarriers", {})
    pixels = photograph("astronaut", 300, 400, at=(0, 0))
    zarrs.written(folder / "in.zarr", pixels, (100, 100, 3))
    compress_in_one_process(codec(folder), folder / "in.zarr", folder / "whole.lic", in_memory=SMALL)
    run_in_one_process(network_in(folder), folder / "in.zarr", folder / "whole.zarr", dtype="float32")
    return folder


def codec(folder: Path) -> Codec:
    return Codec.load(folder / "codec.tiled.pt")


def network_in(folder: Path) -> Codec:
    return Codec.load(folder / "net.tiled.pt", trust=True)


def by_codec(given: Path, output: Path, **how):
    return compress(codec(given), given / "in.zarr", output / "it.lic", in_memory=SMALL, **how)


def by_network(given: Path, output: Path, **how):
    how = {"trust": True, "dtype": "float32", **how}
    return run(network_in(given), given / "in.zarr", output / "out.zarr", **how)


def same_file(given: Path, output: Path) -> bool:
    return (output / "it.lic").read_bytes() == (given / "whole.lic").read_bytes()


def same_samples(given: Path, output: Path) -> bool:
    return np.array_equal(zarrs.values_of(output / "out.zarr"), zarrs.values_of(given / "whole.zarr"))


# --- workers that are killed ------------------------------------------------------------------------------


class Killer:
    """Kills a random worker by force whenever so many pieces are done."""

    def __init__(self, workers, at: list[int]) -> None:
        self.workers = workers
        self.at = at
        self.done = 0
        self.killed: list[int] = []
        self.chance = random.Random(0)

    def count(self) -> None:
        self.done += 1
        if self.done in self.at:
            alive = [one.pid for one in self.workers.values() if one.pid is not None]
            self.killed.append(self.chance.choice(alive))
            os.kill(self.killed[-1], signal.SIGKILL)


@pytest.fixture
def killing(monkeypatch):
    def start(workers, at: list[int]) -> Killer:
        killer = Killer(workers, at)
        mark, result_of, take = Job.mark, cluster._result, crew.StagePasses.take

        def marking(self, name, rows) -> None:
            mark(self, name, rows)
            killer.count()

        def having(*args):
            made = result_of(*args)
            killer.count()
            return made

        def taking(*args) -> None:
            take(*args)
            killer.count()

        monkeypatch.setattr(Job, "mark", marking)
        monkeypatch.setattr(cluster, "_result", having)
        monkeypatch.setattr(crew.StagePasses, "take", taking)
        return killer

    return start


@contextmanager
def two_processes() -> Iterator[distributed.LocalCluster]:
    """That come again, however slowly."""
    with (
        dask.config.set(cluster.OF_OUR_OWN),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as started,
    ):
        yield started


def test_workers_that_are_killed(tmp_path, given, killing) -> None:
    """One in the middle of a network's passes, one while a codec's maps are on their way to it, and one in
    the first pass of a codec's transform."""
    with two_processes() as started:
        killer = killing(started.workers, [5])
        by_network(given, tmp_path, dask=started.scheduler_address, piece=200)
        assert len(killer.killed) == 1
        assert same_samples(given, tmp_path)
        killer = killing(started.workers, [10])
        by_codec(given, tmp_path, dask=started.scheduler_address, piece=200)
        assert len(killer.killed) == 1
        assert same_file(given, tmp_path)
        excited = overlap_tool.wrap(excited_codec(), tile=64)
        overlap_tool.save(excited, tmp_path / "it.tiled.pt", "support.networks:ExcitedCodec", {})
        opened = Codec.load(tmp_path / "it.tiled.pt", trust=True)
        compress_in_one_process(opened, given / "in.zarr", tmp_path / "one.lic")
        killer = killing(started.workers, [3])
        how = {"dask": started.scheduler_address, "piece": 200, "trust": True}
        compress(opened, given / "in.zarr", tmp_path / "it.lic", **how)
        assert len(killer.killed) == 1
        assert (tmp_path / "it.lic").read_bytes() == (tmp_path / "one.lic").read_bytes()


def test_a_task_whose_workers_die_is_sent_again(tmp_path, monkeypatch) -> None:
    """By us, when the scheduler gave it up: so often, and no more."""
    monkeypatch.setattr(cluster, "ATTEMPTS", 2)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL
        ) as started,
        distributed.Client(started, set_as_default=False) as client,
    ):
        work = OnWorkers(client, dies_until, lambda so_often: (tmp_path, so_often))
        assert list(work.in_order([1])) == [1]
        assert list(work.as_they_come([2])) == [(2, 2)]
        with pytest.raises(ClusterError, match=r"^a worker on \S+: it died, as did others.*resume=True"):
            list(work.in_order([9]))
        assert len(list(tmp_path.iterdir())) == 1 + 1 + 2


def test_a_worker_that_comes_again_late_is_waited_for(tmp_path) -> None:
    """Dask's own cluster would have closed it by then, and a run with no other would wait for ever."""
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}),
        cluster.connected(1, None) as client,
    ):
        work = OnWorkers(client, dies_until, lambda so_often: (tmp_path, so_often))
        assert list(work.in_order([1])) == [1]


def goes_on_after_an_error(folder: Path, number: int) -> None:
    """The first fails while the second writes."""
    if number == 0:
        while not list(folder.iterdir()):
            time.sleep(0.01)
        raise ArithmeticError
    (folder / "begun").touch()
    time.sleep(0.5)
    (folder / "ended").touch()


def test_an_error_is_raised_when_no_task_runs_any_more(tmp_path, address) -> None:
    """One that went on wrote a map into the run's folder while that was removed: the next run refused it."""
    with cluster.connected(None, address) as client, pytest.raises(ArithmeticError):
        list(OnWorkers(client, goes_on_after_an_error, lambda n: (tmp_path, n)).as_they_come(range(2)))
    assert {path.name for path in tmp_path.iterdir()} == {"begun", "ended"}


def test_a_worker_that_hangs_does_not_keep_an_error_back(address, monkeypatch) -> None:
    """It would have been waited for without end."""
    monkeypatch.setattr(cluster, "SECONDS_TO_END", 1)

    def run(*_: object, **how: object) -> None:
        time.sleep(3600)

    with cluster.connected(None, address) as client:
        monkeypatch.setattr(client, "run", run)
        work = OnWorkers(client, hangs_or_fails, lambda n: (n,))
        with pytest.raises(ZeroDivisionError):
            list(work.as_they_come([1, 0]))


def hangs_or_fails(number: int) -> float:
    time.sleep(number / 2)
    return 1 / number


def test_a_process_that_does_not_start_is_told(tmp_path, given, monkeypatch) -> None:
    monkeypatch.setattr(distributed.Nanny, "instantiate", lambda _: 1 / 0)
    with pytest.raises(ClusterError, match=r"^workers=1: a worker process could not start"):
        by_codec(given, tmp_path, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_all_workers_are_gone(tmp_path, given, monkeypatch) -> None:
    """Nothing would ever be computed."""
    with (
        dask.config.set({"distributed.scheduler.no-workers-timeout": "0.5s"}),
        distributed.LocalCluster(
            n_workers=1, processes=False, threads_per_worker=1, dashboard_address=None
        ) as started,
    ):
        mark = Job.mark

        def leaving(self, name, rows) -> None:
            mark(self, name, rows)
            if rows:  # a piece is done
                started.scale(0)

        monkeypatch.setattr(Job, "mark", leaving)
        with pytest.raises(ClusterError, match=r"it has no workers any more.*resume=True"):
            by_network(given, tmp_path, dask=started.scheduler_address, piece=128)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [tmp_path / ".out.zarr.job"]


A_CLUSTER = """
import distributed, time
if __name__ == "__main__":
    with distributed.LocalCluster(
        n_workers=1, processes=False, threads_per_worker=1, dashboard_address=None, protocol="tcp"
    ) as started:
        print(started.scheduler_address, flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize(("work", "same"), [(by_network, same_samples), (by_codec, same_file)])
def test_the_scheduler_is_killed(tmp_path, given, address, monkeypatch, work, same) -> None:
    """The run ends with one error, and goes on by another."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        subprocess.Popen([sys.executable, "-c", A_CLUSTER], stdout=subprocess.PIPE, text=True) as scheduler,
    ):
        assert scheduler.stdout is not None
        there = scheduler.stdout.readline().strip()
        mark = Job.mark

        def killing(self, name, rows) -> None:
            mark(self, name, rows)
            if rows:  # a piece is done
                scheduler.kill()

        monkeypatch.setattr(Job, "mark", killing)
        with pytest.raises(ClusterError, match=r"^the scheduler: its connection was lost.*resume=True"):
            work(given, tmp_path, dask=there, piece=128)
        monkeypatch.undo()
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert work(given, tmp_path, dask=address, piece=128, resume=True).resumed
    assert same(given, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kills", range(10))
def test_workers_that_are_killed_many_times(tmp_path, given, killing, kills) -> None:
    """Twenty times in all: twice in each of ten runs, at other places."""
    drawn = random.Random(kills)
    work, same, last = ((by_network, same_samples, 30), (by_codec, same_file, 60))[kills % 2]
    with two_processes() as started:
        killer = killing(started.workers, drawn.sample(range(1, last), 2))
        work(given, tmp_path, dask=started.scheduler_address, piece=100)
        assert len(killer.killed) == 2
    assert same(given, tmp_path)


# --- runs that stop ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1, 4, 6])
def test_a_codec_goes_on_where_it_stopped(tmp_path, given, address, disk, room) -> None:
    disk.room = room
    with pytest.raises(ImageFileError, match=r"No space left.*resume=True"):
        by_codec(given, tmp_path, dask=address, piece=128)
    assert not (tmp_path / "it.lic").exists()
    disk.room = 1000
    assert by_codec(given, tmp_path, dask=address, piece=128, resume=True).resumed
    assert len(set(disk.marked)) == len(disk.marked), "no row is kept twice"
    assert same_file(given, tmp_path)


@pytest.mark.parametrize(
    ("work", "same", "room"),
    [(by_network, same_samples, 30_000), (by_network, same_samples, 200_000), (by_codec, same_file, 3000)],
)
def test_a_full_disk(tmp_path, given, address, work, same, room) -> None:
    """One error from whoever meets it first; nothing that was half written is taken for whole."""
    with no_file_larger_than(room), pytest.raises(ImageFileError, match="File too large"):
        work(given, tmp_path, dask=address, piece=128)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    work(given, tmp_path, dask=address, piece=128, resume=True)
    assert same(given, tmp_path)


# --- what workers and addresses may be --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "other"), [("tool", "0.0.1"), ("engine", {"kernels": "exact", "arithmetic": "0"})]
)
@pytest.mark.parametrize(
    ("work", "asks", "opened"), [(by_network, scenes, network_in), (by_codec, crew, codec)]
)
def test_a_worker_with_another_version_or_arithmetic(
    tmp_path, given, address, monkeypatch, work, asks, opened, key, other
) -> None:
    """It is named, with what it has and what is wanted, and writes nothing."""
    monkeypatch.setattr(asks, "Wanted", lambda identity, trust: Wanted({**identity, key: other}, trust))
    own = opened(given).identity[key]
    told = re.escape(f"it would compute other bits ({key} {own} on the worker, {other} needed). Install the")
    with pytest.raises(
        ClusterError, match=rf"^a worker on inproc://\S+: {told} same versions on the worker$"
    ):
        work(given, tmp_path, dask=address)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_workers_cannot_load(tmp_path, given, address, monkeypatch) -> None:
    monkeypatch.setattr(models, "_LOADED", {})
    with pytest.raises(ClusterError, match=r"^a worker on .*: it cannot load the model: .*support.networks"):
        by_network(given, tmp_path, dask=address, trust=False)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_without_what_the_run_needs(tmp_path, given, address, monkeypatch) -> None:
    def without(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'overlap_tool'")

    monkeypatch.setattr("overlap_tool.distributed.passes.loaded", without)
    with pytest.raises(ClusterError, match=r"cannot import what the run needs .*Install the same versions"):
        by_network(given, tmp_path, dask=address)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_network_is_not_blamed_on_what_is_installed(
    tmp_path, given, address, monkeypatch
) -> None:
    def faulty(*_: object) -> None:
        raise AttributeError("'Tensor' object has no attribute 'heigth'")

    monkeypatch.setattr("overlap_tool.distributed.passes.loaded", faulty)
    with pytest.raises(AttributeError, match="heigth"):
        by_network(given, tmp_path, dask=address)


def test_a_worker_that_does_not_find_the_output(tmp_path, given, address, monkeypatch) -> None:
    elsewhere, made = tmp_path / "elsewhere", scenes.ScenePasses
    monkeypatch.setattr(scenes, "ScenePasses", lambda *given: replace(made(*given), folder=elsewhere))
    with pytest.raises(ClusterError, match=f"^a worker on .*the folder of the output, {elsewhere}, is not"):
        by_network(given, tmp_path, dask=address)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("work", [by_network, by_codec])
def test_an_address_that_nobody_answers(tmp_path, given, work, monkeypatch) -> None:
    """Nobody there, somebody who does not answer, and no address at all: within seconds."""
    assert cluster.SECONDS_TO_ANSWER <= 5
    monkeypatch.setattr(cluster, "SECONDS_TO_ANSWER", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for address in ("tcp://127.0.0.1:9", f"tcp://127.0.0.1:{silent.getsockname()[1]}", "nonsense"):
            started = time.monotonic()
            with pytest.raises(ClusterError, match="no scheduler answers there"):
                work(given, tmp_path, dask=address)
            assert time.monotonic() - started < 5
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_without_workers(tmp_path, given, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "SECONDS_TO_JOIN", 0.5)
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as started,
        pytest.raises(ClusterError, match=r"has no workers, and none came within 0.5 seconds"),
    ):
        by_network(given, tmp_path, dask=started.scheduler_address)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("work", [by_network, by_codec])
def test_chunks_that_are_missing_are_told(tmp_path, given, address, work) -> None:
    """Zarr does not store chunks of nothing but the fill value: workers read it, as one process does."""
    array = zarr.open_array(
        store=str(tmp_path / "in.zarr"), mode="w", shape=(200, 300, 3), chunks=(100, 100, 3), dtype="u1"
    )
    array[:100] = 7
    (tmp_path / "codec.tiled.pt").symlink_to(given / "codec.tiled.pt")
    (tmp_path / "net.tiled.pt").symlink_to(given / "net.tiled.pt")
    told = work(tmp_path, tmp_path, dask=address)
    expected = "3 of 6 chunks are not there, and are read as its fill value, 0"
    assert [note for note in told.notes if expected in note]


# --- results that wait to be fetched ----------------------------------------------------------------------


def _results_beside(_: object) -> int:
    cluster.one_result_at_a_time()
    return len(distributed.get_worker().data)


def test_a_worker_holds_one_result_at_a_time(monkeypatch) -> None:
    """So that what it holds does not depend on when results are fetched; but not for ever, since a client may
    never do so."""
    with (
        distributed.LocalCluster(
            n_workers=1, processes=False, threads_per_worker=1, dashboard_address=None
        ) as started,
        distributed.Client(started, set_as_default=False) as client,
    ):
        first = client.submit(_results_beside, 1)
        first.result()
        second = client.submit(_results_beside, 2)
        time.sleep(0.3)
        assert (first.status, second.status) == ("finished", "pending")
        first.release()
        assert second.result() == 0
        monkeypatch.setattr(cluster, "SECONDS_TO_FETCH", 0.3)
        assert client.submit(_results_beside, 3).result() == 1


def test_workers_without_room_for_python_are_refused() -> None:
    class Client:
        def run_on_scheduler(self, function: Any) -> list[int]:
            return function(SimpleNamespace(workers={"a": SimpleNamespace(memory_limit=1 << 30, nthreads=1)}))

    with pytest.raises(OptionError, match="Python and PyTorch alone take") as refused:
        cluster.memory_of_a_worker(Client())
    assert "start fewer" in str(refused.value)
