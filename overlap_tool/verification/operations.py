"""Every op of the arithmetic that rounds, with integer-made arguments: a machine's digests of the results."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from overlap_tool.kernels.arithmetic.vectors import FUNCTIONS, Hashed, digest_of_maps
from overlap_tool.rules import exact_kernels

KINDS = (torch.float32, torch.float64)


def digests(device: torch.device | str = "cpu") -> dict[str, dict[str, str]]:
    """For each op, the digests of its results for these arguments, in both precisions."""
    found: dict[str, dict[str, str]] = {}
    for kind in KINDS:
        for op, calls in arguments(kind).items():
            maps = [_first(getattr(torch.ops.aten, op), device, *call) for call in calls]
            found.setdefault(op, {})[str(kind).removeprefix("torch.")] = digest_of_maps(*maps)
    return found


def _first(function: Any, device: torch.device | str, *call: Any) -> Tensor:
    """The first of several results: the map, where others only serve gradients."""
    names = call[-1] if isinstance(call[-1], dict) else {}
    given = tree_map_only(Tensor, lambda x: x.to(device), call[: len(call) - bool(names)])
    if not any(isinstance(each, Tensor) for each in given):
        names = {**names, "device": device}
    with torch.no_grad(), exact_kernels():
        result = function(*given, **names)
    return (result[0] if isinstance(result, tuple) else result).cpu()


def arguments(kind: torch.dtype) -> dict[str, list[tuple[Any, ...]]]:
    """For each op, its arguments: a tuple for each call, which may end in a dict of keyword arguments."""
    numbers = Hashed(1)

    def values(*shape: int, most: float = 4.0) -> Tensor:
        fine = 0 if kind == torch.float32 else numbers.uniform(shape).to(kind) * 2.0**-24
        return (numbers.uniform(shape).to(kind) + fine - 0.5) * (2 * most)

    x, y, z = values(2, 7, 13, 17), values(2, 7, 13, 17), values(2, 7, 13, 17)
    deep = torch.stack([x, y, z], 2)
    wide = values(50_000, most=1000.0)
    positive = wide.abs()
    channels, scales = values(7), values(7).abs() + 0.125
    one, pair, zeros = (x,), (x, y), [0, 0]
    weight, turned = values(37, 7, 3, 3), values(7, 21, 5, 5)
    of_roots = ("sqrt", "rsqrt", "log", "log2", "log10", "log1p")
    return {
        **{name: [(positive if name in of_roots else wide,), one] for name in FUNCTIONS},
        **{name: [(wide,), one] for name in ("sigmoid", "silu", "mish", "hardsigmoid", "hardswish")},
        "gelu": [one, (wide,)],
        "elu": [one, (x, 0.3, 1.7, 0.9)],
        "celu": [one, (x, 0.3)],
        "softplus": [one, (x, 3.0, 2.0)],
        "log_sigmoid_forward": [one],
        "_prelu_kernel": [(x, channels.view(7, 1, 1))],
        "leaky_relu": [(x, 0.01)],
        "softshrink": [(x, 0.3)],
        "pow": [(positive + 0.125, values(50_000)), (x.abs() + 0.125, 1.7), (x, 3), (2.5, x), (x.abs(), 0.5)],
        "add": [pair, (x, y, {"alpha": 0.3}), (x, 0.1)],
        "sub": [pair, (x, y, {"alpha": 0.3}), (x, 0.1)],
        "rsub": [pair, (x, 1, 0.3)],
        "mul": [pair, (x, 0.1)],
        "div": [pair, (x, 3.0), (x, 255.0), (x, 0.1)],
        "reciprocal": [one],
        "floor_divide": [pair, (wide, 0.3)],
        "fmod": [pair, (wide, 0.3)],
        "remainder": [pair, (wide, 0.3)],
        "frac": [(wide,)],
        "round": [(wide,)],
        "addcmul": [(x, y, z)],
        "addcdiv": [(x, y, z)],
        "lerp": [(x, y, 0.3), (x, y, z)],
        "linspace": [(0, 1, 1000), (-0.3, 1.7, 999), (0.0, 255.0, 256)],
        "arange": [(0.1, 20, 0.3), (2.5,)],
        "sum": [one, (x, [2, 3]), (x, [1])],
        "prod": [(x, 1)],
        "mean": [one, (x, [2, 3]), (x, [1])],
        "var": [(x, [1]), (x, [2, 3])],
        "std": [(x, [1]), (x, [2, 3])],
        "linalg_vector_norm": [(x, 2, [1]), (x, 1, [2, 3]), (x, math.inf, [1])],
        "_softmax": [(x, 1, False), (wide.view(250, 200), 1, False)],
        "_log_softmax": [(x, 1, False), (wide.view(250, 200), 1, False)],
        "logsumexp": [(x, [1]), (x, [2, 3])],
        **{name: [(x, 1), (x, -1)] for name in ("cumsum", "cumprod", "logcumsumexp")},
        "native_layer_norm": [(x, [13, 17], None, None, 1e-5)],
        "native_group_norm": [(x, scales, channels, 2, 7, 221, 7, 1e-6), (x, None, None, 2, 7, 221, 1, 1e-5)],
        **{
            name: [(x, scales, channels, channels, scales, *training, 0.1, 1e-5)]
            for name, training in (
                ("native_batch_norm", [False]),
                ("_native_batch_norm_legit_no_training", []),
            )
        },
        "avg_pool2d": [(x, [3, 3], [2, 2], [1, 1]), (x, [2, 3], [2, 3], zeros, True, False, 5)],
        "_adaptive_avg_pool2d": [(x, [1, 1]), (x, [3, 5])],
        "avg_pool3d": [(deep, [2, 3, 3], [1, 2, 2], [1, 1, 0]), (deep, [2, 2, 2])],
        "_adaptive_avg_pool3d": [(deep, [1, 1, 1])],
        "upsample_linear1d": [(x.flatten(2), [301], False, None)],
        "upsample_trilinear3d": [(deep, [7, 26, 34], False, None, 2.0, 2.0), (deep, [3, 11, 40], True)],
        "upsample_bilinear2d": [(x, [26, 34], False, 2.0, 2.0), (x, [11, 40], True)],
        "col2im": [(values(2, 63, 63), [13, 17], [3, 3], [1, 1], [1, 1], [2, 2])],
        "convolution": [
            (x, weight, values(37), [1, 1], [1, 1], [1, 1], False, zeros, 1),
            (x, weight, None, [2, 2], zeros, [2, 1], False, zeros, 1),
            (x, values(14, 1, 5, 5), values(14), [1, 1], [2, 2], [1, 1], False, zeros, 7),
            (x, turned, values(21), [2, 2], [2, 2], [1, 1], True, [1, 1], 1),
        ],
        "mm": [(x.view(-1, 221), values(221, 33))],
        "bmm": [(x.view(2, 7, 221), y.view(2, 221, 7))],
        "addmm": [(values(33), x.view(-1, 221), values(221, 33))],
        "baddbmm": [(values(2, 7, 7), x.view(2, 7, 221), y.view(2, 221, 7))],
    }
