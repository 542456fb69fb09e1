"""The canonical chain on CUDA, by Triton."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from torch import Tensor

from overlap_tool.errors import ExactnessError
from overlap_tool.kernels.form import Form

PIECE = (3, 5)
"""Outputs that a trial computes: with two images, more than a block of pixels and no whole number of them."""


def pack(weight: Tensor, groups: int) -> Tensor:
    """The same weights, laid out as the kernel goes through them: tap by tap, outputs side by side."""
    return weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form, out: Tensor | None = None) -> Tensor:
    """A convolution without padding, of which every output is the chain: no bit depends on anything else.

    `x` (N, C, H, W), `weight` (O, C // groups, kh, kw) and `out` may have any strides. `out` is made channels
    last when it is not given. Gradients are not recorded.
    """
    out = form.result(x, weight.shape, out)
    _triton_chain().run(x, weight, bias, form, out)
    return out


@cache
def _triton_chain() -> Any:
    try:
        return importlib.import_module("overlap_tool.kernels.triton_chain")
    except ImportError as error:
        raise ExactnessError(
            "the kernel for CUDA", f"Triton cannot be imported ({error})", "Install triton >= 3.2"
        ) from error
