"""What generated code computes for every number of a tensor: functions, and compositions of them.

A composition is a program of operations in the tensor's own precision, each rounded: `o` has them as for
`functions`. Their order is part of the definition (docs/arithmetic.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from overlap_tool.kernels.arithmetic import functions
from overlap_tool.kernels.arithmetic.functions import Number, rounded


def _function(name: str) -> Callable[..., Number]:
    return lambda o, *xs: rounded(o, name, *xs)


def sqrt(o: Any, x: Number) -> Number:
    return o.sqrt(x)


def relu(o: Any, x: Number) -> Number:
    return o.where(x < 0.0, 0.0, x)


def sigmoid(o: Any, x: Number) -> Number:
    return 1.0 / (rounded(o, "exp", -x) + 1.0)


def silu(o: Any, x: Number) -> Number:
    return sigmoid(o, x) * x


def log1p_exp(o: Any, x: Number) -> Number:
    """log(1 + exp(x)) without overflow."""
    return rounded(o, "log1p", rounded(o, "exp", -o.abs(x))) + relu(o, x)


def softplus(o: Any, x: Number, beta: Number, threshold: Number) -> Number:
    scaled = x * beta
    return o.where(scaled > threshold, x, log1p_exp(o, scaled) / beta)


def log_sigmoid(o: Any, x: Number) -> Number:
    return -log1p_exp(o, -x)


def mish(o: Any, x: Number) -> Number:
    return rounded(o, "tanh", log1p_exp(o, x)) * x


def gelu(o: Any, x: Number) -> Number:
    return (rounded(o, "erf", x * math.sqrt(0.5)) + 1.0) * 0.5 * x


def gelu_by_tanh(o: Any, x: Number) -> Number:
    inner = (x * x * x * 0.044715 + x) * math.sqrt(2 / math.pi)
    return (rounded(o, "tanh", inner) + 1.0) * 0.5 * x


def elu(o: Any, x: Number, below_scale: Number, scale: Number, input_scale: Number) -> Number:
    below = (rounded(o, "exp", o.where(x > 0.0, 0.0, x) * input_scale) - 1.0) * below_scale
    return o.where(x > 0.0, x * scale, below)


def power(o: Any, x: Number, exponent: Number) -> Number:
    return rounded(o, "pow", x, exponent)


def power_of(o: Any, exponent: Number, base: Number) -> Number:
    return rounded(o, "pow", base, exponent)


PROGRAMS: dict[str, Callable[..., Number]] = {
    **{name: _function(name) for name in functions.PROGRAMS},
    **{
        program.__name__: program
        for program in (
            *(sqrt, relu, sigmoid, silu, softplus, log_sigmoid, mish),
            *(gelu, gelu_by_tanh, elu, power, power_of),
        )
    },
}
"""All programs that `tensors.compute` knows, by name."""
