"""Normalisation of a map by its own mean and variance: a barrier, and arithmetic at every position.

PyTorch has one function for both. It is traced as the equivalent composition below, whose steps have rules;
the exact engine computes the same steps where it meets the function itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from overlap_tool.geometry import Span
from overlap_tool.geometry.layout import Layout
from overlap_tool.kernels import compositions
from overlap_tool.rules.barriers import reduction
from overlap_tool.rules.exactness import composed
from overlap_tool.rules.registry import Call, Operand, Reduction, WholeMap, compose, register_rule


def moments(input: Tensor, groups: int) -> Tensor:
    """Mean and variance of every group of channels, over all rows and columns: (images, 2, groups)."""
    if has_torch_function_unary(input):  # so that it can be traced as one op
        return handle_torch_function(moments, (input,), input, groups)
    parts = _grouped(input, groups)
    dims = tuple(range(2, parts.ndim))
    return torch.stack([parts.mean(dims), parts.var(dims, unbiased=False)], 1)


def _grouped(input: Tensor, groups: int) -> Tensor:
    return input.unflatten(1, (groups, -1))


@dataclass(frozen=True)
class _Grouped(WholeMap):
    """A whole map with its channels in groups."""

    whole: WholeMap
    groups: int

    @property
    def shape(self) -> tuple[int, ...]:
        images, channels, *rest = self.whole.shape
        return images, self.groups, channels // self.groups, *rest

    def bands(self) -> Iterator[Tensor]:
        return (_grouped(band, self.groups) for band in self.whole.bands())

    def within_rows(
        self, step: str, columns: Sequence[Span], transform: Callable[[Tensor], Tensor] = lambda band: band
    ) -> Iterator[Tensor]:
        groups = self.groups  # the function below may be sent to another process, without this object
        return self.whole.within_rows(step, columns, lambda band: transform(_grouped(band, groups)))


@register_rule(moments)
def moments_of_a_map(call: Call, input: Operand, groups: int) -> Reduction:
    channels, *others = input.layout.channels
    layout = Layout.of_map(groups, channels // groups, *others)
    dims = range(2, len(input.shape) + 1)
    mean = reduction(call, "mean", layout, dims)
    variance = reduction(call, "var", layout, dims, unbiased=False)

    def run(whole: WholeMap, groups: int) -> Tensor:
        grouped = _Grouped(whole, groups)
        return torch.stack([mean.run(grouped), variance.run(grouped)], 1)

    return replace(variance, run=run)


@compose(F.group_norm, nn.GroupNorm, exact=composed(native_group_norm=compositions.group_norm))
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if input.ndim == 3:  # a map of one row
        return group_norm(input.unsqueeze(2), num_groups, weight, bias, eps).squeeze(2)
    everywhere = (slice(None), slice(None), *[None] * (input.ndim - 2))
    found = moments(input, num_groups).repeat_interleave(input.shape[1] // num_groups, 2)
    centre, variance = found[:, 0][everywhere], found[:, 1][everywhere]
    normal = (input - centre) * (variance + eps).rsqrt()
    if weight is not None:
        normal = normal * weight[everywhere[1:]]
    return normal if bias is None else normal + bias[everywhere[1:]]


@compose(F.normalize)
def normalize(
    input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    return input / input.norm(p, dim, keepdim=True).clamp_min(eps)


@compose(F.instance_norm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if use_input_stats:
        return group_norm(input, input.shape[1], weight, bias, eps)
    return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
