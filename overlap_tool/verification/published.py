"""`selftest`: compares the arithmetic of this machine with the published digests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from overlap_tool import checkpoint
from overlap_tool.kernels.arithmetic import VERSION
from overlap_tool.kernels.arithmetic.tensors import compute
from overlap_tool.kernels.arithmetic.vectors import FUNCTIONS, digest, published_digests, sample
from overlap_tool.verification import machine, operations, witnesses
from overlap_tool.verification.certificate import Machine


@dataclass(frozen=True)
class Held:
    """The published digests of one function, op or model, and whether this machine reproduces them.

    `message` says which of its digests differ, or why it was skipped.
    """

    kind: Literal["functions", "operations", "models"]
    name: str
    status: Literal["passed", "failed", "skipped"]
    message: str = ""


@dataclass(frozen=True)
class SelfTest:
    """The result of `selftest` on a machine."""

    arithmetic: str
    machine: Machine
    vectors: tuple[Held, ...]

    @property
    def holds(self) -> bool:
        """Whether no digest differs."""
        return not self.of("failed")

    def of(self, status: str) -> tuple[Held, ...]:
        return tuple(vector for vector in self.vectors if vector.status == status)


def selftest(
    *, models: bool = False, device: str = "cpu", progress: Callable[[str], None] = lambda doing: None
) -> SelfTest:
    """Compare this machine's arithmetic with the published digests; it takes some seconds.

    It covers every elementary function on a million numbers, and every op that rounds, in float32 and
    float64. With `models`, it adds narrow models of every known architecture on a fixed image, which takes a
    minute: tables, outputs, likelihoods, strings and decoded images. `device` is "cpu" or "cuda".

        assert overlap_tool.selftest().holds
    """
    on = machine.find_device(device)
    found = [*_functions(on, progress), *_operations(on, progress)]
    if models:
        found += _models(on, progress)
    return SelfTest(VERSION, machine.describe(on), tuple(found))


def _functions(device: torch.device, progress: Callable[[str], None]) -> Iterator[Held]:
    expected, numbers = published_digests("functions"), sample().to(device)
    for name in FUNCTIONS:
        progress(name)
        found = digest(compute(name, numbers).cpu())
        yield _held("functions", name, {"": found}, {"": expected[name]["sample"]})


def _operations(device: torch.device, progress: Callable[[str], None]) -> Iterator[Held]:
    expected = published_digests("operations")
    progress(f"{len(expected)} operations")
    for op, found in operations.digests(device).items():
        yield _held("operations", op, found, expected.get(op, {}))


def _models(device: torch.device, progress: Callable[[str], None]) -> Iterator[Held]:
    """In the order of the file; a model whose plugin is not installed is skipped."""
    picture = witnesses.image().to(device)
    for name, expected in published_digests("models").items():
        if name not in checkpoint.names():
            yield Held("models", name, "skipped", "the plugin that knows it is not installed")
            continue
        progress(name)
        model = witnesses.narrow_model(checkpoint.find(name)).to(device)
        yield _held("models", name, witnesses.model_digests(model, picture), expected)


def _held(
    kind: Literal["functions", "operations", "models"],
    name: str,
    found: Mapping[str, str],
    expected: Mapping[str, str],
) -> Held:
    """Passed if all digests agree, and neither side has more of them."""
    differ = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
    named = ", ".join(key for key in differ if key)
    return Held(kind, name, "failed" if differ else "passed", named)
