"""Shared by all tests, plugins included: the architectures by name, the command line, few threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from support.cases import CASES
from support.emulated_gpu import can_emulate, emulated_gpu

from overlap_tool import checkpoint, cli, plugins
from overlap_tool.kernels import trial
from overlap_tool.rules import registry

# A CI judges one change at a time: there the same cases are drawn every run. New ones are found everywhere
# else, and by `make test-slow`.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("many", max_examples=CASES or 100, deadline=None)
if CASES:
    settings.load_profile("many")
elif os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(autouse=True, scope="session")
def _installed_plugins() -> None:
    """Imported before the first test, so that what is registered does not depend on the order of tests."""
    plugins.discover()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For thousands of tiny ops, where threads only get in each other's way."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(2)


@pytest.fixture
def own_rules(monkeypatch) -> None:
    """What a test registers, only that test knows."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.fixture
def _untried() -> Iterator[None]:
    """Every layer is tried anew, and what came of it is forgotten."""
    trial.choose.cache_clear()
    yield
    trial.choose.cache_clear()


@pytest.fixture(params=["real GPU" if torch.cuda.is_available() else "emulated GPU"])
def gpu(monkeypatch) -> Iterator[None]:
    """Inside, "cuda" is a device."""
    if not (torch.cuda.is_available() or can_emulate()):
        pytest.skip("this version of PyTorch cannot emulate a GPU")
    with nullcontext() if torch.cuda.is_available() else emulated_gpu(monkeypatch):
        yield


@pytest.fixture(params=checkpoint.names())
def architecture(request) -> str:
    return request.param


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "tests"))
    monkeypatch.setenv("COLUMNS", "200")

    def go(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["overlap-tool", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit.value.code or 0), out, err

    return go
