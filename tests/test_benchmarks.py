"""The benchmarks' tables, and that each benchmark can be named. What they measure is no test's business."""

from __future__ import annotations

import importlib
import inspect
import sys

import pytest
import torch
from PIL import Image
from rich.table import Table
from support.small_models import small_model

import overlap_tool
from benchmarks import files, functions, zoo
from benchmarks.__main__ import NAMES, ON_A_GPU, QUOTING, ROOT, main
from benchmarks.markdown import as_markdown, quoted
from benchmarks.measuring import exact, peak_bytes
from overlap_tool.wrapping.retrofit import tiled_stages


def test_a_table_in_markdown():
    table = Table("stage", "time", title="Seconds")
    table.add_row("g_a", "1.0 s")
    table.add_row("g_s", "2.0 s")
    assert as_markdown(table).splitlines() == [
        "**Seconds**",
        "",
        "| stage | time |",
        "| --- | --- |",
        "| g_a | 1.0 s |",
        "| g_s | 2.0 s |",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_takes_what_it_is_called_with(name):
    module, _, case = name.replace("-", "_").partition(":")
    signature = inspect.signature(importlib.import_module(f"benchmarks.{module}").main)
    signature.bind(*([case] if case else []), **({"device": "cuda"} if name in ON_A_GPU else {}))


def test_a_benchmark_is_run_by_its_name_and_its_table_saved(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(functions, "NUMBERS", 64)
    monkeypatch.setattr(functions, "ROUNDS", 1)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "functions", "--save", str(tmp_path)])
    main()
    rows = [line.split("|")[1].strip() for line in (tmp_path / "functions.md").read_text().splitlines()[4:]]
    assert rows == ["function", "---", *functions.FUNCTIONS]
    assert "4 million numbers" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmarks_for_one_say_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--device", "cuda"])
    with pytest.raises(SystemExit):
        main()
    assert "no CUDA device" in capsys.readouterr().err


def test_rows_are_quoted_from_the_results(tmp_path):
    (tmp_path / "figures.md").write_text(
        "Seconds\n\n| of | time |\n| --- | --- |\n| g_a | 1 |\n| g_s | 2 |\n| g_a | 3 |\n"
    )
    page = "Before\n<!-- from figures.md: g_a -->\nold\n<!-- end -->\nAfter"
    new = "Before\n<!-- from figures.md: g_a -->\n\n| time |\n| --- |\n| 1 |\n| 3 |\n\n<!-- end -->\nAfter"
    assert quoted(page, tmp_path) == new
    with pytest.raises(LookupError, match="h_a"):
        quoted(page.replace("g_a", "h_a"), tmp_path)


@pytest.mark.parametrize("page", QUOTING, ids=lambda page: page.name)
def test_pages_quote_the_results_as_they_are(page):
    text = page.read_text()
    assert quoted(text, ROOT) == text


def test_memory_is_the_same_whether_convolutions_compute_or_not():
    model = overlap_tool.wrap(small_model("cheng2020-attn"), tile=64)
    for name, size in (("g_a", (96, 128)), ("g_s", (6, 8))):
        stage = tiled_stages(model)[name]
        image = torch.rand(1, stage.network.ops[0].channels, *size)
        with torch.no_grad():
            counted, _ = peak_bytes(exact(stage.original), image, stage.module.parameters())
            assert zoo._exact_bytes(stage, image) == counted


@pytest.mark.slow
def test_a_command_that_fails_tells_why(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert "none.pt" in files.measured("compress", tmp_path / "none.pt", tmp_path / "a.png", tmp_path / "b")


def test_a_case_that_fails_is_a_row_that_says_so():
    case, told = files.Case(64, 48, ".npy", 1 << 30), "killed by SIGKILL"
    assert files.row(case, "compress", told, 1 << 30) == (
        *("64x48 .npy", "compress", "failed", "1 GiB", "NO", "1.0 GiB", ""),
        told,
    )
    found = {"peak_memory_bytes": 1 << 29, "bands": 2, "seconds": 3.4}
    assert files.row(case, "compress", found, 2 << 30)[2:] == (
        *("0.50 GiB", "1 GiB", "yes", "2.0 GiB"),
        *("2", "3"),
    )
