"""Copies between pieces of maps on a GPU: their PTX interpreted, and when they go together."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cases import tries
from support.emulated_driver import emulated_driver
from support.ptx import PtxError
from torch import Tensor

from overlap_tool.errors import ExactnessError
from overlap_tool.kernels import nvrtc
from overlap_tool.kernels.boxes import Boxes, can_copy
from overlap_tool.kernels.copying import Copied

try:
    nvrtc._library()
except ExactnessError as error:
    pytest.skip(f"needs NVRTC: {error}", allow_module_level=True)

spans = st.tuples(st.integers(0, 3), st.integers(1, 9))


def numbered(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.arange(1, 1 + torch.Size(shape).numel()).view(shape).to(dtype)


@st.composite
def copies(draw) -> list[tuple[Tensor, Tensor]]:
    """Between boxes of maps of their own, with room around them."""
    found = []
    for _ in range(draw(st.integers(1, 5))):
        channels, (top, rows), (left, columns) = (
            draw(st.sampled_from([1, 3, 4, 8, 12])),
            draw(spans),
            draw(spans),
        )
        images, dtype = (
            draw(st.integers(1, 2)),
            draw(st.sampled_from([torch.float32, torch.float64, torch.int32])),
        )
        shape = images, channels, rows, columns
        whole = images, top + rows + 1, left + columns + draw(st.integers(0, 2)), channels
        x = numbered(*whole, dtype=dtype).permute(0, 3, 1, 2)[..., top : top + rows, left : left + columns]
        y = torch.zeros(images, rows, columns, channels, dtype=dtype).permute(0, 3, 1, 2)
        assert x.shape == y.shape == shape
        found.append(
            (x, y) if draw(st.booleans()) else (y + x, torch.zeros_like(x.as_strided(shape, x.stride())))
        )
    return found


@tries(40)
@given(st.sampled_from(["compute_80", "compute_90", "compute_100"]), copies())
def test_interpreted_every_word_is_copied_once(target: str, pairs: list[tuple[Tensor, Tensor]]) -> None:
    with emulated_driver(target) as driver:
        assert all(can_copy(x, y) for x, y in pairs)
        Boxes(tuple(Copied(x, y) for x, y in pairs)).launch().run()
    assert len(driver.launches) == 1
    for x, y in pairs:
        assert torch.equal(x, y)


def test_what_is_no_whole_words_is_not_copied_so() -> None:
    x = torch.zeros(1, 3, 2, 2, dtype=torch.float16).to(memory_format=torch.channels_last)
    assert not can_copy(x, x)
    assert not can_copy(x[..., :0], x[..., :0])
    assert can_copy(x[:, :2, :1, :1], x[:, :2, :1, :1])


@pytest.mark.parametrize(
    ("pattern", "by"),
    [
        (r"%ctaid\.y", "%ctaid.x"),
        (r"setp\.ge\.u32", "setp.gt.u32"),
        (r"\+72\]", "+68]"),
        (r"shl\.b64 \t(%rd\d+), (%rd\d+), 4", r"shl.b64 \t\1, \2, 5"),
        (r"st\.global\.v4\.u32 \t(.*), \{(%r\d+), (%r\d+)", r"st.global.v4.u32 \t\1, {\3, \2"),
    ],
)
def test_another_program_is_noticed(pattern: str, by: str) -> None:
    x = torch.randn(2, 5, 7, 16).permute(0, 3, 1, 2)[:, :8]
    y, z = torch.zeros_like(x), torch.zeros_like(x[..., :2])
    changed = []

    def edit(ptx: str) -> str:
        changed.append(re.search(pattern, ptx) is not None)
        return re.sub(pattern, by, ptx)

    try:
        with emulated_driver(edit=edit):
            Boxes((Copied(x, y), Copied(x[..., 1:3], z))).launch().run()
    except (PtxError, AssertionError):
        pass
    else:
        assert not (torch.equal(x, y) and torch.equal(x[..., 1:3], z))
    assert changed == [True]
