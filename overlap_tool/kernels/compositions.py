"""Everything that is no chain, composed of operations that round correctly, whatever the shape.

Libraries compute many functions one way in vectors and another way for what is left over, and add up in an
order that depends on the shape and the number of threads. Here functions are made of +, -, *, / and square
roots, which IEEE 754 defines to the last bit, and of the few transcendental ones that `mode` holds to the
test; and sums are trees of neighbours. They work in place on what they have made, as far as they can: maps
are large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from overlap_tool.errors import ExactnessError


def tree_sum(
    x: Tensor, dims: Sequence[int], combine: Callable[[Tensor, Tensor], Tensor] = torch.add
) -> Tensor:
    """Sums that keep their dimensions: neighbours in pairs, then pairs of pairs, dimension by dimension."""
    for dim in sorted((d % x.ndim for d in dims), reverse=True):
        while (length := x.shape[dim]) > 1:
            pairs = x.narrow(dim, 0, length // 2 * 2).unflatten(dim, (length // 2, 2))
            sums = combine(pairs.select(dim + 1, 0), pairs.select(dim + 1, 1))
            x = torch.cat([sums, x.narrow(dim, length - 1, 1)], dim) if length % 2 else sums
    return x


def _dims(x: Tensor, dim: Any) -> list[int]:
    if x.ndim == 0 or dim is None or (isinstance(dim, list | tuple) and not dim):
        return list(range(x.ndim))
    return [d % x.ndim for d in (dim if isinstance(dim, list | tuple) else [dim])]


def _reduced(x: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    return x if keepdim else x.squeeze(tuple(dims))


def sum(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    dims = _dims(x, dim)
    if not x.is_floating_point() or x.numel() == 0:
        return torch.sum(x, dims, keepdim)
    return _reduced(tree_sum(x, dims), dims, keepdim)


def mean(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    dims = _dims(x, dim)
    return sum(x, dims, keepdim) / math.prod(x.shape[d] for d in dims)


def prod(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    dims = _dims(x, dim)
    return _reduced(tree_sum(x, dims, torch.mul), dims, keepdim)


def var(
    x: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None
) -> Tensor:
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    dims = _dims(x, dim)
    less = (1 if unbiased else 0) if correction is None else correction
    centred = x - mean(x, dims, keepdim=True)
    count = math.prod(x.shape[d] for d in dims)
    return sum(centred.mul_(centred), dims, keepdim) / max(0, count - less)


def std(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return var(x, *args, **kwargs).sqrt()


def vector_norm(
    x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    dims = _dims(x, dim)
    if ord == 2:
        return sum(x * x, dims, keepdim).sqrt()
    if ord == 1:
        return sum(x.abs(), dims, keepdim)
    if ord == math.inf:
        return x.abs().amax(dims, keepdim)
    raise ExactnessError(
        f"a norm of order {ord}", "there is no exact kernel for it", f"Use {ExactnessError.STOCK}"
    )


NEGLIGIBLE = 2.0**-64
"""A weight of a softmax that is at most this part of the largest is nothing at all.

It is far below the rounding errors of either precision, and yet it could tip one. What a mask of -100 takes
away would so leave a trace in the bits, and a window at the border depend on the image's other end.
"""


def softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    powers = (x - x.amax(dim, keepdim=True)).exp()
    powers = torch.nn.functional.threshold(powers, NEGLIGIBLE, 0.0)
    return powers / tree_sum(powers, [dim])


def log_softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    centred = x - x.amax(dim, keepdim=True)
    return centred - tree_sum(centred.exp(), [dim]).log()


def logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    dims = _dims(x, dim)
    most = x.amax(dims, keepdim=True)
    return _reduced(tree_sum((x - most).exp(), dims).log() + most, dims, keepdim)


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = list(range(x.ndim - len(shape), x.ndim))
    return _normalised(x, dims, weight, bias, eps)


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    images: int,
    channels: int,
    area: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    parts = x.reshape(images, groups, channels // groups, *x.shape[2:])
    y, centre, scale = _normalised(parts, list(range(2, parts.ndim)), None, None, eps)
    y = y.reshape(x.shape)
    shape = (channels, *[1] * (x.ndim - 2))
    if weight is not None:
        y = y * weight.view(shape)
    if bias is not None:
        y = y + bias.view(shape)
    return y, centre.view(images, groups), scale.view(images, groups)


def _normalised(
    x: Tensor, dims: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    centre = mean(x, dims, keepdim=True)
    scale = rsqrt(var(x, dims, correction=0, keepdim=True) + eps)
    y = (x - centre).mul_(scale)
    if weight is not None:
        y.mul_(weight)
    if bias is not None:
        y.add_(bias)
    return y, centre, scale


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """By stored figures: one product and one sum per position. Without any, by those of the batch, which is
    how the library normalises instances: as the channels of one image."""
    *training, _, eps = rest
    shape = (-1, *[1] * (x.ndim - 2))
    if running_mean is None or running_var is None:
        weight, bias = (None if each is None else each.view(shape) for each in (weight, bias))
        return _normalised(x, [0, *range(2, x.ndim)], weight, bias, eps)
    if any(training):
        raise ExactnessError(
            "batch_norm", "it updates its running statistics as it normalises", "Call model.eval()"
        )
    factor = rsqrt(running_var + eps)
    factor = factor if weight is None else weight * factor
    term = -running_mean * factor
    term = term if bias is None else bias + term
    return (x * factor.view(shape)).add_(term.view(shape)), x.new_empty(0), x.new_empty(0)


def cudnn_batch_norm(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same, with one more result: what only cuDNN's gradient reads."""
    return (*batch_norm(x, *args), x.new_empty(0, dtype=torch.uint8))


def avg_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Window sums tap by tap, over the number of samples as the library counts them."""
    kernel = [*kernel, *kernel][:2]
    stride = [*stride, *stride][:2] if stride else kernel
    padding = [*padding, *padding][:2]
    sizes, ends = [], []
    for n, k, s, p in zip(x.shape[-2:], kernel, stride, padding, strict=True):
        size = (n + 2 * p - k + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (size - 1) * s >= n + p:  # no window may begin in the padding at the end
            size -= 1
        sizes.append(size)
        ends.append(max(0, (size - 1) * s + k - n - p))
    padded = torch.nn.functional.pad(x, (padding[1], ends[1], padding[0], ends[0]))
    total = _window_sum(padded, kernel, stride, sizes)
    if divisor_override is not None:
        return total / divisor_override
    counts = []
    for n, k, s, p, size in zip(x.shape[-2:], kernel, stride, padding, sizes, strict=True):
        start = torch.arange(size, device=x.device) * s - p
        stop = (start + k).clamp(max=n + p)
        counts.append(stop - start if count_include_pad else stop.clamp(max=n) - start.clamp(min=0))
    return total / (counts[0][:, None] * counts[1]).to(x.dtype)


def _window_sum(x: Tensor, kernel: Sequence[int], stride: Sequence[int], sizes: Sequence[int]) -> Tensor:
    total: Tensor | None = None
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            tap = x[
                ...,
                i : i + (sizes[0] - 1) * stride[0] + 1 : stride[0],
                j : j + (sizes[1] - 1) * stride[1] + 1 : stride[1],
            ]
            total = tap if total is None else total + tap
    assert total is not None
    return total


def adaptive_avg_pool2d(x: Tensor, size: Sequence[int]) -> Tensor:
    rows, columns = (bins(n, parts) for n, parts in zip(x.shape[-2:], size, strict=True))
    means = [
        [mean(x[..., top:bottom, left:right], (-2, -1)) for left, right in columns] for top, bottom in rows
    ]
    return torch.stack([torch.stack(row, -1) for row in means], -2)


def bins(n: int, parts: int) -> list[tuple[int, int]]:
    """What each output of an adaptive pool takes of `n` samples; neighbours may share one."""
    return [(i * n // parts, -(-(i + 1) * n // parts)) for i in range(parts)]


def upsample_bilinear2d(
    x: Tensor,
    size: Sequence[int],
    align_corners: bool,
    scale_rows: float | None = None,
    scale_columns: float | None = None,
) -> Tensor:
    """Along rows, then along columns: a + t * (b - a), which is a where a and b are the same."""
    for dim, new, scale in zip((-2, -1), size, (scale_rows, scale_columns), strict=True):
        old = x.shape[dim]
        if align_corners:
            step = (old - 1) / (new - 1) if new > 1 else 0.0
            at = torch.arange(new, device=x.device, dtype=torch.float64) * step
        else:
            step = 1 / scale if scale else old / new
            at = ((torch.arange(new, device=x.device, dtype=torch.float64) + 0.5) * step - 0.5).clamp(min=0)
        low = at.floor().long().clamp(max=old - 1)
        a = x.index_select(dim, low)
        b = x.index_select(dim, (low + 1).clamp(max=old - 1))
        t = (at - low).to(x.dtype)
        x = a + (t[:, None] if dim == -2 else t) * (b - a)
    return x


def sigmoid(x: Tensor) -> Tensor:
    return torch.neg(x).exp_().add_(1).reciprocal_()


def silu(x: Tensor) -> Tensor:
    return sigmoid(x).mul_(x)


def _log1p_exp(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without overflow."""
    return x.abs().neg_().exp_().log1p_().add_(x.clamp(min=0))


def softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    scaled = x if beta == 1 else x * beta
    below = _log1p_exp(scaled).div_(beta)
    return torch.where(scaled > threshold, x, below, out=below)


def log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    return _log1p_exp(-x).neg_(), x.new_empty(0)


def mish(x: Tensor) -> Tensor:
    return _log1p_exp(x).tanh_().mul_(x)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        cubed = (x * x).mul_(x).mul_(0.044715)
        gate = cubed.add_(x).mul_(math.sqrt(2 / math.pi)).tanh_()
    else:
        gate = (x * math.sqrt(0.5)).erf_()
    return gate.add_(1).mul_(0.5).mul_(x)


def elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    below = x.clamp(max=0).mul_(input_scale).exp_().sub_(1).mul_(alpha * scale)
    return torch.where(x > 0, x if scale == 1 else x * scale, below, out=below)


def celu(x: Tensor, alpha: float = 1) -> Tensor:
    return elu(x, alpha, 1, 1 / alpha)


def hardsigmoid(x: Tensor) -> Tensor:
    return (x + 3).clamp_(0, 6).div_(6)


def hardswish(x: Tensor) -> Tensor:
    return (x + 3).clamp_(0, 6).mul_(x).div_(6)


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    below = weight * x
    return torch.where(x > 0, x, below, out=below)


def rsqrt(x: Tensor) -> Tensor:
    return x.sqrt().reciprocal_() if x.is_floating_point() else 1 / x.sqrt()


def power(x: Any, exponent: Any) -> Tensor:
    """Products and square roots; other exponents have no exact kernel."""
    if isinstance(exponent, Tensor):
        raise ExactnessError(
            "pow with exponents in a tensor", "there is no exact kernel for it", f"Use {ExactnessError.STOCK}"
        )
    if exponent in (0.5, -0.5):
        return x.sqrt() if exponent > 0 else rsqrt(x)
    if exponent != int(exponent) or abs(exponent) > 16:
        raise ExactnessError(
            f"a power of {exponent}", "there is no exact kernel for it", f"Use {ExactnessError.STOCK}"
        )
    result = torch.ones_like(x) if exponent == 0 else x
    for _ in range(abs(int(exponent)) - 1):
        result = result * x
    return result.reciprocal() if exponent < 0 else result


def add(x: Any, y: Any, alpha: float = 1) -> Tensor:
    """The library may fuse the product with the sum, or not."""
    return torch.add(x, y if alpha == 1 else torch.mul(y, alpha))


def subtract(x: Any, y: Any, alpha: float = 1) -> Tensor:
    return torch.sub(x, y if alpha == 1 else torch.mul(y, alpha))


def reverse_subtract(x: Any, y: Any, alpha: float = 1) -> Tensor:
    return torch.sub(torch.as_tensor(y, dtype=x.dtype, device=x.device), x if alpha == 1 else x * alpha)


def addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + (a * b if value == 1 else a * b * value)


def addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + (a / b if value == 1 else a / b * value)


def lerp(x: Tensor, y: Tensor, weight: Any) -> Tensor:
    return x + weight * (y - x)


def index_put(x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    if accumulate:
        raise ExactnessError(
            "torch.index_put that accumulates", "it adds up in no fixed order", f"Use {ExactnessError.STOCK}"
        )
    return torch.index_put(x, indices, values)
