"""The benchmarks' tables, and that each benchmark can be named. What they measure is no test's business."""

from __future__ import annotations

import importlib

import pytest
from rich.table import Table

from benchmarks.__main__ import NAMES
from benchmarks.markdown import as_markdown


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
def test_each_benchmark_can_be_run(name):
    assert callable(importlib.import_module(f"benchmarks.{name}").main)
