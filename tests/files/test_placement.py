"""Where the outputs of stages go when images are in files: every case."""

from __future__ import annotations

from itertools import product

import pytest

from overlap_tool.files.running import Placement, placement

ANY = (False, True)
RULES = [
    # images, deferred, shrinks, barriers, fits
    ((2,), ANY, ANY, ANY, ANY, Placement.MEMORY),
    ((1,), (True,), ANY, ANY, ANY, Placement.READER),
    ((1,), (False,), (True,), ANY, ANY, Placement.FILE),
    ((1,), (False,), (False,), (True,), (False,), Placement.FILE),
    ((1,), (False,), (False,), (False,), (False,), Placement.READER),
    ((1,), (False,), (False,), ANY, (True,), Placement.MEMORY),
]
TABLE = {case: place for *columns, place in RULES for case in product(*columns)}


def test_the_table_has_every_case_once() -> None:
    assert set(TABLE) == set(product((1, 2), ANY, ANY, ANY, ANY))
    assert sum(len(list(product(*columns))) for *columns, _ in RULES) == len(TABLE)


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_a_stages_output_goes_where_the_table_says(case) -> None:
    names = ("images", "deferred", "shrinks", "barriers", "fits")
    assert placement(**dict(zip(names, case, strict=True))) is TABLE[case]
