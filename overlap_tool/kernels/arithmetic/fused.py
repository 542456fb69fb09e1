"""Programs made of others: consecutive pointwise operations become one program."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from typing import Any

from overlap_tool.kernels.arithmetic.functions import Number
from overlap_tool.kernels.arithmetic.programs import PROGRAMS

Expression = Any
"""The index of an input, a number in the notation of `float.hex`, or a name and its argument expressions."""


def leaky_relu(o: Any, x: Number, slope: float = 0.01) -> Number:
    return o.where(x > 0.0, x, x * slope)


def _operation(compute: Callable[..., Number]) -> Callable[..., Number]:
    return lambda o, *xs: compute(*xs)


OPERATIONS: dict[str, Callable[..., Number]] = {
    **{name: _operation(getattr(operator, name)) for name in ("add", "sub", "mul", "neg")},
    "div": _operation(operator.truediv),
    "abs": lambda o, x: o.abs(x),
    "leaky_relu": leaky_relu,
}
"""By PyTorch's names. Each rounds at most once."""

BY_NUMBERS = frozenset(("softplus", "elu"))
"""Programs that take numeric arguments as they are written."""


def named(expression: Expression) -> str:
    """The name of the program that computes an expression, by which all backends know it."""
    name = expression[0]
    if name in PROGRAMS and expression == (name, *range(len(expression) - 1)):
        return str(name)
    name = f"{name}_{hashlib.sha256(repr(expression).encode()).hexdigest()[:16]}"
    PROGRAMS.setdefault(name, lambda o, *xs: _value(expression, o, dict(enumerate(xs))))
    return name


def _value(part: Expression, o: Any, known: dict[Expression, Number]) -> Number:
    """Evaluates common subexpressions once."""
    if isinstance(part, str):
        return float.fromhex(part)
    if part not in known:
        name, *parts = part
        known[part] = (OPERATIONS.get(name) or PROGRAMS[name])(o, *(_value(each, o, known) for each in parts))
    return known[part]


def with_inputs(part: Expression, inputs: dict[int, Expression]) -> Expression:
    """The same expression on other inputs."""
    if isinstance(part, int):
        return inputs[part]
    return (part[0], *(with_inputs(each, inputs) for each in part[1:])) if isinstance(part, tuple) else part
