"""Seconds, and the most bytes alive at once, of ways to compute the same, on any device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median

import torch
from torch import Tensor

from overlap_tool import exact_kernels
from overlap_tool.planning.live_bytes import LiveBytes

Way = Callable[[Tensor], Tensor]

RUNS = 3


def exact(way: Way) -> Way:
    """The same by exact kernels."""

    def run(image: Tensor) -> Tensor:
        with exact_kernels():
            return way(image)

    return run


def seconds_in_turn(
    ways: Mapping[str, Way], image: Tensor, first: Tensor | None = None, rounds: int = RUNS
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """One run of every way after the other, some times over, so that ratios hold when a machine's speed
    drifts; and their results. Before that, each runs once on the `first` image, or on this one, so that
    nothing is compiled while the clock runs."""
    for way in ways.values():
        way(image if first is None else first)
    runs: list[dict[str, float]] = []
    results: dict[str, Tensor] = {}
    for _ in range(rounds):
        seconds: dict[str, float] = {}
        for name, way in ways.items():
            seconds[name], results[name] = _timed(way, image)
        runs.append(seconds)
    return runs, results


def ratio(runs: list[dict[str, float]], way: str, base: str) -> str:
    """The median and the range of one way's time to another's."""
    ratios = [run[way] / run[base] for run in runs]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def peak_bytes(way: Way, image: Tensor, weights: Iterable[Tensor]) -> tuple[int, Tensor]:
    """The most bytes alive at once, the image's included and the weights' not, and the result.

    They are counted by the storages that ops return; on a GPU they are its allocator's own figure.
    """
    if image.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() - image.untyped_storage().nbytes()
        result = way(image)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, result
    with LiveBytes(image, *weights) as live:
        result = way(image)
    return live.peak + image.untyped_storage().nbytes(), result


def _timed(way: Way, image: Tensor) -> tuple[float, Tensor]:
    _finish(image)
    start = time.perf_counter()
    result = way(image)
    _finish(image)
    return time.perf_counter() - start, result


def _finish(image: Tensor) -> None:
    """Wait for a GPU, which works on after a call has returned."""
    if image.is_cuda:
        torch.cuda.synchronize()
