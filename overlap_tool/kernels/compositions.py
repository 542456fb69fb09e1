"""Everything except chains, composed of correctly rounded operations, whatever the shape.

Libraries compute many functions differently in vectors and in remainders, and sum in an order that depends on
the shape and the number of threads. Here functions are composed of +, -, * and /, which IEEE 754 defines to
the last bit, and of those of `arithmetic`; sums are trees of neighbours. Where possible, they work in place
on their own intermediate results, since maps are large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from overlap_tool.errors import ExactnessError
from overlap_tool.kernels import normalising
from overlap_tool.kernels.arithmetic.tensors import compute


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
    return quotient(sum(x, dims, keepdim), math.prod(x.shape[d] for d in dims))


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
    return quotient(sum(centred.mul_(centred), dims, keepdim), max(0, count - less))


def std(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _in_place("sqrt", var(x, *args, **kwargs))


def vector_norm(
    x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    dims = _dims(x, dim)
    if ord == 2:
        return _in_place("sqrt", sum(x * x, dims, keepdim))
    if ord == 1:
        return sum(x.abs(), dims, keepdim)
    if ord == math.inf:
        return x.abs().amax(dims, keepdim)
    raise ExactnessError(
        f"a norm of order {ord}", "there is no exact kernel for it", f"Use {ExactnessError.STOCK}"
    )


NEGLIGIBLE = 2.0**-64
"""A softmax weight of at most this part of the largest counts as zero.

It is far below the rounding errors of either precision, yet could change one. Otherwise samples that a mask
of -100 suppresses would affect the bits, and a window at the border would depend on the image's other end.
"""


def softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    powers = _in_place("exp", x - x.amax(dim, keepdim=True))
    powers = torch.nn.functional.threshold(powers, NEGLIGIBLE, 0.0, inplace=True)
    return powers / tree_sum(powers, [dim])


def log_softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    centred = x - x.amax(dim, keepdim=True)
    return centred - _in_place("log", tree_sum(compute("exp", centred), [dim]))


def logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    dims = _dims(x, dim)
    most = x.amax(dims, keepdim=True)
    total = tree_sum(_in_place("exp", x - most), dims)
    return _reduced(_in_place("log", total).add_(most), dims, keepdim)


def cumulative(
    combine: Callable[[Tensor, Tensor], Tensor], x: Tensor, dim: int, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Along a dimension, every number combined with the result before it, from the first on."""
    found = x.clone() if dtype is None else x.to(dtype, copy=True)
    for i in range(1, x.shape[dim] if x.ndim else 0):
        own = found.select(dim, i)
        own.copy_(combine(found.select(dim, i - 1), own))
    return found


def log_add_exp(x: Tensor, y: Tensor) -> Tensor:
    """log(exp(x) + exp(y))"""
    less, more = torch.minimum(x, y), torch.maximum(x, y)
    found = _in_place("log1p", _in_place("exp", less - more)).add_(more)
    return torch.where((less == more) & more.isinf(), more, found)


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    found = normalising.layer_norm(x, weight, bias, eps) if len(shape) == 1 else None
    if found is not None:
        return found
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
    scale = _in_place("rsqrt", var(x, dims, correction=0, keepdim=True) + eps)
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
    """By stored statistics: one product and one sum per position.

    Without them, by those of the batch, which is how the library normalises instances: as the channels of one
    image.
    """
    *training, _, eps = rest
    shape = (-1, *[1] * (x.ndim - 2))
    if running_mean is None or running_var is None:
        weight, bias = (None if each is None else each.view(shape) for each in (weight, bias))
        return _normalised(x, [0, *range(2, x.ndim)], weight, bias, eps)
    if any(training):
        raise ExactnessError(
            "batch_norm", "it updates its running statistics as it normalises", "Call model.eval()"
        )
    factor = _in_place("rsqrt", running_var + eps)
    factor = factor if weight is None else weight * factor
    term = -running_mean * factor
    term = term if bias is None else bias + term
    return (x * factor.view(shape)).add_(term.view(shape)), x.new_empty(0), x.new_empty(0)


def cudnn_batch_norm(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same, with a further result that only cuDNN's gradient reads."""
    return (*batch_norm(x, *args), x.new_empty(0, dtype=torch.uint8))


def avg_pool(
    axes: int,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Window sums tap by tap, divided by the number of samples as the library counts them."""
    kernel, stride, padding = ((list(each) * axes)[:axes] for each in (kernel, stride or kernel, padding))
    sizes, ends = [], []
    for n, k, s, p in zip(x.shape[-axes:], kernel, stride, padding, strict=True):
        size = (n + 2 * p - k + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (size - 1) * s >= n + p:  # no window may begin in the padding at the end
            size -= 1
        sizes.append(size)
        ends.append(max(0, (size - 1) * s + k - n - p))
    around = [n for both in zip(padding, ends, strict=True) for n in reversed(both)][::-1]
    total = _window_sum(torch.nn.functional.pad(x, around), kernel, stride, sizes)
    if divisor_override is not None:
        return quotient(total, divisor_override)
    counted = torch.ones((), dtype=torch.int64, device=x.device)
    for n, k, s, p, size in zip(x.shape[-axes:], kernel, stride, padding, sizes, strict=True):
        start = torch.arange(size, device=x.device) * s - p
        stop = (start + k).clamp(max=n + p)
        of_axis = stop - start if count_include_pad else stop.clamp(max=n) - start.clamp(min=0)
        counted = counted[..., None] * of_axis
    return total / counted.to(x.dtype)


def _window_sum(x: Tensor, kernel: Sequence[int], stride: Sequence[int], sizes: Sequence[int]) -> Tensor:
    total: Tensor | None = None
    for starts in product(*map(range, kernel)):
        tap = x
        for axis, (i, size, s) in enumerate(zip(starts, sizes, stride, strict=True), x.ndim - len(sizes)):
            tap = tap.narrow(axis, i, (size - 1) * s + 1)[(slice(None),) * axis + (slice(None, None, s),)]
        total = tap if total is None else total + tap
    assert total is not None
    return total


def adaptive_avg_pool3d(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(size) != (1, 1, 1):
        raise ExactnessError(
            f"an adaptive pool of volumes to {tuple(size)}",
            "there is an exact one to one number alone",
            f"Use {ExactnessError.STOCK}",
        )
    return mean(x, (-3, -2, -1), keepdim=True)


def adaptive_avg_pool2d(x: Tensor, size: Sequence[int]) -> Tensor:
    rows, columns = (bins(n, parts) for n, parts in zip(x.shape[-2:], size, strict=True))
    means = [
        [mean(x[..., top:bottom, left:right], (-2, -1)) for left, right in columns] for top, bottom in rows
    ]
    return torch.stack([torch.stack(row, -1) for row in means], -2)


def bins(n: int, parts: int) -> list[tuple[int, int]]:
    """The inputs of each output of an adaptive pool on `n` samples; neighbours may share one."""
    return [(i * n // parts, -(-(i + 1) * n // parts)) for i in range(parts)]


def upsample_linear(x: Tensor, size: Sequence[int], align_corners: bool, *scales: float | None) -> Tensor:
    """Axis by axis, columns last."""
    for dim, new, scale in _of_axes(size, scales):
        low, high, part = linear_positions(x.shape[dim], new, align_corners, scale)
        x = between(x, dim, low, high, part)
    return x


MOST_BY_FLOAT32 = 1 << 24
"""Up to here, every integer is a float32."""


def upsample_nearest(
    own: Any, centred: bool, x: Tensor, size: Sequence[int], *scales: float | None
) -> Tensor:
    """The library's own op where it computes positions in float32.

    Otherwise its bits depend on the memory layout, and with very many outputs it repeats some.
    """
    if x.dtype == torch.float32 and max(size) <= MOST_BY_FLOAT32:
        result: Tensor = own(x, size, *scales)
        return result
    for dim, new, scale in _of_axes(size, scales):
        x = x.index_select(dim, nearest_positions(x.shape[dim], new, scale, centred).to(x.device))
    return x


def _of_axes(size: Sequence[int], scales: Sequence[float | None]) -> Iterable[tuple[int, int, float | None]]:
    scales = scales or [None] * len(size)
    return zip(range(-len(size), 0), size, scales, strict=True)


def nearest_positions(old: int, new: int, scale: float | None, centred: bool = False) -> Tensor:
    """Which of `old` samples each of `new` outputs is: the one at its start, or at its centre.

    Computed in float32, as in the library, as long as that distinguishes consecutive outputs.
    """
    number: Any = np.float32 if new <= MOST_BY_FLOAT32 else np.float64
    step = number(1 / scale) if scale else number(old) / number(new)
    at = np.arange(new, dtype=number) + number(0.5 if centred else 0)
    return torch.from_numpy(np.floor(at * step).astype(np.int64)).clamp_(max=old - 1)


def linear_positions(
    old: int, new: int, align_corners: bool, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The position of each of `new` outputs among `old` samples: the sample below, the one above, and the
    fraction between them, in float64."""
    at = torch.arange(new, dtype=torch.float64)
    if align_corners:
        at *= (old - 1) / (new - 1) if new > 1 else 0.0
    else:
        at = ((at + 0.5) * (1 / scale if scale else old / new) - 0.5).clamp_(min=0)
    low = at.floor().long().clamp(max=old - 1)
    return low, (low + 1).clamp(max=old - 1), at - low


def between(x: Tensor, dim: int, low: Tensor, high: Tensor, part: Tensor) -> Tensor:
    """a + t * (b - a), which is a where a and b are equal."""
    a, b = (x.index_select(dim, place.to(x.device)) for place in (low, high))
    t = part.to(x.dtype).to(x.device)
    return a + t.view(-1, *[1] * (-1 - dim)) * (b - a)


def _in_place(program: str, x: Tensor) -> Tensor:
    return compute(program, x, out=x)


def function(program: str, x: Tensor, out: Tensor | None = None) -> Tensor:
    """A function of `arithmetic`; on integers, the library's."""
    return compute(program, _floating(x), out=out)


def _floating(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    return compute("log_sigmoid", x), x.new_empty(0)


def softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return compute("softplus", x, numbers=(beta, threshold))


def relu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Zero keeps its sign, which the library's maximum preserves on some processors only."""
    if x.dtype in (torch.float32, torch.float64):
        return compute("relu", x, out=out)
    return torch.relu(x) if out is None else torch.relu_(out)


def gelu(x: Tensor, *, approximate: str = "none", out: Tensor | None = None) -> Tensor:
    return compute("gelu_by_tanh" if approximate == "tanh" else "gelu", x, out=out)


def elu(
    x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1, out: Tensor | None = None
) -> Tensor:
    return compute("elu", x, numbers=(alpha * scale, scale, input_scale), out=out)


def celu(x: Tensor, alpha: float = 1, out: Tensor | None = None) -> Tensor:
    return elu(x, alpha, 1, 1 / alpha, out)


def hardsigmoid(x: Tensor) -> Tensor:
    return _over((x + 3).clamp_(0, 6), 6)


def hardswish(x: Tensor) -> Tensor:
    return _over((x + 3).clamp_(0, 6).mul_(x), 6)


def quotient(x: Tensor, y: float) -> Tensor:
    return torch.div(*on_one_device(x, y))


def _over(x: Tensor, y: float) -> Tensor:
    return torch.div(*on_one_device(x, y), out=x)


def on_one_device(x: Any, y: Any) -> tuple[Any, Any]:
    """Move a GPU tensor's divisor there: PyTorch would multiply by the inverse of a number on the CPU."""
    if not isinstance(x, Tensor) or x.device.type == "cpu" or not x.is_floating_point():
        return x, y
    if not isinstance(y, Tensor):
        return x, torch.full((), y, dtype=x.dtype, device=x.device)
    return x, y.to(device=x.device, dtype=x.dtype) if y.device != x.device else y


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    below = weight * x
    return torch.where(x > 0, x, below, out=below)


def power(x: Any, exponent: Any) -> Tensor:
    """Roots and squares by their own operations, everything else by one function, rounded once."""
    if not isinstance(x, Tensor):
        return compute("power_of", _floating(exponent), numbers=(x,))
    x = _floating(x)
    if isinstance(exponent, Tensor):
        kind = torch.result_type(x, exponent)
        x, exponent = torch.broadcast_tensors(x.to(kind), exponent.to(x.device, kind))
        return compute("pow", x, exponent)
    if exponent in (0.5, -0.5):
        return compute("sqrt" if exponent > 0 else "rsqrt", x)
    if exponent == 2:
        return x * x
    return compute("power", x, numbers=(exponent,))


def add(x: Any, y: Any, alpha: float = 1) -> Tensor:
    """Two roundings, where the library may fuse the product with the sum."""
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


def fmod(x: Any, y: Any) -> Tensor:
    """Exact, by the C library: on some processors, the vector version is wrong for large quotients."""
    x, y = _of_one_type(x, y)
    if x.device.type != "cpu" or not x.is_floating_point():
        return torch.fmod(x, y)
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.asarray(np.fmod(x.numpy(), y.numpy())))


def remainder(x: Any, y: Any) -> Tensor:
    x, y = _of_one_type(x, y)
    found = fmod(x, y)
    return torch.where((found != 0) & ((y < 0) != (found < 0)), found + y, found)


def _of_one_type(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    kind = torch.result_type(x, y)
    place = next(each.device for each in (x, y) if isinstance(each, Tensor))
    one, other = (torch.as_tensor(each, dtype=kind, device=place) for each in (x, y))
    return one, other


def index_put(x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    if accumulate:
        raise ExactnessError(
            "torch.index_put that accumulates", "it adds up in no fixed order", f"Use {ExactnessError.STOCK}"
        )
    return torch.ops.aten.index_put(x, indices, values)  # takes None for a whole dimension


def fold(
    columns: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """Sums of overlapping samples, tap by tap; the library's order differs on a GPU."""
    batched = columns if columns.ndim == 3 else columns[None]
    padded = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    counts = [
        (n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(padded, dilation, kernel, stride, strict=True)
    ]
    taps = batched.reshape(len(batched), -1, kernel[0] * kernel[1], *counts)
    total = columns.new_zeros(len(batched), taps.shape[1], *padded)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            down, across = (
                slice(k * d, k * d + (count - 1) * s + 1, s)
                for k, d, count, s in zip((i, j), dilation, counts, stride, strict=True)
            )
            total[..., down, across] += taps[:, :, i * kernel[1] + j]
    top, left = padding
    result = total[..., top : top + size[0], left : left + size[1]].contiguous()
    return result if columns.ndim == 3 else result[0]


def linspace(start: Any, end: Any, steps: int, *, dtype: torch.dtype | None = None, **rest: Any) -> Tensor:
    """From both ends towards the middle, in float64."""
    start, end = float(start), float(end)
    step = (end - start) / max(1, steps - 1)
    at = torch.arange(steps, dtype=torch.float64)
    found = torch.where(
        at < (steps + 1) // 2, at * step + start, (steps - 1 - at).neg_().mul_(step).add_(end)
    )
    return _placed(found, dtype, rest)


def arange(*ends: float, dtype: torch.dtype | None = None, **rest: Any) -> Tensor:
    """start + i * step in float64."""
    if all(float(end).is_integer() for end in ends):
        return torch.arange(*ends, dtype=dtype, **rest)
    start, end, step = (0, *ends, 1) if len(ends) == 1 else (*ends, 1)[:3]
    at = torch.arange(math.ceil((end - start) / step), dtype=torch.float64)
    return _placed(at.mul_(step).add_(start), dtype, rest)


def _placed(x: Tensor, dtype: torch.dtype | None, rest: dict[str, Any]) -> Tensor:
    return x.to(dtype or torch.get_default_dtype()).to(rest.get("device") or "cpu")
