"""Products of maps along channels: attention in windows and between channels, where no sum runs over
positions.

An operand's dimensions have names, as in `einsum`. Dimensions that are summed have to be channels. Every
other one is in the result, and each axis of the map in one dimension only: an image's rows twice would mean
all pairs of rows.
"""

from __future__ import annotations

import operator
import string
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from overlap_tool.geometry.layout import COLUMNS, IMAGES, ROWS, Dimension, Following, Layout
from overlap_tool.kernels import chain, scores
from overlap_tool.rules.exactness import chained, register_exact_op
from overlap_tool.rules.pieces import Patches, as_kept, as_laid_out
from overlap_tool.rules.registry import Call, Operand, Reduction, Rule, WholeMap, register_rule

MATRIX_PRODUCTS = (torch.matmul, "matmul", operator.matmul, torch.bmm, "bmm")


def _added(
    product: Callable[..., Tensor], c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """`beta * c + alpha * (a @ b)`"""
    found = product(a, b)
    if alpha != 1:
        found.mul_(alpha)
    return found if beta == 0 else found.add_(c if beta == 1 else c * beta)


EXACT = chained(
    mm=chain.matmul,
    bmm=chain.batched_matmul,
    addmm=partial(_added, chain.matmul),
    baddbmm=partial(_added, chain.batched_matmul),
)


@register_rule(*MATRIX_PRODUCTS, any_layout=True, exact=EXACT)
def matrix_product(call: Call, input: Operand, other: Operand) -> Rule:
    if min(len(input.shape), len(other.shape)) < 2:
        call.refuse("multiplies by a vector")
    batch = string.ascii_lowercase[: len(call.output_shapes[0]) - 2][::-1]

    def names(operand: Operand, last: str) -> str:
        return batch[len(batch) - (len(operand.shape) - 2) :] + last

    given = [(input, names(input, "MK")), (other, names(other, "KN"))]
    return _product(call, given, batch + "MN")


@register_rule(torch.einsum, any_layout=True)
def einsum(call: Call, equation: str, *operands: Any) -> Rule:
    tensors: Sequence[Operand] = operands[0] if isinstance(operands[0], tuple | list) else operands
    given, arrow, made = equation.replace(" ", "").partition("->")
    names = given.split(",")
    if "." in equation or not arrow or any(len({*each}) < len(each) for each in names):
        call.refuse("multiplies by an equation with dots, without an arrow, or with a diagonal")
    return _product(call, list(zip(tensors, names, strict=True)), made)


@register_rule(F.scaled_dot_product_attention, any_layout=True)
def attention_of_tokens(
    call: Call,
    query: Operand,
    key: Operand,
    value: Operand,
    attn_mask: Operand | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> Rule:
    if dropout_p or is_causal:
        call.refuse("drops at random, or lets each position see those before it")
    batch = string.ascii_lowercase[: len(query.shape) - 2]
    masks = [] if attn_mask is None else [(attn_mask, (batch + "QK")[-len(attn_mask.shape) :])]
    scores = [(query, batch + "QD"), (key, batch + "KD"), *masks]
    return _product(call, [*scores, (value, batch + "KE")], batch + "QE")


@register_exact_op("aten::_safe_softmax")
def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Zeros where a mask excludes everything."""
    nothing = (x == -torch.inf).all(dim, keepdim=True)
    return torch.softmax(x.masked_fill(nothing, 0), dim, dtype).masked_fill(nothing, 0)


@register_exact_op("aten::_scaled_dot_product_flash_attention_for_cpu")
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """PyTorch chooses this function or its plain one by shapes and strides, so both have to give the same
    bits.

    The second result serves only gradients.
    """
    groups = query.shape[-3] != key.shape[-3]
    with scores.in_blocks():
        found = torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=groups
        )[0]  # the other result has all the scores
        return scores.settled(found), query.new_empty(0)


def beside(first: Tensor, second: Tensor, layouts: tuple[Layout, Layout]) -> Tensor:
    """Two maps as one, with the channels of the second behind those of the first.

    All positions of an image are one dimension of either, and become a single row here.
    """
    positions = first.shape[layouts[0].dims.index((ROWS, COLUMNS))]
    return _as_one(first, second, layouts, 1, positions)


def _as_one(first: Tensor, second: Tensor, layouts: tuple[Layout, Layout], rows: int, columns: int) -> Tensor:
    pairs = zip((first, second), layouts, strict=True)
    return torch.cat([as_kept(map, layout, rows, columns).flatten(1, -3) for map, layout in pairs], 1)


@register_rule(beside, any_layout=True)
def two_maps(call: Call, first: Operand, second: Operand, layouts: tuple[Layout, Layout]) -> Rule:
    def run(patches: Patches, first: Tensor, second: Tensor, layouts: tuple[Layout, Layout]) -> Tensor:
        rows, columns = (patch.out.length for patch in patches)
        return _as_one(first, second, layouts, rows, columns)

    return Rule(run, layout=Layout.of_map(first.channels + second.channels))


def over_positions(maps: Tensor, layouts: tuple[Layout, Layout]) -> Tensor:
    """The matrix product, over all positions, of two maps that stand beside each other."""
    first, second = _apart(maps, layouts)
    return first @ second


@register_rule(over_positions)
def gram(call: Call, maps: Operand, layouts: tuple[Layout, Layout]) -> Reduction:
    """Products are added from the first position to the last, so a band continues the sum of those before it:
    that sum is passed as one more row and column of factors, with ones as the other factor."""

    def run(whole: WholeMap, *_: Any) -> Tensor:
        total: Tensor | None = None
        for band in whole.bands():
            first, second = _apart(band, layouts)
            if total is not None:
                one = torch.eye(second.shape[-1], dtype=second.dtype, device=second.device)
                first = torch.cat([total, first], -1)
                second = torch.cat([one.expand(*second.shape[:-2], *one.shape), second], -2)
            total = first @ second
        assert total is not None
        return total

    return Reduction(run, profile=0, scratch=3)


def _apart(maps: Tensor, layouts: tuple[Layout, Layout]) -> list[Tensor]:
    size = maps.shape[-2:]
    parts = maps.split([prod(layout.channels) for layout in layouts], 1)
    return [
        as_laid_out(part.reshape(len(part), *layout.channels, *size), layout)
        for part, layout in zip(parts, layouts, strict=True)
    ]


def _product(call: Call, given: Sequence[tuple[Operand, str]], made: str) -> Rule:
    """The rule of an op that sums over every name that its result lacks."""
    dims: dict[str, Dimension] = {}
    lengths: dict[str, int] = {}
    for operand, names in given:
        for name, dimension, n in zip(names, _layout(operand).dims, operand.shape, strict=True):
            known = dims.get(name, (1,))
            if dimension != (1,) and known != (1,) and dimension != known:
                call.refuse("multiplies maps whose rows and columns are not the same dimensions")
            dims[name] = known if dimension == (1,) else dimension
            lengths[name] = max(n, lengths.get(name, 1))
    summed = [name for name in dims if name not in made]
    if any(isinstance(factor, Following) for name in summed for factor in dims[name]):
        call.refuse_global("sums products over rows or columns")
    layout = Layout(tuple(dims[name] for name in made))
    if any(layout.flat.count(axis) > 1 for axis in (ROWS, COLUMNS, IMAGES)):
        call.refuse_global("multiplies every position with every other")
    macs = prod(layout.channels) * prod(lengths[name] for name in summed)
    compute = getattr(Tensor, call.target) if isinstance(call.target, str) else call.target
    return Rule(
        lambda patches, *args, **kwargs: compute(*args, **kwargs), macs=macs, scratch=2, layout=layout
    )


def _layout(operand: Operand) -> Layout:
    """A value of the whole map has its images first; weights have none."""
    if operand.spatial:
        return operand.layout
    dims = tuple((n,) for n in operand.shape)
    return Layout(((IMAGES,), *dims[1:]) if operand.summary else dims)
