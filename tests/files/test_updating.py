"""A rectangle of an image changes: the file becomes that of the new image, mostly by copying."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from support.photographs import codec, photograph

from overlap_tool.errors import ContainerError, ImageFileError, OptionError
from overlap_tool.files import compress, decompress, update
from overlap_tool.files.coding import entropy
from overlap_tool.files.formats import container
from overlap_tool.files.job import Job

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = 64
BEFORE = photograph("chelsea", 240, 380)
CODECS = [
    "bmshj2018-factorized",
    "mbt2018-mean",
    "cheng2020-anchor-checkerboard",
    pytest.param("elic2022-official", marks=pytest.mark.slow),
]


def changed(region: tuple[int, int, int, int], seed: int = 0) -> np.ndarray:
    x, y, width, height = region
    after = BEFORE.copy()
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    after[y : y + height, x : x + width] = noise
    return after


@pytest.fixture(scope="module", params=CODECS)
def coded(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("coded")
    np.save(folder / "before.npy", BEFORE)
    compress(codec(request.param), folder / "before.npy", folder / "before.lic", blocks=BLOCKS)
    return request.param, folder


def updated(name: str, folder: Path, region: tuple[int, int, int, int], made: Path) -> None:
    """Both ways give the same bytes."""
    after = made / "after.npy"
    np.save(after, changed(region))
    update(codec(name), folder / "before.lic", after, region, made / "updated.lic")
    compress(codec(name), after, made / "anew.lic", blocks=BLOCKS)
    assert (made / "updated.lic").read_bytes() == (made / "anew.lic").read_bytes(), region


@pytest.mark.parametrize("region", [(200, 130, 5, 3), (0, 0, 40, 40), (375, 230, 5, 10), (0, 0, 380, 240)])
def test_the_bytes_are_those_of_the_new_image(tmp_path, coded, region) -> None:
    updated(*coded, region, tmp_path)


@pytest.mark.slow
def test_of_many_rectangles(tmp_path, coded) -> None:
    drawn = random.Random(0)
    for _ in range(60):
        x, y = drawn.randrange(380), drawn.randrange(240)
        updated(*coded, (x, y, drawn.randint(1, 380 - x), drawn.randint(1, 240 - y)), tmp_path)


def test_what_a_change_does_not_reach_is_not_coded(tmp_path, monkeypatch) -> None:
    name, region = "mbt2018-mean", (4, 4, 8, 8)
    before = np.tile(BEFORE, (2, 2, 1))
    after = before.copy()
    after[4:12, 4:12] = changed(region)[4:12, 4:12]
    np.save(tmp_path / "before.npy", before)
    np.save(tmp_path / "after.npy", after)
    compress(codec(name), tmp_path / "before.npy", tmp_path / "it.lic", blocks=BLOCKS)
    head, _ = container.read(tmp_path / "it.lic")
    calls: list[int] = []
    encoded = entropy.band_to_string

    def counted(symbols, *rest):
        calls.append(symbols.size)
        return encoded(symbols, *rest)

    monkeypatch.setattr(entropy, "band_to_string", counted)
    told = update(codec(name), tmp_path / "it.lic", tmp_path / "after.npy", region)
    blocks = sum(map(len, head.bands))
    assert 0 < len(calls) < blocks / 5
    assert told.renewed is not None
    assert 0 < told.renewed <= len(calls)
    decompress(codec(name), tmp_path / "it.lic", tmp_path / "found.npy")  # it took the place of the old file
    monkeypatch.undo()
    compress(codec(name), tmp_path / "after.npy", tmp_path / "anew.lic", blocks=BLOCKS)
    assert (tmp_path / "it.lic").read_bytes() == (tmp_path / "anew.lic").read_bytes()


def test_what_cannot_be_updated_is_refused(tmp_path, coded) -> None:
    name, folder = coded
    model, region = codec(name), (0, 0, 9, 9)
    np.save(tmp_path / "small.npy", BEFORE[:90])
    with pytest.raises(
        ImageFileError, match="it is 380x90 of 3 channels, uint8, and what was coded was 380x240"
    ):
        update(model, folder / "before.lic", tmp_path / "small.npy", region)
    with pytest.raises(OptionError, match="is not inside of an image of 380x240"):
        update(model, folder / "before.lic", folder / "before.npy", (360, 0, 40, 9))
    compress(model, folder / "before.npy", tmp_path / "whole.lic")
    with pytest.raises(ContainerError, match="it is not coded in blocks"):
        update(model, tmp_path / "whole.lic", folder / "before.npy", region)


@pytest.fixture(scope="module")
def in_blocks(tmp_path_factory) -> tuple[Path, bytes]:
    """A folder with an image that has changed in two places, and the file of what it was."""
    folder, model = tmp_path_factory.mktemp("blocks"), codec("bmshj2018-factorized")
    np.save(folder / "before.npy", BEFORE)
    compress(model, folder / "before.npy", folder / "before.lic", blocks=BLOCKS)
    first = changed(FIRST)
    np.save(folder / "first.npy", first)
    both = np.where(first != BEFORE, first, changed(SECOND, 1))
    np.save(folder / "both.npy", both)
    compress(model, folder / "both.npy", folder / "both.lic", blocks=BLOCKS)
    return folder, (folder / "before.lic").read_bytes()


FIRST, SECOND = (5, 5, 20, 20), (300, 180, 20, 20)


def test_of_two_updates_the_second_begins_with_what_the_first_has_made(
    tmp_path, in_blocks, monkeypatch
) -> None:
    """It used to read the file before it took the lock: what the first had changed meanwhile was lost."""
    folder, before = in_blocks
    compressed, model, enter, entered = tmp_path / "it.lic", codec("bmshj2018-factorized"), Job.__enter__, []
    compressed.write_bytes(before)

    def after_another(self: Job) -> Job:
        entered.append(self)
        if len(entered) == 1:  # while the lock was another's
            update(model, compressed, folder / "first.npy", FIRST)
        return enter(self)

    monkeypatch.setattr(Job, "__enter__", after_another)
    update(model, compressed, folder / "both.npy", SECOND)
    assert compressed.read_bytes() == (folder / "both.lic").read_bytes()


@pytest.mark.parametrize("given", [True, False])
def test_a_symbolic_link_stays_one(tmp_path, in_blocks, given) -> None:
    folder, before = in_blocks
    (tmp_path / "elsewhere").mkdir()
    file, link = tmp_path / "elsewhere" / "it.lic", tmp_path / "link.lic"
    file.write_bytes(before)
    link.symlink_to(file)
    output = (link,) if given else ()
    update(codec("bmshj2018-factorized"), link, folder / "first.npy", FIRST, *output)
    assert link.is_symlink()
    assert file.read_bytes() != before
    assert link.read_bytes() == file.read_bytes()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["it.lic"]


@pytest.mark.parametrize("output", [".", "nowhere/it.lic"])
def test_a_bad_output_is_refused_before_anything_is_read(tmp_path, in_blocks, output, monkeypatch) -> None:
    folder, _ = in_blocks
    monkeypatch.setattr(container, "read", lambda path: pytest.fail("read"))
    with pytest.raises(OptionError, match="cannot be written there"):
        update(
            codec("bmshj2018-factorized"),
            folder / "before.lic",
            folder / "first.npy",
            FIRST,
            tmp_path / output,
        )
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_is_not_there(tmp_path, in_blocks) -> None:
    folder, _ = in_blocks
    with pytest.raises(ImageFileError, match="there is no such file"):
        update(codec("bmshj2018-factorized"), folder / "before.lic", tmp_path / "no.npy", FIRST)


def test_on_the_command_line(run, tmp_path) -> None:
    before = tmp_path / "before.npy"
    np.save(before, BEFORE)
    assert run("wrap", "zoo:bmshj2018-factorized", "--tile", 64, "-o", tmp_path / "it.tiled.pt")[0] == 0
    model = ("--model", tmp_path / "it.tiled.pt")
    np.save(tmp_path / "after.npy", changed((9, 9, 30, 20)))
    assert run("compress", *model, before, "-o", tmp_path / "it.lic", "--blocks", 64)[0] == 0
    region = ("--region", "9,9,30,20")
    code, out, err = run("update", *model, tmp_path / "it.lic", "--image", tmp_path / "after.npy", *region)
    assert code == 0, err
    told = run("update", *model, tmp_path / "it.lic", "--image", tmp_path / "after.npy", *region, "--resume")
    assert told[0] == 2
    assert "keeps nothing of one that was stopped" in told[2]
    assert "of all bands are new" in out
    assert (
        run("compress", *model, tmp_path / "after.npy", "-o", tmp_path / "anew.lic", "--blocks", 64)[0] == 0
    )
    assert (tmp_path / "it.lic").read_bytes() == (tmp_path / "anew.lic").read_bytes()
