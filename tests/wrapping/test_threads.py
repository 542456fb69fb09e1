"""Threads of one process wrap, load, copy and run models at the same time."""

from __future__ import annotations

import copy
import math
import mmap
import pickle
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.networks import PlainCnn
from support.small_models import small_model
from torch import Tensor, nn

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.errors import TraceError
from overlap_tool.graph.network import Network
from overlap_tool.graph.randomness import OwnRandomness
from overlap_tool.graph.trace import trace

THREADS = 8


def at_once(works: list[Callable[[], object]], seconds: float = 0.0) -> list[int]:
    """Each in a thread of its own, all begun together: once, or again and again for so long. How many calls
    each made; what one raises is raised."""
    begin, until = threading.Barrier(len(works)), time.monotonic() + seconds
    failures: list[BaseException] = []
    calls = [0] * len(works)

    def repeat(number: int, work: Callable[[], object]) -> None:
        torch.set_num_threads(1)  # it holds for this thread: or as many again would fight for the processors
        begin.wait()
        try:
            while not failures and (not calls[number] or time.monotonic() < until):
                work()
                calls[number] += 1
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=repeat, args=each) for each in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return calls


@contextmanager
def nothing_stays_replaced() -> Iterator[None]:
    """Of what a trace has something else stand in for."""

    def found() -> tuple[object, ...]:
        return nn.Module.__call__, nn.Module.__getattr__, vars(math).copy(), globals().copy()

    before = found()
    try:
        yield
    finally:
        assert found() == before


def image(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(height))


@torch.no_grad()
def exactly(model: nn.Module, x: Tensor) -> Tensor:
    with overlap_tool.exact_kernels():
        return model(x)


def assert_equal(found: Any, expected: Any) -> None:
    """Of maps, or of what a codec returns."""
    if isinstance(expected, dict):
        found, expected = found["x_hat"], expected["x_hat"]
    assert torch.equal(found, expected)


def seeded(kind: type[nn.Module]) -> nn.Module:
    with OwnRandomness(0):
        return kind().eval()


def saved(model: nn.Module, architecture: str, folder: Path) -> Path:
    path = folder / "model.tiled.pt"
    arguments = checkpoint.find(architecture).small
    overlap_tool.save(overlap_tool.wrap(model, tile=32), path, architecture, arguments)
    return path


def wrapped() -> tuple[nn.Module, Tensor, Tensor]:
    """A wrapped network, an image, and what the network itself makes of it."""
    net, x = seeded(PlainCnn), image(40, 56, 1)
    return overlap_tool.wrap(net, tile=16), x, exactly(net, x)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_threads_that_first_call_copies_of_their_own(copied) -> None:
    tiled, x, expected = wrapped()

    def call(own: nn.Module) -> Callable[[], None]:
        return lambda: assert_equal(own(x), expected)

    with nothing_stays_replaced():
        at_once([call(copied(tiled)) for _ in range(THREADS)])


def test_threads_that_first_call_one_model() -> None:
    tiled, x, expected = wrapped()
    other = pickle.loads(pickle.dumps(tiled))
    with nothing_stays_replaced():
        at_once([lambda: assert_equal(other(x), expected)] * THREADS)


def test_threads_that_wrap_and_load(tmp_path: Path) -> None:
    model, x = small_model("mbt2018-mean"), image(64, 64)
    expected = exactly(model, x)
    path = saved(model, "mbt2018-mean", tmp_path)
    with nothing_stays_replaced():
        at_once(
            [
                lambda: assert_equal(overlap_tool.wrap(model, tile=32)(x), expected),
                lambda: assert_equal(overlap_tool.load(path)(x), expected),
            ]
            * 2
        )


def test_a_trace_is_not_felt_by_other_threads() -> None:
    """It stands still in its middle while a plain model runs, parameters and functions and all."""
    inside, done = threading.Event(), threading.Event()

    class Waits(PlainCnn):
        def forward(self, x: Tensor) -> Tensor:
            inside.set()
            done.wait(60)
            return super().forward(x) * self.head.bias.abs().sum()

    slow, plain, x = Waits().eval(), PlainCnn().eval(), image(8, 8, 1)
    with torch.no_grad():
        expected = plain(x)
    networks: list[Network] = []
    tracing = threading.Thread(target=lambda: networks.append(trace(slow, "slow", 1)))
    with nothing_stays_replaced():
        tracing.start()
        assert inside.wait(60)
        assert nn.Module.__call__ is not nn.Module._wrapped_call_impl, "the trace is under way"
        with torch.no_grad():
            assert_equal(plain(x), expected)
        assert isinstance(plain.head.weight, nn.Parameter)
        assert math.floor(2.5) == 2
        done.set()
        tracing.join()
    assert [constant.source for constant in networks[0].constants if constant.source] == ["head.bias"]


def test_nothing_stays_replaced_where_a_trace_fails() -> None:
    class Fails(PlainCnn):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    with nothing_stays_replaced(), pytest.raises(KeyboardInterrupt):
        trace(Fails(), "net", 1)
    _, x, expected = wrapped()
    assert_equal(exactly(seeded(PlainCnn), x), expected)


def test_what_another_library_puts_there_meanwhile_is_not_undone() -> None:
    """As torch.fx does in another thread: it begins after a trace, and ends after it."""

    def other(module: nn.Module, *args: object) -> object:
        return module.forward(*args)

    class Meanwhile(PlainCnn):
        def forward(self, x: Tensor) -> Tensor:
            nn.Module.__call__ = other
            return super().forward(x)

    before = nn.Module.__call__
    try:
        trace(Meanwhile(), "net", 1)
        assert nn.Module.__call__ is other
    finally:
        nn.Module.__call__ = before


def test_random_numbers_of_other_threads_are_none_of_a_trace() -> None:
    """A trace refuses a model that draws some; it blamed models for what other threads drew."""
    draw = partial(F.dropout, torch.ones(64))
    at_once([lambda: trace(seeded(PlainCnn), "net", 1), *[draw] * 3], seconds=0.5)


class Draws(PlainCnn):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(4)[None, :, None, None]


def test_a_trace_of_what_draws_leaves_the_random_numbers_of_the_process() -> None:
    net, state = Draws(), torch.get_rng_state()
    with pytest.raises(TraceError, match="draws random numbers in eval mode"):
        trace(net, "net", 1)
    assert torch.equal(torch.get_rng_state(), state)


def busy(folder: Path) -> list[Callable[[], None]]:
    """What the threads of a server may do at once, each held to what the models themselves give."""
    net, codec = seeded(PlainCnn), small_model("mbt2018-mean")
    grey, colours = image(40, 56, 1), image(64, 64)
    expected, coded = exactly(net, grey), exactly(codec, colours)
    tiled = overlap_tool.wrap(net, tile=16)
    pickled, path = pickle.dumps(tiled), saved(codec, "mbt2018-mean", folder)
    with torch.no_grad():
        plain, of_codec = net(grey), codec(colours)
    dropping = nn.Dropout()  # which draws random numbers

    def training() -> None:
        given = torch.ones(16, 16)
        assert isinstance(dropping(given), Tensor)
        assert (dropping(given) == 0).any()

    return [
        lambda: assert_equal(overlap_tool.wrap(net, tile=16)(grey), expected),
        lambda: assert_equal(overlap_tool.wrap(codec, tile=32)(colours), coded),
        lambda: assert_equal(overlap_tool.load(path)(colours), coded),
        lambda: assert_equal(pickle.loads(pickled)(grey), expected),
        lambda: assert_equal(copy.deepcopy(tiled)(grey), expected),
        lambda: assert_equal(tiled(grey), expected),
        lambda: [assert_equal(net(grey), plain), assert_equal(codec(colours), of_codec)],
        training,
    ]


def for_so_long(seconds: float, folder: Path) -> list[int]:
    torch.set_num_threads(1)  # before the plain results, as in the threads
    try:
        works = busy(folder)
        assert len(works) == THREADS
        with nothing_stays_replaced():
            return at_once(works, seconds)
    finally:
        torch.set_num_threads(2)


def test_eight_threads_that_do_all_of_it(tmp_path: Path) -> None:
    assert min(for_so_long(3, tmp_path)) >= 1


@pytest.mark.slow
def test_eight_threads_for_a_minute(tmp_path: Path) -> None:
    assert min(for_so_long(60, tmp_path)) >= 5


def served(images: int, threads: int = 4) -> list[int]:
    """Bytes that the process holds after each image: one wrapped codec compresses and decompresses them all,
    and is held to what the codec itself gives."""
    codec = small_model("mbt2018-mean")
    tiled, draw = overlap_tool.wrap(codec, tile=64), random.Random(0)
    sizes = [(64 * draw.randint(1, 4), 64 * draw.randint(1, 4)) for _ in range(images)]
    expected = {}
    with overlap_tool.exact_kernels(), torch.no_grad():
        for size in set(sizes):
            strings = codec.compress(image(*size))
            expected[size] = strings, codec.decompress(**strings)["x_hat"]
    waiting, held = iter(sizes), []

    def serve() -> None:
        for size in iter(lambda: next(waiting, None), None):
            strings, decoded = expected[size]
            found = tiled.compress(image(*size))
            assert found == strings
            assert torch.equal(tiled.decompress(**found)["x_hat"], decoded)
            held.append(resident_bytes())

    at_once([serve] * threads)
    assert len(held) == images
    return held


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * mmap.PAGESIZE


def test_a_server_of_four_threads() -> None:
    served(12)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read as Linux tells it")
def test_a_server_of_four_threads_holds_no_more_after_200_images_than_after_50() -> None:
    held = served(200)
    early, late = max(held[:50]), max(held[50:])
    assert late < 1.05 * early, f"{early >> 20} MiB at most in the first 50, {late >> 20} MiB after"
