"""Fits the polynomials of `overlap_tool/kernels/arithmetic/functions.py`: prints `coefficients.py`.

Needs mpmath. The fits are Chebyshev's, near to the best, and are rounded to float64.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import mpmath as mp

mp.mp.dps = 60


def rounded(x: mp.mpf, bits: int = 53) -> mp.mpf:
    mantissa, exponent = mp.frexp(x)
    return mp.ldexp(mp.nint(mp.ldexp(mantissa, bits)), exponent - bits)


def truncated(x: mp.mpf, bits: int) -> mp.mpf:
    mantissa, exponent = mp.frexp(x)
    return mp.ldexp(mp.floor(mp.ldexp(mantissa, bits)), exponent - bits)


def fit(function: Callable[[mp.mpf], mp.mpf], low: float, high: float, count: int) -> list[mp.mpf]:
    """Coefficients from the highest power, and the largest error, as a power of two."""
    found, error = mp.chebyfit(function, [mp.mpf(low), mp.mpf(high)], count, error=True)
    print(f"# error 2**{float(mp.log(error, 2)):.1f}")
    return found


def pair(x: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    return rounded(x), x - rounded(x)


def literal(value: mp.mpf) -> str:
    return f'float.fromhex("{float(value).hex()}")'


def show(name: str, value: mp.mpf | int | tuple[mp.mpf, mp.mpf] | list[Any]) -> None:
    if isinstance(value, int):
        print(f"{name} = {value:#x}")
    elif isinstance(value, list):
        print(f"{name} = (")
        for one in value:
            shown = f"({literal(one[0])}, {literal(one[1])})" if isinstance(one, tuple) else literal(one)
            print(f"    {shown},")
        print(")")
    elif isinstance(value, tuple):
        print(f"{name} = ({literal(value[0])}, {literal(value[1])})")
    else:
        print(f"{name} = {literal(value)}")


def bits(x: float) -> int:
    return struct.unpack("<q", struct.pack("<d", x))[0]


def series(function: Callable[[mp.mpf], mp.mpf], limit: mp.mpf) -> Callable[[mp.mpf], mp.mpf]:
    """The function, with its limit near zero, where it is a quotient of what vanishes."""

    def compute(z: mp.mpf) -> mp.mpf:
        if abs(z) < mp.mpf(10) ** -14:
            return limit
        with mp.workdps(110):
            return function(z)

    return compute


def main() -> None:
    print('"""Constants of the elementary functions, written by `scripts/fit_functions.py`."""\n')
    ln2, pi = mp.log(2), mp.pi
    show("LOG2_E", rounded(1 / ln2))
    show("LOG2_E_LOW", 1 / ln2 - rounded(1 / ln2))
    show("LN2_HIGH", truncated(ln2, 32))
    show("LN2_LOW", ln2 - truncated(ln2, 32))
    show("LOG10_E", rounded(1 / mp.log(10)))
    show("LOG10_E_LOW", 1 / mp.log(10) - rounded(1 / mp.log(10)))
    show("LOG10_2_HIGH", truncated(mp.log10(2), 38))
    show("LOG10_2_LOW", mp.log10(2) - truncated(mp.log10(2), 38))
    show("ROOT_HALF_BITS", bits(float(mp.sqrt(0.5))))
    show("TWO_52_BITS", bits(2.0**52))
    show("TWO_OVER_PI", 2 / pi)
    first = truncated(pi / 2, 33)
    second = truncated(pi / 2 - first, 33)
    show("HALF_PI", [first, second, pi / 2 - first - second])
    show("HALF_PI_HIGH", rounded(pi / 2))
    show("HALF_PI_LOW", pi / 2 - rounded(pi / 2))
    with mp.workdps(400):
        digits = [int(mp.floor(mp.ldexp(2 / mp.pi, 24 * (k + 1)))) % (1 << 24) for k in range(50)]
    print(f"DIGITS_OF_TWO_OVER_PI = ({', '.join(map(str, digits))})")

    edge = float(ln2) / 2 + 1e-9
    show("EXP", fit(series(lambda r: (mp.expm1(r) - r) / r**2, mp.mpf(0.5)), -edge, edge, 11))
    show("EXP2", fit(series(lambda r: mp.expm1(r * ln2) / r, ln2), -0.5, 0.5, 11))

    def log(z: mp.mpf) -> mp.mpf:
        s = mp.sqrt(z)
        return (2 * mp.atanh(s) - 2 * s) / s**3

    show("LOG", fit(series(log, mp.mpf(2) / 3), 0, 0.0295, 9))
    show("ATAN", fit(series(lambda z: (mp.atan(mp.sqrt(z)) / mp.sqrt(z) - 1) / z, -mp.mpf(1) / 3), 0, 1, 21))
    quarter = 0.6169
    show(
        "SIN", fit(series(lambda z: (mp.sin(mp.sqrt(z)) / mp.sqrt(z) - 1) / z, -mp.mpf(1) / 6), 0, quarter, 7)
    )
    show("COS", fit(series(lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2, mp.mpf(1) / 24), 0, quarter, 7))
    slope = 2 / mp.sqrt(pi)
    show("ERF_SLOPE", rounded(slope))
    show("ERF_SLOPE_LOW", slope - rounded(slope))
    show("ERF", fit(series(lambda z: (mp.erf(mp.sqrt(z)) / mp.sqrt(z) - slope) / z, -slope / 3), 0, 1, 13))

    nearly = mp.mpf(2) ** -37
    show("NEARLY", nearly)

    def erf(u: mp.mpf) -> mp.mpf:
        x = mp.sqrt(u + 8)
        return (1 - nearly) * (mp.erf(x) / x if x else slope)

    show("NEARLY_ERF", fit(erf, -8, 8, 22))
    centre = 4
    show("ERFC_CENTRE", mp.mpf(centre))

    def erfc(y: mp.mpf) -> mp.mpf:
        x = centre * (1 + y) / (1 - y)
        return mp.exp(x * x) * mp.erfc(x) * (1 + 2 * x)

    scale = 2 / ln2
    show("LOG2_1", pair(scale))
    show("LOG2_3", pair(scale / 3))

    def of_quotient(z: mp.mpf) -> mp.mpf:
        s = mp.sqrt(z)
        return scale * (mp.atanh(s) / s - 1 - z / 3) / z**2

    show("LOG2_OF_QUOTIENT", fit(series(of_quotient, scale / 5), 0, 0.0295, 10))
    show("LOG2_PAIRS", [pair(scale / (2 * k + 1)) for k in range(21, -1, -1)])
    show("LN2_PAIR", pair(ln2))
    show("EXP_PAIRS", [pair(1 / mp.factorial(k)) for k in range(26, -1, -1)])
    show("ERFC", fit(erfc, -3.5 / 4.5, 24.0 / 32, 24))


if __name__ == "__main__":
    main()
