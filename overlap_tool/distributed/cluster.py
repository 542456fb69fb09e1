"""Dask's workers: some processes of this machine, or those of a scheduler."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from threading import Thread, local
from typing import Any, Generic, TypeVar

from overlap_tool.errors import ClusterError, MissingExtraError, OptionError

G = TypeVar("G")
T = TypeVar("T")

SECONDS_TO_ANSWER = 5

SECONDS_TO_JOIN = 30
"""How long to wait for a scheduler's first worker, without which nothing would ever be computed."""

SECONDS_TO_END = 60
"""Dask cannot stop a running task: an error that ends a run is raised after its tasks, or after this time."""

OF_OUR_OWN = {
    "distributed.scheduler.no-workers-timeout": "3m",
    "distributed.deploy.lost-worker-timeout": "1000h",
    "distributed.worker.profile.enabled": False,
}
"""Local processes restart after they die. By default, Dask's cluster gives up a process that is not back
within 15 seconds, even if it is still starting or has died again. And workers would keep a profile of all
calls, of some MiB, which grows with the time that they compute."""

WINDOWS_IN_TASKS = {"distributed.admin.large-graph-warning-threshold": "1 TiB"}
"""A task contains its input, since data that Dask scatters to a worker are lost if that worker dies."""

OF_PYTHON = 3 << 29
"""The memory of a process before it computes anything (about 1000 MiB with CompressAI), and a reserve."""

AHEAD = 2
"""Tasks sent at once, per worker."""

ATTEMPTS = 6
"""How often a task is sent: Dask gives a task up once a number of workers (four by default) have died while
running it, for whatever reason."""

SECONDS_TO_FETCH = 60
"""How long a worker waits until its result before is fetched; a client that was paused may never do so."""

RESUME = "Go on with `resume=True`: what is finished is kept"


def dask_library(name: str) -> Any:
    """A part of Dask, which nothing outside this folder needs."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            name,
            f"it is needed for work on several processes, and cannot be imported ({error})",
            'Run pip install "overlap-tool[dask]"',
        ) from error


@contextmanager
def connected(workers: int | None, dask: str | None) -> Iterator[Any]:
    """A client of `workers` processes of this machine, or of the scheduler at an address."""
    if (workers is None) == (dask is None):
        raise OptionError("`workers`, `dask`", "give one of the two", "Write `workers=4`")
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise OptionError(f"workers={workers!r}", "is not a number of processes", "Write `workers=4`")
    distributed, library = dask_library("distributed"), dask_library("dask")
    if dask is not None:
        try:
            # this thread may have an event loop already, as in notebooks
            with ThreadPoolExecutor(1) as beside:
                beside.submit(asyncio.run, _answered(dask)).result()
            client = distributed.Client(dask, timeout=SECONDS_TO_ANSWER, set_as_default=False)
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            raise ClusterError(
                f"dask={dask!r}",
                f"no scheduler answers there ({type(error).__name__})",
                "Start one with dask scheduler, or give `workers` for processes of this machine",
            ) from error
        with client, library.config.set(WINDOWS_IN_TASKS):
            _wait_for_a_worker(client, dask)
            yield client
        return
    assert workers is not None
    with (
        library.config.set(WINDOWS_IN_TASKS | OF_OUR_OWN),
        _processes(workers) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _processes(workers: int) -> Any:
    """A cluster of processes of this machine."""
    try:
        return dask_library("distributed").LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL
        )
    except RuntimeError as error:
        raise ClusterError(
            f"workers={workers}",
            f"a worker process could not start ({error})",
            "Try it with fewer. A script that starts workers has to call this tool under "
            '`if __name__ == "__main__":`',
        ) from error


async def _answered(dask: str) -> None:
    """Test an address: a client would wait forever at an open port that is not a scheduler's."""
    comm, security = dask_library("distributed.comm"), dask_library("distributed").Security()
    how = security.get_connection_args("client")
    await (
        await asyncio.wait_for(comm.connect(dask, timeout=SECONDS_TO_ANSWER, **how), SECONDS_TO_ANSWER)
    ).close()


def _wait_for_a_worker(client: Any, dask: str) -> None:
    try:
        client.wait_for_workers(1, timeout=SECONDS_TO_JOIN)
    except (TimeoutError, asyncio.TimeoutError) as error:
        raise ClusterError(
            f"dask={dask!r}",
            f"the scheduler has no workers, and none came within {SECONDS_TO_JOIN} seconds",
            f"Start some with dask worker {dask}",
        ) from error


def memory_of_a_worker(client: Any) -> int:
    """The least memory among the workers for a task, in bytes, after Python and PyTorch."""

    def limits(dask_scheduler: Any) -> list[int]:
        workers = dask_scheduler.workers.values()
        return [one.memory_limit // max(1, one.nthreads) for one in workers if one.memory_limit]

    with in_touch():
        least = min(client.run_on_scheduler(limits), default=1 << 62)
    if least <= OF_PYTHON:
        told = f"one has {least} bytes for a task, and Python and PyTorch alone take {OF_PYTHON}"
        raise OptionError("workers", told, "Give workers more memory, or start fewer")
    return least - OF_PYTHON


def this_worker() -> str:
    """The worker that runs the current task, for error messages."""
    with suppress(ValueError):  # outside of tasks
        return f"a worker on {dask_library('distributed').get_worker().address}"
    return "a worker"


_TASK_BEFORE = local()
"""The task that a thread of a worker ran before."""


def one_result_at_a_time() -> None:
    """On a worker: return once the result that this thread made before is fetched, and thus freed."""
    with suppress(ValueError):  # outside of tasks
        worker = dask_library("distributed").get_worker()
        until = time.monotonic() + SECONDS_TO_FETCH
        while getattr(_TASK_BEFORE, "key", None) in worker.data and time.monotonic() < until:
            time.sleep(0.01)
        _TASK_BEFORE.key = worker.get_current_task()


@dataclass(frozen=True)
class OnWorkers(Generic[G, T]):
    """A function that workers run once for each of some arguments.

    The input of a call is made when it is sent, and is part of its task, so that the scheduler can send it
    again.
    """

    client: Any
    function: Callable[..., T]
    arguments: Callable[[G], Sequence[Any]]

    def as_they_come(self, given: Iterable[G]) -> Iterator[tuple[G, T]]:
        """Arguments and their results, in order of completion. Few calls are sent at a time, so that neither
        inputs nor results pile up on workers."""
        ended = dask_library("distributed").as_completed(loop=self.client.loop)
        tasks, left = dict[Any, _Task[G, T]](), iter(given)

        def expect(task: _Task[G, T]) -> None:
            tasks[task.future] = task
            ended.add(task.future)

        def send() -> None:
            for one in islice(left, max(0, AHEAD * _threads(self.client) - len(tasks))):
                expect(_Task(self, one))

        try:
            with as_refusals():
                send()
                for future in ended:
                    task = tasks.pop(future)
                    if task.sent_again():
                        expect(task)
                        continue
                    made = future.result()
                    future.release()  # its worker need not keep it
                    send()
                    yield task.given, made
        finally:
            _forget(self.client, list(tasks))

    def in_order(self, given: Iterable[G]) -> Iterator[T]:
        """Results in order, of calls that are sent a few at a time, so that inputs do not pile up."""
        waiting = deque[_Task[G, T]]()
        try:
            for one in given:
                with as_refusals():
                    waiting.append(_Task(self, one))
                if len(waiting) >= AHEAD * _threads(self.client):
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        finally:
            _forget(self.client, [task.future for task in waiting])


class _Task(Generic[G, T]):
    """A call on a worker, sent again if Dask gives it up because workers died."""

    def __init__(self, work: OnWorkers[G, T], given: G) -> None:
        self.work = work
        self.given = given
        self.left = ATTEMPTS
        self._send()

    def _send(self) -> None:
        self.left -= 1
        work = self.work
        self.future = work.client.submit(work.function, *work.arguments(self.given), pure=False)

    def sent_again(self) -> bool:
        """Wait until the task ends; return whether it was sent again and has to be awaited once more."""
        killed = isinstance(self.future.exception(), dask_library("distributed").KilledWorker)
        if again := killed and self.left > 0:
            self._send()
        return again


def _threads(client: Any) -> int:
    with in_touch():
        return max(1, sum(client.nthreads().values()))


@contextmanager
def in_touch() -> Iterator[None]:
    """Inside, the scheduler is queried: an OSError is a lost connection, not an error of a file."""
    try:
        yield
    except OSError as error:
        raise ClusterError("the scheduler", "its connection was lost", RESUME) from error


def _forget(client: Any, futures: Sequence[Any]) -> None:
    """Cancel tasks, and return when no worker runs one, since it could write to a folder about to be deleted.

    If the scheduler is gone or the client is closed, no worker runs them.
    """
    if not futures or client.status != "running":
        return
    keys = {future.key for future in futures}

    async def ended(dask_worker: Any) -> None:
        until = time.monotonic() + SECONDS_TO_END
        while time.monotonic() < until:
            await asyncio.sleep(0.1)  # first, since this query may arrive before the cancellation
            if keys.isdisjoint(dask_worker.state.tasks):
                return

    def wait() -> None:
        with suppress(Exception, asyncio.CancelledError):  # another error already ends the run
            client.cancel(futures)
            client.run(ended, on_error="ignore")

    beside = Thread(target=wait, daemon=True)  # a worker that hangs would never answer
    beside.start()
    beside.join(SECONDS_TO_END)


def _result(task: _Task[G, T]) -> T:
    with as_refusals():
        while task.sent_again():
            pass
        made: T = task.future.result()
        return made


@contextmanager
def as_refusals() -> Iterator[None]:
    """Inside, failures of tasks that their own code did not cause are raised as errors of this package."""
    distributed = dask_library("distributed")
    try:
        yield
    except distributed.KilledWorker as error:
        raise ClusterError(
            f"a worker on {error.last_worker.address}",
            f"it died, as did others before it at the same piece ({error.task})",
            f"Give workers more memory, or a smaller `tile`. {RESUME}",
        ) from error
    except (asyncio.CancelledError, distributed.CancelledError, distributed.comm.CommClosedError) as error:
        raise ClusterError("the scheduler", "its connection was lost", RESUME) from error
    except (distributed.scheduler.NoWorkerError, distributed.scheduler.NoValidWorkerError) as error:
        raise ClusterError("the scheduler", "it has no workers any more", RESUME) from error
    except (ImportError, AttributeError) as error:  # our own errors are of other types
        if isinstance(error, AttributeError) and "Can't get attribute" not in str(error):
            raise  # an error in a network's own code
        raise ClusterError(
            "a worker", f"it cannot import what the run needs ({error})", "Install the same versions on it"
        ) from error
