"""Made-up `.lic` files and tables for every codec, in processes of their own: refused, or decoded."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from support.confined import confined
from support.hostile_files import hostile_container, hostile_tables
from support.photographs import codec, photograph
from support.small_models import small_model

from overlap_tool import checkpoint, plugins
from overlap_tool.checkpoint.fitting import fit, refuse_nonfinite
from overlap_tool.errors import OverlapToolError
from overlap_tool.files import compress, decompress
from overlap_tool.models.closed_loop import ClosedLoop
from overlap_tool.models.coding_tables import complete_tables
from overlap_tool.wrapping.retrofit import TiledForward

plugins.discover()  # their codecs are cases, too

pytestmark = pytest.mark.usefixtures("one_thread")

MANY = 300
"""Cases of each kind for every codec, of `make test-slow`."""

FEW = ("bmshj2018-factorized", "mbt2018-mean-vbr", "mbt2018", "cheng2020-anchor-checkerboard")
"""One of every way to code, for `make test`: a bottleneck alone, variable rates, position by position, a
checkerboard. What codes in slices takes longer."""

CASES = [pytest.param(name, 30, id=name) for name in FEW] + [
    pytest.param(name, MANY, id=f"{name}-many", marks=pytest.mark.slow) for name in checkpoint.names()
]


def _image(path: Path, side: int) -> Path:
    np.save(path, photograph("chelsea", side, side))
    return path


def _judge(name: str, kind: str, work: Callable[[int], object], count: int) -> None:
    """Whether every case was taken or refused; an assertion after a signal, a traceback, too much time or
    memory. Prints what they came to.

    Many run one to a process; few run ten to a process, which is quicker.
    """
    outcomes, together = Counter[str](), 1 if count == MANY else 10
    peak, began = 0, time.monotonic()
    for first in range(0, count, together):

        def judged(first: int = first) -> None:
            for case in range(first, min(first + together, count)):
                print(f"case {case}", flush=True)
                try:
                    work(case)
                    print("outcome taken")
                except OverlapToolError as error:
                    print(f"outcome {type(error).__name__}")

        ended = confined(judged, megabytes=1000, seconds=60 * together)
        assert ended.code == 0, f"ended with {ended.code}: {ended.told[-2000:]}"
        outcomes.update(re.findall(r"^outcome (\w+)$", ended.told, re.MULTILINE))
        peak = max(peak, ended.megabytes)
    told = ", ".join(f"{number} {what}" for what, number in outcomes.most_common())
    print(f"{name}, {kind}: {told}; {time.monotonic() - began:.0f} s, {peak} MB")
    assert sum(outcomes.values()) == count
    assert outcomes["taken"] < count, "nothing was refused"


@pytest.mark.parametrize(("name", "count"), CASES)
def test_made_up_files(tmp_path, name, count) -> None:
    if isinstance(small_model(name), ClosedLoop):
        _made_up_strings(name, count)
        return
    coder = codec(name)
    bad, out = tmp_path / "bad.lic", tmp_path / "out.npy"
    for side in (130, 60):  # in several tiles and in one, so that no child has to compile what decodes
        compress(coder, _image(tmp_path / "in.npy", side), tmp_path / "it.lic")
        decompress(coder, tmp_path / "it.lic", out)
    data = (tmp_path / "it.lic").read_bytes()

    def work(case: int) -> None:
        bad.write_bytes(hostile_container(data, coder.multiple, Random(f"{name} {case}")))
        out.unlink(missing_ok=True)
        decompress(coder, bad, out)

    _judge(name, "files", work, count)


def _made_up_strings(name: str, count: int) -> None:
    """A closed loop has no `.lic` files: its strings and shape, as the model takes them."""
    model = small_model(name)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        coded = model.compress(image)

    def work(case: int) -> None:
        chance = Random(f"{name} {case}")
        strings = [[chance.randbytes(chance.choice((0, 1, 8, 100))) for _ in row] for row in coded["strings"]]
        shape = chance.choice((tuple(coded["shape"]), (1, 1), (0, 4), (4, 0), (-1, 4), (4, 9), (4, 4.0), ()))
        with torch.no_grad():
            model.decompress(strings, shape)

    _judge(name, "strings", work, count)


@pytest.mark.parametrize(("name", "count"), CASES)
def test_made_up_tables(tmp_path, monkeypatch, name, count) -> None:
    """Loaded as a checkpoint's are, and, if they are taken, used to code an image and to decode it again."""
    model = small_model(name)
    coder = None if isinstance(model, ClosedLoop) else codec(name)
    subject, state = model if coder is None else coder.model, dict(model.state_dict())
    image, coded, out = _image(tmp_path / "in.npy", 64), tmp_path / "it.lic", tmp_path / "out.npy"
    if coder is not None:  # so that no child has to compile anything, or to trace what no table is read in
        compress(coder, image, coded)
        decompress(coder, coded, out)
        monkeypatch.setattr(TiledForward, "_is_as_traced", lambda stage: True)

    def work(case: int) -> None:
        coded.unlink(missing_ok=True)
        out.unlink(missing_ok=True)
        fit(subject, hostile_tables(state, Random(f"{name} {case}")), name)
        refuse_nonfinite(subject, name)
        complete_tables(subject, name)
        if coder is None:
            with torch.no_grad():
                model.decompress(**model.compress(torch.rand(1, 3, 16, 16)))
            return
        compress(coder, image, coded)
        decompress(coder, coded, out)

    _judge(name, "tables", work, count)
