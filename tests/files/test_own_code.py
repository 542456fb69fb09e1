"""Codecs whose `compress` gives what it likes, or fails: coded whole, or refused by name; nothing is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.coding import Coded, NamedCodec
from support.photographs import photograph

import overlap_tool
from overlap_tool.errors import CodingError, ContainerError
from overlap_tool.files import Codec, compress, decompress
from overlap_tool.files.formats import container
from overlap_tool.models import coded

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = 1000
"""Bytes in memory: the latents go to files of the job."""


def _codec(fault: str = "") -> Codec:
    model = overlap_tool.wrap(NamedCodec(fault).eval(), tile=32)
    return Codec(model, "support.coding:NamedCodec", "0" * 64, "named.tiled.pt")


@pytest.mark.parametrize("in_memory", [SMALL, 1 << 28])
def test_a_named_tuple_of_arrays_comes_back_as_it_was(tmp_path, in_memory) -> None:
    pixels = photograph("chelsea", 53, 71)
    np.save(tmp_path / "in.npy", pixels)
    compress(_codec(), tmp_path / "in.npy", tmp_path / "it.lic", in_memory=in_memory, check=True)
    decompress(_codec(), tmp_path / "it.lic", tmp_path / "out.npy", in_memory=in_memory)
    head, strings = container.read(tmp_path / "it.lic")
    left, right, top, bottom = head.padding
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    image = torch.nn.functional.pad(image, (left, right, top, bottom))
    model = NamedCodec().eval()
    with torch.no_grad(), overlap_tool.exact_kernels():
        given = model.compress(image)
        expected = model.decompress(given)[..., top : top + 53, left : left + 71]
    found = container.coded_of(head, strings)
    assert found._fields == Coded._fields
    assert np.array_equal(found.symbols, given.symbols)
    assert len(np.unique(found.symbols)) > 10
    assert found.symbols.dtype == given.symbols.dtype
    assert (found.shape, found.image, found.bits) == (given.shape, given.image, given.bits)
    assert torch.equal(found.step, given.step)
    assert np.array_equal(
        np.load(tmp_path / "out.npy"),
        (expected[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8),
    )


def test_the_commands_on_a_class_that_gives_a_named_tuple(tmp_path, run) -> None:
    """As HiFiC does: from `--model` to an image again, which is the untouched model's own."""
    pixels = photograph("chelsea", 64, 96)
    np.save(tmp_path / "in.npy", pixels)
    wrapped, coded_file, out = (tmp_path / name for name in ("it.tiled.pt", "it.lic", "out.npy"))
    named = ("--model", "support.coding:NamedCodec", "--tile", 32, "-o", wrapped)
    assert run("wrap", *named)[0] == 0
    for command in (
        ("compress", tmp_path / "in.npy", "-o", coded_file, "--check"),
        ("decompress", coded_file, "-o", out),
    ):
        code, _, told = run(*command, "--model", wrapped)
        assert code == 2, told
        assert "--trust" in told
        code, _, told = run(*command, "--model", wrapped, "--trust", "--in-memory", "1KB")
        assert code == 0, told
    model, image = NamedCodec().eval(), torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad(), overlap_tool.exact_kernels():
        given = model.compress(image)
        expected = model.decompress(given)[0]
    assert np.array_equal(container.coded_of(*container.read(coded_file)).symbols, given.symbols)
    samples = (expected.clamp(0, 1) * 255).round().permute(1, 2, 0).to(torch.uint8)
    assert np.array_equal(np.load(out), samples.numpy())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "it.lic", "it.tiled.pt", "out.npy"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("gives", "its compress gives a object, which a .lic file cannot hold"),
        ("compress", r"its own code asks for a GPU \(AssertionError: .*CUDA enabled\).*device=.cuda"),
        ("decompress", r"its own code asks for a GPU \(RuntimeError: Found no NVIDIA.*device=.cuda"),
        ("asserts", r"what it has just coded cannot be checked: .*not a clip of video.*untouched model"),
    ],
)
def test_what_the_models_own_code_refuses_is_told_and_no_folder_stays(tmp_path, fault, reason) -> None:
    np.save(tmp_path / "in.npy", photograph("chelsea", 53, 71))
    with pytest.raises(CodingError, match=reason) as refused:
        compress(_codec(fault), tmp_path / "in.npy", tmp_path / "it.lic", in_memory=SMALL, check=True)
    assert "Copy it again" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


def test_a_file_that_says_too_much_of_what_was_given_is_refused(tmp_path) -> None:
    np.save(tmp_path / "in.npy", photograph("chelsea", 20, 20))
    compress(_codec(), tmp_path / "in.npy", tmp_path / "it.lic")
    head, strings = container.read(tmp_path / "it.lic")
    fields = head.given["fields"]
    for bad in (
        {"named": "Coded", "fields": {**fields, "symbols": {**fields["symbols"], "shape": [1 << 40]}}},
        {"named": "not a name", "fields": fields},
        {"named": "Coded", "fields": {**fields, "symbols": {**fields["symbols"], "string": 7}}},
        {"named": "Coded", "fields": {**fields, "symbols": {**fields["symbols"], "array": "|O"}}},
        {"unheard of": 1},
        [1],
    ):
        object.__setattr__(head, "given", bad)
        with (tmp_path / "bad.lic").open("wb") as file:
            container.write(file, head, strings)
        with pytest.raises(ContainerError, match=r"makes no sense|cannot decode it"):
            decompress(_codec(), tmp_path / "bad.lic", tmp_path / "out.npy")


def test_what_is_packed_comes_back_and_what_cannot_be_is_named() -> None:
    given = {
        "strings": [[b"ab", b""], (b"c",)],
        "more": (1, None, True, 2.5, "text", torch.Size([2, 3]), {"nested": [np.arange(6).reshape(2, 3)]}),
        "zero": torch.tensor(4),
    }
    strings: list[bytes] = []
    back = coded.unpacked(coded.packed(given, strings), strings)
    assert np.array_equal(back["more"][6]["nested"][0], given["more"][6]["nested"][0])
    assert back["more"][:6] == given["more"][:6]
    assert (back["strings"], back["zero"]) == (given["strings"], 4)
    for what in ({1: 2}, {1}, np.array(["text"]), object()):
        with pytest.raises(TypeError, match=f"a {type(what).__name__}"):
            coded.packed([what], [])


def test_times_do_not_count_and_symbols_do() -> None:
    one = {"bits": b"abc", "seconds": 0.1, "side": 4}
    assert coded.same(one, {**one, "seconds": 0.2})
    assert not coded.same(one, {**one, "side": 5})
    assert not coded.same(one, {**one, "bits": b"abd"})
