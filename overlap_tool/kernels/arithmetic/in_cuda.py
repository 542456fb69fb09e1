"""Programs as CUDA C++: a kernel that computes a program for every number of a tensor.

Every operation is an intrinsic that rounds to nearest and that no compiler fuses, or one that does not round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from overlap_tool.kernels.arithmetic.generated import INPUTS, NUMBERS, Program
from overlap_tool.kernels.arithmetic.operators import Operators

THREADS = 256

ROUNDING = {"+": "add_rn", "-": "sub_rn", "*": "mul_rn", "/": "div_rn"}

HEAD = f"""
using i64 = long long;
struct Task {{
  const void* x[{INPUTS}];
  void* y;
  i64 count;
  double numbers[{NUMBERS}];
}};
"""


class Scalar(Operators):
    """A number, an integer or a truth value of one thread, with Python's operators."""

    def __init__(self, o: Writer, text: str, kind: str) -> None:
        self.o, self.text, self.kind = o, text, kind

    def _binary(self, sign: str, other: Any, swap: bool = False) -> Scalar:
        a, b = self.text, self.o.lifted(other, self.kind)
        if swap:
            a, b = b, a
        if self.kind in ("i64", "bool"):
            return self.o.named(f"{a} {sign} {b}", self.kind)
        return self.o.named(f"__{self.kind[0]}{ROUNDING[sign]}({a}, {b})", self.kind)

    def _compared(self, sign: str, other: Any) -> Scalar:
        return self.o.named(f"{self.text} {sign} {self.o.lifted(other, self.kind)}", "bool")

    def __lshift__(self, count: int) -> Scalar:
        return self.o.named(f"(i64)((unsigned long long){self.text} << {count})", self.kind)

    def __neg__(self) -> Scalar:
        return self.o.named(f"-{self.text}", self.kind)

    def __invert__(self) -> Scalar:
        return self.o.named(f"!{self.text}", "bool")


class Writer:
    """Computes programs by writing the statements that do so."""

    def __init__(self, single: bool) -> None:
        self.single = single
        self.statements: list[str] = []
        self.tables: dict[tuple[int, ...], str] = {}
        self._names = 0

    def named(self, expression: str, kind: str) -> Scalar:
        """An expression's value as a named variable."""
        self._names += 1
        self.statements.append(f"{kind} v{self._names} = {expression};")
        return Scalar(self, f"v{self._names}", kind)

    def lifted(self, value: Any, kind: str) -> str:
        """A value, or a Python number as a constant of that kind."""
        if isinstance(value, Scalar):
            return value.text
        if kind == "i64":
            return f"{value}LL"
        if kind == "float":
            value = float(np.float32(value))
        if math.isfinite(value):
            return value.hex() + ("f" if kind == "float" else "")
        bits = np.float64(value).view(np.int64)
        return f"({kind})__longlong_as_double({bits}LL)"

    def _called(self, name: str, *values: Any) -> Scalar:
        kind = next((value.kind for value in values if isinstance(value, Scalar)), "double")
        return self.named(f"{name}({', '.join(self.lifted(value, kind) for value in values)})", kind)

    def fma(self, a: Any, b: Any, c: Any) -> Scalar:
        return self._called("__fma_rn", a, b, c)

    def sqrt(self, x: Scalar) -> Scalar:
        return self._called(f"__{x.kind[0]}sqrt_rn", x)

    def abs(self, x: Scalar) -> Scalar:
        return self._called("fabs" if x.kind == "double" else "fabsf", x)

    def copysign(self, x: Scalar, sign: Scalar) -> Scalar:
        return self._called("copysign" if x.kind == "double" else "copysignf", x, sign)

    def where(self, mask: Scalar, one: Any, other: Any) -> Scalar:
        plain = "i64" if isinstance(one, int) and isinstance(other, int) else "double"
        kind = next((x.kind for x in (one, other) if isinstance(x, Scalar)), plain)
        return self.named(f"{mask.text} ? {self.lifted(one, kind)} : {self.lifted(other, kind)}", kind)

    def bits(self, x: Scalar) -> Scalar:
        return self.named(f"__double_as_longlong({x.text})", "i64")

    def number(self, bits: Scalar) -> Scalar:
        return self.named(f"__longlong_as_double({bits.text})", "double")

    def upper(self, bits: Scalar, count: int) -> Scalar:
        return self.named(f"(i64)((unsigned long long){bits.text} >> {count})", "i64")

    def widen(self, x: Scalar) -> Scalar:
        return self.named(f"(double){x.text}", "double") if self.single else x

    def narrow(self, x: Scalar) -> Scalar:
        return self.named(f"__double2float_rn({x.text})", "float") if self.single else x

    def table(self, values: Sequence[int], index: Scalar) -> Scalar:
        name = self.tables.setdefault(tuple(values), f"table{len(self.tables)}")
        last = len(values) - 1
        index = self.where(index < 0, 0, self.where(index > last, last, index))
        return self.named(f"{name}[{index.text}]", "double")

    def rarely(self, mask: Scalar, compute: Callable[[], Any], otherwise: Any) -> Any:
        """A branch."""
        several = otherwise if isinstance(otherwise, tuple) else (otherwise,)
        results = tuple(self.named(one.text, one.kind) for one in several)
        self.statements.append(f"if ({mask.text}) {{")
        found = compute()
        for result, one in zip(results, found if isinstance(otherwise, tuple) else (found,), strict=True):
            self.statements.append(f"{result.text} = {self.lifted(one, result.kind)};")
        self.statements.append("}")
        return results if isinstance(otherwise, tuple) else results[0]


def kernel_over(name: str, program: Program, single: bool, inputs: int, numbers: int) -> str:
    """A kernel of that name, which computes `program(o, *inputs, *numbers)` for every number."""
    kind = "float" if single else "double"
    tables, body, found = _written(
        program,
        single,
        *(f"(({kind} const*)task.x[{n}])[i]" for n in range(inputs)),
        *(f"({kind})task.numbers[{n}]" for n in range(numbers)),
    )
    return f"""{HEAD}{tables}
__global__ void __launch_bounds__({THREADS}) {name}(const Task task) {{
  const i64 i = (i64)blockIdx.x * {THREADS} + threadIdx.x;
  if (i >= task.count) return;
  {body}
  (({kind}*)task.y)[i] = {found};
}}
"""


def finished_by(name: str, program: Program, single: bool, others: int) -> str:
    """The code before `chain.cu` in a kernel whose outputs, with other tensors, a program finishes."""
    kind = "float" if single else "double"
    tables, body, found = _written(
        program, single, "value", *(f"(({kind} const*)others[{n}])[at[{n}]]" for n in range(others))
    )
    return f"""#define FINISHED {name}
using i64 = long long;
{tables}
__device__ __forceinline__ {kind} finished({kind} value, const void* const* others, const i64 (&at)[2]) {{
  {body}
  return {found};
}}
"""


def _written(program: Program, single: bool, *inputs: str) -> tuple[str, str, str]:
    """A program over inputs, as tables, statements and the result."""
    o = Writer(single)
    found = program(o, *(o.named(each, "float" if single else "double") for each in inputs))
    tables = "\n".join(
        f"__device__ const double {name}[] = {{{', '.join(float(value).hex() for value in values)}}};"
        for values, name in o.tables.items()
    )
    return tables, "\n  ".join(o.statements), found.text
