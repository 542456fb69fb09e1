"""Maps laid out anew by generated code, and convolutions of whole maps in bands of rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.cases import tries
from torch import Tensor

from overlap_tool import exact_kernels
from overlap_tool.kernels import chain, transposing, work
from overlap_tool.kernels.transposing import channels_first, channels_last

TYPES = st.sampled_from((torch.float32, torch.float64))


def _map(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=dtype).reshape(shape)


@tries(200)
@given(
    st.integers(1, 2),
    st.integers(1, 70),
    st.integers(1, 9),
    st.integers(1, 600),
    st.integers(0, 3),
    TYPES,
)
def test_a_map_is_the_same_in_either_layout(
    images: int, channels: int, rows: int, columns: int, cut: int, dtype: torch.dtype
) -> None:
    whole = _map(images, channels, rows + cut, columns + cut, dtype=dtype)
    x = whole[..., :rows, cut:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transposing, "WORTH", 1)
        last = channels_last(x)
        place = torch.zeros_like(whole)
        channels_first(last, place[..., :rows, cut:])
        first = channels_first(last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert first.is_contiguous()
    assert torch.equal(last, x)
    assert torch.equal(first, x)
    assert torch.equal(place[..., :rows, cut:], x)
    assert place.count_nonzero() == x.count_nonzero()


@st.composite
def _convolutions(draw: st.DrawFn) -> tuple[tuple[int, ...], dict[str, int]]:
    kernel, stride, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    reach = dilation * (kernel - 1)
    groups = draw(st.sampled_from((1, 1, 4)))
    sizes = draw(st.integers(1, 2)), groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 5))
    rows, columns = (reach + draw(st.integers(1, 40)) for _ in range(2))
    how = {"stride": stride, "padding": draw(st.integers(0, reach + 1)), "dilation": dilation}
    return (*sizes, kernel, rows, columns), {**how, "groups": groups}


@tries(100)
@given(_convolutions(), st.sampled_from((1, 20_000, 1 << 22)), TYPES)
def test_a_convolution_in_bands_has_the_bits_of_one_that_is_not(
    sizes: tuple[tuple[int, ...], dict[str, int]], band: int, dtype: torch.dtype
) -> None:
    (images, channels, made, kernel, rows, columns), how = sizes
    random = torch.Generator().manual_seed(rows)
    x = torch.randn(images, channels, rows, columns, generator=random, dtype=dtype)
    weight = torch.randn(made, channels // how["groups"], kernel, kernel, generator=random, dtype=dtype)
    bias = torch.randn(made, generator=random, dtype=dtype)
    with torch.no_grad(), exact_kernels(), pytest.MonkeyPatch.context() as patch:
        at_once = F.conv2d(x.contiguous(memory_format=torch.channels_last), weight, bias, **how)
        patch.setattr(transposing, "WORTH", 1)
        patch.setattr(chain, "BAND_BYTES", band)
        found = F.conv2d(x, weight, bias, **how)
    assert found.is_contiguous() or rows * columns == 1  # then one layout is the other
    assert torch.equal(found, at_once)


def test_bands_are_of_so_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def seen(x: Tensor) -> Tensor:
        read.append(x.shape[2])
        return channels_last(x)

    monkeypatch.setattr(chain, "channels_last", seen)
    x = torch.randn(1, 16, 100, 64)
    monkeypatch.setattr(chain, "BAND_BYTES", 30 * 64 * 4 * (16 + 8))
    with torch.no_grad(), exact_kernels():
        F.conv2d(x, torch.randn(8, 16, 3, 3), padding=1)
    assert read == [31, 32, 32, 11]


def test_what_is_recorded_is_copied_by_pytorch() -> None:
    """Whoever records sees its copies, and no others."""
    x = torch.randn(1, 16, 100, 64)
    assert transposing.is_quick(x)
    with work.noting(lambda _: None):
        assert not transposing.is_quick(x)


def test_an_image_as_numpy_lays_it_out_is_padded_and_convolved() -> None:
    """Its one image has the stride of a pixel: PyTorch takes it for channels first, and pads it so."""
    x = torch.randn(16, 20, 3).permute(2, 0, 1)[None]
    assert x.stride(0) == 3
    weight = torch.randn(8, 3, 5, 5)
    with torch.no_grad(), exact_kernels():
        assert torch.equal(F.conv2d(x, weight, padding=2), F.conv2d(x.contiguous(), weight, padding=2))
