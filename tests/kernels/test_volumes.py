"""Convolutions of volumes are chains, as an emulation in numpy has them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.cases import tries
from support.convolutions import chain
from torch import Tensor

from overlap_tool import exact_kernels
from overlap_tool.kernels.form import Form

THREE = st.tuples(*[st.integers(1, 3)] * 3)


@st.composite
def volumes(draw) -> tuple[Tensor, Tensor, Tensor | None, dict]:
    """Samples, weights, bias and the options of `F.conv3d`."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel, dilation = draw(THREE), draw(THREE)
    size = [d * (k - 1) + draw(st.integers(1, 4)) for d, k in zip(dilation, kernel, strict=True)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    channels, outputs = (groups * draw(st.integers(1, 3)) for _ in range(2))
    x = torch.randn(draw(st.integers(1, 2)), channels, *size, generator=generator)
    weight = torch.randn(outputs, channels // groups, *kernel, generator=generator)
    bias = torch.randn(outputs, generator=generator) if draw(st.booleans()) else None
    options = {"stride": draw(THREE), "dilation": dilation, "groups": groups}
    return x, weight, bias, options | {"padding": draw(st.tuples(*[st.integers(0, 2)] * 3))}


def by_the_emulation(x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups):
    """Plane by plane: what each reads through the depth of the kernel lies side by side in the channels."""
    x = F.pad(x, [amount for p in reversed(padding) for amount in (p, p)])
    depth = weight.shape[2]
    in_groups = x.unflatten(1, (groups, -1))
    flat = weight.transpose(1, 2).flatten(1, 2)
    planes = []
    for first in range(0, x.shape[2] - dilation[0] * (depth - 1), stride[0]):
        read = in_groups[:, :, :, first : first + dilation[0] * (depth - 1) + 1 : dilation[0]]
        given = read.transpose(2, 3).flatten(1, 3)
        planes.append(chain(given, flat, bias, Form(stride[1:], dilation[1:], groups)))
    return torch.stack(planes, 2)


@tries(60)
@given(volumes())
def test_convolutions_of_volumes_are_chains(layer) -> None:
    x, weight, bias, options = layer
    with exact_kernels():
        found = F.conv3d(x, weight, bias, **options)
    assert torch.equal(found, by_the_emulation(x, weight, bias, **options))
    assert torch.allclose(found, F.conv3d(x, weight, bias, **options), atol=1e-4)


@tries(60)
@given(volumes(), st.tuples(*[st.integers(0, 2)] * 3))
def test_transposed_convolutions_of_volumes_are_chains(layer, more) -> None:
    """They are the convolution of the volume with zeros between its samples, by the kernel turned round."""
    x, weight, bias, options = layer
    stride, dilation, groups = options["stride"], options["dilation"], options["groups"]
    kernel = weight.shape[2:]
    padding = [min(p, d * (k - 1)) for p, d, k in zip(options["padding"], dilation, kernel, strict=True)]
    after = [min(o, s - 1) for o, s in zip(more, stride, strict=True)]
    turned = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    spread = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)))
    spread[:, :, :: stride[0], :: stride[1], :: stride[2]] = x
    around = []
    for k, d, p, o in reversed(list(zip(kernel, dilation, padding, after, strict=True))):
        around += [d * (k - 1) - p, d * (k - 1) - p + o]
    given, flipped = F.pad(spread, around), weight.flip(2, 3, 4)
    expected = by_the_emulation(given, flipped, bias, (1, 1, 1), (0, 0, 0), dilation, groups)
    with exact_kernels():
        found = F.conv_transpose3d(x, turned, bias, stride, padding, after, groups, dilation)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("align_corners", [False, True])
def test_volumes_are_interpolated_axis_by_axis(align_corners: bool) -> None:
    x = torch.rand(1, 2, 3, 5, 4, dtype=torch.float64)
    with exact_kernels():
        found = F.interpolate(x, (6, 9, 8), mode="trilinear", align_corners=align_corners)
    expected = F.interpolate(x, (6, 9, 8), mode="trilinear", align_corners=align_corners)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pools_of_volumes_count_as_the_library(padding: int, ceil_mode: bool) -> None:
    x = torch.rand(1, 2, 7, 6, 5, dtype=torch.float64)
    options = (3, (1, 2, 2), padding, ceil_mode, False)
    with exact_kernels():
        found = F.avg_pool3d(x, *options)
    assert torch.allclose(found, F.avg_pool3d(x, *options), atol=1e-12)


def test_a_transposed_convolution_that_leaves_nothing_is_the_librarys_error() -> None:
    layer = torch.nn.ConvTranspose3d(2, 3, 1, padding=1)
    with pytest.raises(RuntimeError, match="Output size is too small"), torch.no_grad(), exact_kernels():
        layer(torch.rand(1, 2, 1, 4, 4))
