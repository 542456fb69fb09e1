"""`.lic` files that were altered, cut off, or made up to do harm."""

from __future__ import annotations

import hashlib
import json
import random
import resource
from pathlib import Path

import numpy as np
import pytest
from support.photographs import codec, photograph, untouched

from overlap_tool.errors import ContainerError, OverlapToolError
from overlap_tool.files import compress, decompress
from overlap_tool.files.formats import container

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("container")
    np.save(folder / "in.npy", photograph("chelsea", 100, 130))
    compress(codec("mbt2018-mean"), folder / "in.npy", folder / "it.lic")
    return folder / "it.lic"


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One of the things that happen to files: bits flipped, bytes lost, added, moved or zeroed."""
    kind = chance.randrange(6)
    at = chance.randrange(len(data))
    length = chance.randrange(1, 40)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + chance.randbytes(length) + data[at:]
    if kind == 3:
        return data[:at] + data[at + length :]
    if kind == 4:
        return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]
    return data + chance.randbytes(length)


def _decoded_or_refused(tmp_path: Path, data: bytes) -> np.ndarray | None:
    (tmp_path / "bad.lic").write_bytes(data)
    (tmp_path / "out.npy").unlink(missing_ok=True)
    try:
        decompress(codec("mbt2018-mean"), tmp_path / "bad.lic", tmp_path / "out.npy")
    except OverlapToolError:
        assert not (tmp_path / "out.npy").exists()
        return None
    return np.load(tmp_path / "out.npy")


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_files_are_refused(tmp_path, written, count) -> None:
    chance = random.Random(count)
    original = written.read_bytes()
    for _ in range(count):
        data = mutated(original, chance)
        if data != original:
            assert _decoded_or_refused(tmp_path, data) is None


def _sealed(data: bytes, change) -> bytes:
    """The file with another head, and lengths and a checksum that are right for it."""
    magic, version, length, payload = container.OUTSIDE.unpack(data[: container.OUTSIDE.size])
    head = json.loads(data[container.OUTSIDE.size :][:length])
    rest = data[container.OUTSIDE.size + length : -container.CHECKSUM]
    change(head)
    inside = json.dumps(head).encode()
    made = container.OUTSIDE.pack(magic, version, len(inside), payload) + inside + rest
    return made + hashlib.sha256(made).digest()


def _set(**values):
    return lambda head: head.update(values)


HARMFUL = {
    "huge": _set(width=2**30, height=2**30),
    "huge in all": _set(
        width=2**20, height=2**20, padding=[0, 0, 0, 0], shape=[2**14, 2**14], bands=[[[2**16, 8, ""]]] * 2
    ),
    "shape": _set(shape=[200, 300]),
    "no shape": _set(shape=None),
    "negative": _set(width=-5),
    "text": _set(height="100"),
    "true": _set(height=True),
    "type": _set(dtype="float64"),
    "padding": _set(padding=[0, 0, 0, 0]),
    "channels": _set(channels=2),
    "strings": _set(strings=[[0], [0]]),
    "deep strings": _set(strings=[[[[[0]]]], [1]]),
    "bands": lambda head: head["bands"][0][0].__setitem__(0, 3),
    "lengths": lambda head: head["bands"][0][0].__setitem__(1, head["bands"][0][0][1] - 4),
    "flag": _set(banded=True),
    "symbols": lambda head: head["bands"][0][0].__setitem__(2, "0" * 64),
    "missing": lambda head: head.pop("engine"),
    "engine": _set(engine=4096),
    "engines": _set(engine=[0]),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_heads_that_lie_are_refused_though_their_checksum_is_right(tmp_path, written, name) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "bad.lic").write_bytes(_sealed(written.read_bytes(), HARMFUL[name]))
    with pytest.raises((ContainerError, OverlapToolError)):
        decompress(codec("mbt2018-mean"), tmp_path / "bad.lic", tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, (
        "nothing large was allocated"
    )


def test_strings_that_run_past_their_end_do_no_harm(tmp_path, written) -> None:
    """The checksum is right, and the symbols are nonsense: CompressAI's decoder would read past the end."""
    data, chance = written.read_bytes(), random.Random(0)
    _, _, length, payload = container.OUTSIDE.unpack(data[: container.OUTSIDE.size])
    start = container.OUTSIDE.size + length
    for kind in range(30):
        noise = b"\xff" * payload if kind == 0 else chance.randbytes(payload)
        made = data[:start] + noise
        assert _decoded_or_refused(tmp_path, made + hashlib.sha256(made).digest()) is None


def test_strings_that_are_decoded_position_by_position_do_no_harm_either(tmp_path) -> None:
    np.save(tmp_path / "in.npy", photograph("chelsea", 60, 60))
    compress(codec("mbt2018"), tmp_path / "in.npy", tmp_path / "it.lic")
    data, chance = (tmp_path / "it.lic").read_bytes(), random.Random(1)
    _, _, length, payload = container.OUTSIDE.unpack(data[: container.OUTSIDE.size])
    for kind in range(3):
        noise = b"\xff" * payload if kind == 0 else chance.randbytes(payload)
        made = data[: container.OUTSIDE.size + length] + noise
        (tmp_path / "bad.lic").write_bytes(made + hashlib.sha256(made).digest())
        with pytest.raises(ContainerError, match="it was altered"):
            decompress(codec("mbt2018"), tmp_path / "bad.lic", tmp_path / "out.npy")


def test_the_sealed_file_itself_is_right(tmp_path, written) -> None:
    """So that what the others are refused for is what was changed."""
    data = _sealed(written.read_bytes(), lambda head: None)
    _, _, expected = untouched("mbt2018-mean", photograph("chelsea", 100, 130))
    assert np.array_equal(_decoded_or_refused(tmp_path, data), expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"", "no .lic file"),
        (lambda data: b"PK" + data[2:], "no .lic file"),
        (lambda data: data[:8] + b"\x09\x00\x00\x00" + data[12:], "version 9"),
        (lambda data: data[:-1], "says that it has"),
        (lambda data: data[:500] + b"\x00\x01" + data[502:], "checksum"),
    ],
)
def test_the_reason_is_told(tmp_path, written, change, reason) -> None:
    (tmp_path / "bad.lic").write_bytes(change(written.read_bytes()))
    with pytest.raises(ContainerError, match=reason):
        container.read(tmp_path / "bad.lic")


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(ContainerError, match="there is no such file"):
        container.read(tmp_path / "none.lic")
