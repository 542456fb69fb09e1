"""Programs made of others: what is computed number by number, one after another, becomes one program."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from typing import Any

from overlap_tool.kernels.arithmetic.functions import Number
from overlap_tool.kernels.arithmetic.programs import PROGRAMS

Expression = Any
"""The number of an input, a number as `float.hex` writes it, or a name and the expressions it is given."""


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
"""As PyTorch names them. Each rounds once, or not at all."""

BY_NUMBERS = frozenset(("softplus", "elu"))
"""Programs that take numbers as they are written."""


def named(expression: Expression) -> str:
    """The name of the program that computes an expression, by which all backends know it."""
    name = expression[0]
    if name in PROGRAMS and expression == (name, *range(len(expression) - 1)):
        return str(name)
    name = f"{name}_{hashlib.sha256(repr(expression).encode()).hexdigest()[:16]}"
    PROGRAMS.setdefault(name, lambda o, *xs: _value(expression, o, dict(enumerate(xs))))
    return name


def _value(part: Expression, o: Any, known: dict[Expression, Number]) -> Number:
    """What is there twice is computed once."""
    if isinstance(part, str):
        return float.fromhex(part)
    if part not in known:
        name, *parts = part
        known[part] = (OPERATIONS.get(name) or PROGRAMS[name])(o, *(_value(each, o, known) for each in parts))
    return known[part]


def with_inputs(part: Expression, inputs: dict[int, Expression]) -> Expression:
    """The same, of other inputs."""
    if isinstance(part, int):
        return inputs[part]
    return (part[0], *(with_inputs(each, inputs) for each in part[1:])) if isinstance(part, tuple) else part
