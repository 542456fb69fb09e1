"""Every stage of every zoo model: static spans equal brute force on the original module, and are minimal."""

from __future__ import annotations

import pytest
from support.dependence import (
    one_sample_less_on_either_side_loses_a_dependency,
    static_spans_are_the_brute_force_spans,
    static_spans_cover_what_gradients_find,
)
from support.probes import COLUMNS, ROWS


@pytest.mark.parametrize("dim", [ROWS, COLUMNS], ids=["rows", "columns"])
def test_static_spans_are_the_brute_force_spans(architecture: str, dim: int) -> None:
    static_spans_are_the_brute_force_spans(architecture, dim)


def test_static_spans_cover_what_gradients_find(architecture: str) -> None:
    static_spans_cover_what_gradients_find(architecture)


@pytest.mark.parametrize("dim", [ROWS, COLUMNS], ids=["rows", "columns"])
def test_one_sample_less_on_either_side_loses_a_dependency(architecture: str, dim: int) -> None:
    one_sample_less_on_either_side_loses_a_dependency(architecture, dim)
