"""Tables as rows of text: what is alike is said once, and nothing is folded where no terminal is."""

from __future__ import annotations

from types import SimpleNamespace

from overlap_tool.report.certificate_tables import check_table
from overlap_tool.report.tables import by_number
from overlap_tool.verification import Check


def test_stages_that_count_up_and_say_the_same_are_one_row() -> None:
    rows = [("g_a", "1"), ("s.0", "5"), ("s.1", "5"), ("s.2", "5"), ("s.3", "6"), ("s.5", "6"), ("s", "6")]
    assert by_number(rows) == (("g_a", "1"), ("s.0 to 2", "5"), ("s.3", "6"), ("s.5", "6"), ("s", "6"))


def test_stages_of_several_rows_are_one_if_all_rows_are_alike() -> None:
    rows = [("y9", "a"), ("y9", "b"), ("y10", "a"), ("y10", "b"), ("y11", "a"), ("y11", "c")]
    assert by_number(rows) == (("y9 to 10", "a"), ("y9 to 10", "b"), ("y11", "a"), ("y11", "c"))


def test_a_reason_is_given_once_for_all_sides() -> None:
    checks = [
        Check("minimality", "g_s", "seeded", "skipped", f"{side}: {reason}")
        for side, reason in (("left", "no overlap"), ("right", "too small"), ("top", "no overlap"))
    ]
    [row] = check_table(SimpleNamespace(checks=checks)).rows
    assert row[-1] == "left, top: no overlap; right: too small"


def test_no_cell_is_folded_where_no_terminal_is(run, monkeypatch) -> None:
    monkeypatch.delenv("COLUMNS")
    _, told, _ = run("analyze", "zoo:bmshj2018-factorized", "--stage", "g_a")
    assert "receptive field" in told
    assert max(map(len, told.splitlines())) > 80
