"""Tiles joined to bands, in whatever way they overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from overlap_tool.files.formats.arrays import ArrayFile
from overlap_tool.files.formats.rows import Bands, MapFile
from overlap_tool.geometry import Span

WHOLE = torch.arange(12 * 10.0).reshape(1, 1, 12, 10)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ([(0, 5), (5, 12)], [(0, 10)]),
        ([(0, 5), (5, 12)], [(0, 4), (4, 8), (8, 10)]),
        ([(0, 5), (5, 12)], [(8, 10), (0, 4), (4, 8)]),
        ([(0, 6), (4, 12)], [(0, 6), (4, 10)]),
        ([(0, 12), (0, 12)], [(0, 10)]),
    ],
)
def test_every_row_is_handed_on_once_and_in_order(rows, columns) -> None:
    taken: list[torch.Tensor] = []

    def take(start: int, band: torch.Tensor) -> None:
        assert start == sum(one.shape[-2] for one in taken)
        taken.append(band)

    bands = Bands(Span(0, 10), take)
    for top, bottom in rows:
        for left, right in columns:
            bands.write(Span(top, bottom), Span(left, right), WHOLE[..., top:bottom, left:right])
    assert torch.equal(torch.cat(taken, -2), WHOLE)


def test_rows_in_a_file(tmp_path) -> None:
    (tmp_path / "rows").write_bytes(b"head")
    values = np.arange(7 * 5 * 2, dtype=np.uint16).reshape(7, 5, 2)
    file = ArrayFile(tmp_path / "rows", values.shape, values.dtype, offset=4).create()
    file.write(values[3:], Span(3, 7))
    file.write(values[:3], Span(0, 3))
    assert np.array_equal(file.read(Span(2, 6)), values[2:6])
    assert (tmp_path / "rows").read_bytes() == b"head" + values.tobytes()


@pytest.mark.parametrize("columns", [(0, 5), (1, 4), (4, 5)])
def test_a_map_in_a_file(tmp_path, columns) -> None:
    values = torch.arange(7 * 5 * 3.0).reshape(1, 3, 7, 5)
    file = MapFile(tmp_path / "map", (3, 7, 5), torch.float32)
    file.file.create()
    file.write(4, values[:, :, 4:])
    file.write(0, values[:, :, :4], durable=False)
    found = file.read(Span(2, 6), Span(*columns))
    assert torch.equal(found, values[:, :, 2:6, slice(*columns)])
    assert file.read(Span(3, 3), Span(0, 5)).shape == (1, 3, 0, 5)


def test_a_file_that_was_cut_off(tmp_path) -> None:
    file = ArrayFile(tmp_path / "rows", (4, 3), np.uint8).create()
    (tmp_path / "rows").write_bytes(b"1234567")
    with pytest.raises(EOFError):
        file.read()
