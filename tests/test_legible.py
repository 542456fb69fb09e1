"""Nothing from outside reaches a terminal as it is: no control characters, no names without an end."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.browser import HOSTILE
from support.photographs import photograph
from support.small_models import small_model

import overlap_tool
from overlap_tool import checkpoint, errors, report
from overlap_tool.files.formats import container
from overlap_tool.legible import HIDDEN, LONGEST_NAME, LONGEST_TEXT, legible, shortened
from overlap_tool.report.tables import Table
from overlap_tool.report.terminal import drawn

pytestmark = pytest.mark.usefixtures("one_thread")

ANY = st.text(st.characters(codec=None)) | st.text(st.sampled_from("\x1b[]\\/\n\r\u202e\ud800|<ab"))


def hidden(text: str) -> set[str]:
    return {char for char in text if unicodedata.category(char) in HIDDEN}


@given(ANY, st.integers(1, 300))
def test_what_is_shown_can_be_seen_and_has_an_end(text, times) -> None:
    for shown in (legible(text * times), str(errors.OverlapToolError(text * times, text, text))):
        assert not hidden(shown)
        shown.encode()
    assert len(legible(text * times)) <= LONGEST_TEXT
    assert all(len(word) <= LONGEST_NAME for word in legible(text * times).split())
    assert len(shortened(text * times, 50)) <= 50


@given(ANY)
def test_a_console_shows_it_to_the_letter(text) -> None:
    console = Console(file=io.StringIO(), width=10**5, color_system=None)
    console.print(drawn(Table("", ("name",), ((text,),))))
    assert legible(text).strip() in console.file.getvalue()


@given(st.text(st.characters(exclude_categories=tuple(HIDDEN)), max_size=LONGEST_NAME))
def test_what_can_be_seen_stays(text) -> None:
    assert legible(text) == text


def test_a_name_of_megabytes_takes_no_time_and_no_room() -> None:
    told = str(errors.CheckpointError("\x1b" * 5_000_000, "a " * 5_000_000, "x" * 5_000_000))
    assert len(told) < 5000
    assert "…" in told


# --- reports ----------------------------------------------------------------------------------------------


def test_a_hostile_name_stays_in_its_cell_of_markdown() -> None:
    worse = f"a|b`[x](y){HOSTILE}"
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1)).eval()
    plain = overlap_tool.analyze(network, size=(64, 64), tiles=[32])
    stages = tuple(dataclasses.replace(stage, name=worse) for stage in plain.stages)
    text = report.FORMATS["markdown"](dataclasses.replace(plain, architecture=worse, stages=stages))
    before = report.FORMATS["markdown"](plain)
    assert text.count("|") == before.count("|")
    assert text.count("\n") == before.count("\n")
    assert not hidden(text) - {"\n"}
    assert not set("<>[]`") & set(text)


def test_a_hostile_name_is_a_string_of_dot() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1)).eval()
    plain = overlap_tool.analyze(network, size=(64, 64), tiles=[32])
    text = report.FORMATS["dot"](dataclasses.replace(plain, architecture=HOSTILE))
    assert not hidden(text) - {"\n"}
    assert json.loads(text.partition("digraph ")[2].partition(" {\n")[0]) == legible(HOSTILE)


# --- the command line -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    arguments = checkpoint.find("bmshj2018-factorized").small
    tiled = overlap_tool.wrap(small_model("bmshj2018-factorized"), tile=64)
    overlap_tool.save(tiled, folder / "it.tiled.pt", "bmshj2018-factorized", arguments)
    np.save(folder / "in.npy", photograph("coffee", 64, 64))
    return folder


def refused(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert (code, out) == (2, "")
    assert not hidden(err) - {"\n"}
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) < 2 * LONGEST_TEXT
    return err


@pytest.mark.parametrize("field", ["architecture", "weights_sha256", "dtype"])
@pytest.mark.parametrize(
    "text", [HOSTILE, "\n\x1b]0;owned\x07" * 10, "x" * 5_000_000], ids=["names", "lines", "long"]
)
def test_a_container(run, folder, field, text) -> None:
    model = ("--model", folder / "it.tiled.pt")
    assert run("compress", folder / "in.npy", *model, "-o", folder / "it.lic", "-q")[0] == 0
    head, strings = container.read(folder / "it.lic")
    with (folder / "worse.lic").open("wb") as file:
        container.write(file, dataclasses.replace(head, **{field: text}), list(map(bytes, strings)))
    refused(run("decompress", folder / "worse.lic", *model, "-o", folder / "out.png"))


def test_notes(run, folder) -> None:
    """Another engine is noted, and the image decoded, where that is asked for."""
    model = ("--model", folder / "it.tiled.pt")
    assert run("compress", folder / "in.npy", *model, "-o", folder / "it.lic", "-q")[0] == 0
    head, strings = container.read(folder / "it.lic")
    with (folder / "worse.lic").open("wb") as file:
        engine = {**head.engine, "torch": HOSTILE, HOSTILE: HOSTILE}
        container.write(file, dataclasses.replace(head, engine=engine), list(map(bytes, strings)))
    written = folder / "worse.lic"
    refused(run("decompress", written, *model, "-o", folder / "out.png"))
    code, out, err = run("decompress", written, *model, "-o", folder / "out.png", "--any-engine")
    assert code == 0
    assert "note: " in err
    assert not hidden(out + err) - {"\n"}


@pytest.mark.parametrize("keys", [[HOSTILE], ["x" * 5_000_000], [f"{HOSTILE}{n}" for n in range(99)]])
def test_keys_of_a_checkpoint(run, tmp_path, keys) -> None:
    keys = [key.replace("\ud800", "") for key in keys]  # which torch.save does not write
    torch.save({key: torch.zeros(1) for key in keys}, tmp_path / "it.pt")
    refused(run("analyze", tmp_path / "it.pt"))


@pytest.mark.parametrize("name", ["\x1b[2J\u202eit", "two\nlines", os.fsdecode(b"\xff\xfe"), "y" * 250])
def test_names_of_files(run, folder, tmp_path, name) -> None:
    err = refused(run("analyze", tmp_path / f"{name}.pt"))
    assert re.search("no such file|cannot be read|too long", err)
    (tmp_path / f"{name[:200]}.npy").write_bytes((folder / "in.npy").read_bytes())
    model = ("--model", folder / "it.tiled.pt")
    code, out, err = run(
        "compress", tmp_path / f"{name[:200]}.npy", *model, "-o", tmp_path / f"{name[:200]}.lic"
    )
    assert (code, err) == (0, "")
    assert not hidden(out) - {"\n"}
    out.encode()
