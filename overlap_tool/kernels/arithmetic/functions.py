"""The elementary functions, each described once, for every backend.

A description is a program of additions, products, quotients, square roots and fused multiply-adds of float64,
of comparisons and selections, and of integer operations on the bits of a float64. `o` computes them: by numpy
(`oracle`), or as LLVM IR (`generated`) or CUDA (`in_cuda`). A program is accurate to about 2**-52; for
float32, whose programs get `o.single`, its value is rounded once more. This is the correctly rounded value
for every float32 except those in `HALFWAY`, which `python -m support.every_float` verifies by trying all.

`o.rarely(mask, compute, otherwise)` is `o.where(mask, compute(), otherwise)`, computed only if some lane
needs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from overlap_tool.kernels.arithmetic import coefficients as c

Number = Any
"""Values of a backend, with Python's operators: float64, 64-bit integers, or truth values."""

ROUNDER = 1.5 * 2.0**52
"""Added to a number below 2**51, it leaves the nearest integer in the last bits."""

ONE = 0x3FF << 52
"""The bits of 1."""


def polynomial(o: Any, coefficients: Sequence[float], x: Number) -> Number:
    """Horner's scheme, from the highest power."""
    first, second, *rest = coefficients
    y = o.fma(x, first, second)
    for coefficient in rest:
        y = o.fma(y, x, coefficient)
    return y


def two_sum(a: Number, b: Number) -> tuple[Number, Number]:
    """a + b, rounded, and the rounding error."""
    total = a + b
    share = total - a
    return total, (a - (total - share)) + (b - share)


def two_product(o: Any, a: Number, b: Number) -> tuple[Number, Number]:
    """a * b, rounded, and the rounding error."""
    product = a * b
    return product, o.fma(a, b, -product)


def clamp(o: Any, x: Number, low: float, high: float) -> Number:
    """NaN is unchanged."""
    x = o.where(x < low, low, x)
    return o.where(x > high, high, x)


def nearest(o: Any, x: Number, factor: float = 1.0) -> tuple[Number, Number]:
    """The integer nearest to x * factor, and bits that end in those of that integer."""
    t = x + ROUNDER if factor == 1.0 else o.fma(x, factor, ROUNDER)
    return t - ROUNDER, o.bits(t)


def scale(o: Any, x: Number, n: Number, bits: Number) -> Number:
    """x * 2**n, for n as `nearest` gives it."""
    if o.single:  # no power of two leaves float64's range
        return o.number(o.bits(x) + (bits << 52))
    half, half_bits = nearest(o, n * 0.5)
    _, rest_bits = nearest(o, n - half)
    return x * o.number((half_bits << 52) + ONE) * o.number((rest_bits << 52) + ONE)


def exp(o: Any, x: Number) -> Number:
    """exp(x) = 2**n * 2**r, where n + r = x / log(2)"""
    x = clamp(o, x, -120.0, 100.0) if o.single else clamp(o, x, -800.0, 800.0)
    n, bits = nearest(o, x, c.LOG2_E)
    r = o.fma(x, c.LOG2_E_LOW, o.fma(x, c.LOG2_E, -n))
    return scale(o, o.fma(r, polynomial(o, c.EXP2, r), 1.0), n, bits)


def exp2(o: Any, x: Number) -> Number:
    x = clamp(o, x, -180.0, 140.0) if o.single else clamp(o, x, -1200.0, 1200.0)
    n, bits = nearest(o, x)
    r = x - n
    return scale(o, o.fma(r, polynomial(o, c.EXP2, r), 1.0), n, bits)


def _expm1(o: Any, x: Number) -> Number:
    """expm1 of numbers between -40 and 710; the sign of zero may be lost."""
    n, bits = nearest(o, x, c.LOG2_E)
    r = o.fma(n, -c.LN2_LOW, o.fma(n, -c.LN2_HIGH, x))
    s = o.fma(r * r, polynomial(o, c.EXP, r), r)
    half = o.number(((bits - 1) << 52) + ONE)  # 2**(n - 1), which is a float64 even for n = 1024
    return o.fma(half, s, half - 0.5) * 2.0


def expm1(o: Any, x: Number) -> Number:
    return o.copysign(_expm1(o, clamp(o, x, -40.0, 100.0 if o.single else 710.0)), x)


def tanh(o: Any, x: Number) -> Number:
    power = _expm1(o, clamp(o, o.abs(x) * 2.0, 0.0, 40.0))
    return o.copysign(power / (power + 2.0), x)


def _logarithm(o: Any, x: Number) -> tuple[Number, Number, Number]:
    """e, f and t with x = 2**e * (1 + f) and log(1 + f) = f - t, for a positive normal x."""
    bits = o.bits(x)
    above = bits + (ONE - c.ROOT_HALF_BITS)
    e = o.number(o.upper(above, 52) | c.TWO_52_BITS) - (2.0**52 + 1023.0)
    f = o.number(bits - (above & -(1 << 52)) + ONE) - 1.0
    s = f / (f + 2.0)
    z = s * s
    half = f * f * 0.5
    return e, f, half - s * o.fma(z, polynomial(o, c.LOG, z), half)


def _of_positive(o: Any, compute: Callable[[Number, Number], Number], x: Number) -> Number:
    """A logarithm, given `compute(y, e)` for y * 2**e: minus infinity for zero, NaN for negative numbers."""
    if o.single:
        y = compute(x, 0.0)
    else:
        small = x < 2.0**-1022
        y = compute(o.where(small, x * 2.0**54, x), o.where(small, -54.0, 0.0))
    special = o.where(x > 0.0, x, o.where(x == 0.0, -math.inf, x - x + math.nan))
    return o.rarely(~((x > 0.0) & (x < math.inf)), lambda: special, y)


def log(o: Any, x: Number) -> Number:
    def compute(x: Number, more: Number) -> Number:
        e, f, t = _logarithm(o, x)
        e = e if o.single else e + more
        return o.fma(e, c.LN2_HIGH, f - (t - e * c.LN2_LOW))

    return _of_positive(o, compute, x)


def _log_to_base(o: Any, x: Number, high: float, low: float, unit: tuple[float, float]) -> Number:
    """log(x) * (high + low); every power of two adds the sum of the two numbers in `unit`."""

    def compute(x: Number, more: Number) -> Number:
        e, f, t = _logarithm(o, x)
        e = e if o.single else e + more
        product, rest = two_product(o, f, high)
        rest = o.fma(f, low, o.fma(t, -high, rest))
        whole = e * unit[0]
        total = whole + product
        return total + (((whole - total) + product) + o.fma(e, unit[1], rest))

    return _of_positive(o, compute, x)


def log2(o: Any, x: Number) -> Number:
    return _log_to_base(o, x, c.LOG2_E, c.LOG2_E_LOW, (1.0, 0.0))


def log10(o: Any, x: Number) -> Number:
    return _log_to_base(o, x, c.LOG10_E, c.LOG10_E_LOW, (c.LOG10_2_HIGH, c.LOG10_2_LOW))


def log1p(o: Any, x: Number) -> Number:
    u = x + 1.0
    lost = x - (u - 1.0)
    rest = o.where(x < 1.0, lost, 0.0) if o.single else lost / u
    e, f, t = _logarithm(o, u)
    y = o.fma(e, c.LN2_HIGH, f - (t - o.fma(e, c.LN2_LOW, rest)))
    special = o.where(x > 0.0, x, o.where(x == -1.0, -math.inf, x - x + math.nan))
    y = o.rarely(~((x > -1.0) & (x < math.inf)), lambda: special, y)
    return o.where(x == 0.0, x, y)


def atan(o: Any, x: Number) -> Number:
    size = o.abs(x)
    large = size > 1.0
    y = o.where(large, -1.0, size) / o.where(large, size, 1.0)
    z = y * y
    rest = y * z * polynomial(o, c.ATAN, z)
    turned = c.HALF_PI_HIGH + (y + (rest + c.HALF_PI_LOW))
    return o.copysign(o.where(large, turned, y + rest), x)


def _reduced(o: Any, x: Number) -> tuple[Number, Number, Number]:
    """The nearest multiple n of pi / 2, as `nearest` gives it, and x - n * pi / 2 as a sum of two numbers."""
    n, bits = nearest(o, x, c.TWO_OVER_PI)
    first = o.fma(n, -c.HALF_PI[0], x)
    high, low = two_sum(first, n * -c.HALF_PI[1])
    low = o.fma(n, -c.HALF_PI[2], low)
    high, low = high + low, (high - (high + low)) + low
    far = ~(o.abs(x) < 2.0**20)
    return o.rarely(
        far,
        lambda: _reduced_from_afar(o, x),
        (bits, high, low),
    )


def _reduced_from_afar(o: Any, x: Number) -> tuple[Number, Number, Number]:
    """Payne's and Hanek's reduction: only those digits of 2 / pi count whose products are no multiples of
    four.

    `DIGITS_OF_TWO_OVER_PI` have 24 bits each. A product of one with half of the digits of x is exact.
    """
    size = o.where(o.abs(x) < math.inf, o.abs(x), 1.0)
    exponent = o.upper(o.bits(size), 52) - 1023
    above = o.where(exponent > 54, exponent - 54, 0)
    first = o.upper(above * 2731, 16)  # above / 24, rounded down
    size = size * o.number(ONE - ((first * 24) << 52))
    upper = o.number(o.bits(size) & -(1 << 27))
    total, rest = x * 0.0, x * 0.0
    for k in range(9):
        digits = o.table(c.DIGITS_OF_TWO_OVER_PI, first + k) * 2.0 ** (-24 * (k + 1))
        for part in (upper, size - upper):
            product = part * digits
            quarter = (product * 0.25 + ROUNDER) - ROUNDER
            product = o.where(product < 2.0**53, product - quarter * 4.0, 0.0)
            total, left = two_sum(total, product)
            rest = rest + left
    n, bits = nearest(o, total)
    total, rest = two_sum(total - n, rest)
    high, low = two_product(o, total, c.HALF_PI_HIGH)
    low = o.fma(total, c.HALF_PI_LOW, o.fma(rest, c.HALF_PI_HIGH, low))
    negative = x < 0.0
    bits = o.where(negative, 0 - (bits & 3), bits & 3)
    nothing = x - x  # NaN for infinity
    return bits, o.where(negative, -high, high) + nothing, o.where(negative, -low, low)


def _sine(o: Any, high: Number, low: Number) -> Number:
    """The sine of high + low, between -pi / 4 and pi / 4, without its first term, which is `high`."""
    z = high * high
    return o.fma(high * z, polynomial(o, c.SIN, z), low)


def _cosine(o: Any, high: Number, low: Number) -> Number:
    z = high * high
    half = z * 0.5
    near = 1.0 - half
    return near + (((1.0 - near) - half) + o.fma(z * z, polynomial(o, c.COS, z), -(high * low)))


def _turned(o: Any, x: Number, quarters: int) -> Number:
    """sin(x + quarters * pi / 2)"""
    bits, high, low = _reduced(o, x)
    bits = bits + quarters
    y = o.where((bits & 1) == 0, high + _sine(o, high, low), _cosine(o, high, low))
    return o.number(o.bits(y) ^ ((bits & 2) << 62))


def sin(o: Any, x: Number) -> Number:
    return o.where(x == 0.0, x, _turned(o, x, 0))


def cos(o: Any, x: Number) -> Number:
    return _turned(o, x, 1)


def tan(o: Any, x: Number) -> Number:
    bits, high, low = _reduced(o, x)
    rest, cosine = _sine(o, high, low), _cosine(o, high, low)
    sine = high + rest
    odd = (bits & 1) == 1
    over, under = o.where(odd, -cosine, sine), o.where(odd, sine, cosine)
    return o.where(x == 0.0, x, over / under)


def _erf_near(o: Any, x: Number) -> Number:
    """erf(x) for magnitudes up to 1."""
    z = x * x
    return o.fma(x, c.ERF_SLOPE, x * o.fma(z, polynomial(o, c.ERF, z), c.ERF_SLOPE_LOW))


def _erfc_far(o: Any, x: Number) -> Number:
    """erfc(x) for x from 0.5: exp(-x * x) times a polynomial in (x - k) / (x + k)."""
    square, low = two_product(o, x, x)
    y = (x - c.ERFC_CENTRE) / (x + c.ERFC_CENTRE)
    slow = polynomial(o, c.ERFC, y) / (x * 2.0 + 1.0)
    power = exp(o, -square)
    return o.fma(slow, power, -(slow * power) * low)


def erfc(o: Any, x: Number) -> Number:
    size = clamp(o, o.abs(x), 0.0, 28.0)
    near = 1.0 - _erf_near(o, x)
    far = _erfc_far(o, size)
    return o.where(size < 0.5, near, o.where(x < 0.0, 2.0 - far, far))


def erf(o: Any, x: Number) -> Number:
    size = clamp(o, o.abs(x), 0.0, 6.0)
    return o.copysign(o.where(size < 1.0, _erf_near(o, size), 1.0 - _erfc_far(o, size)), x)


def rsqrt(o: Any, x: Number) -> Number:
    if not o.single:
        return 1.0 / o.sqrt(x)
    near = o.widen(1.0 / o.sqrt(o.narrow(x)))  # accurate to 2**-22, so the next step is accurate to 2**-52
    rest = o.fma(-(x * near), near, 1.0)
    y = o.fma(near * rest, o.fma(rest, 0.375, 0.5), near)
    return o.where((x > 0.0) & (x < math.inf), y, near)


Pair = tuple[Number, Number]
"""The sum of two numbers, of which the second is below the last bit of the first."""


def _ordered_sum(a: Number, b: Number) -> Pair:
    """a + b, rounded, and the rounding error, where b is not the larger."""
    total = a + b
    return total, (a - total) + b


def _pair_sum(a: Pair, b: Pair) -> Pair:
    total, rest = two_sum(a[0], b[0])
    small, smaller = two_sum(a[1], b[1])
    total, rest = _ordered_sum(total, rest + small)
    return _ordered_sum(total, rest + smaller)


def _pair_product(o: Any, a: Pair, b: Pair) -> Pair:
    product, rest = two_product(o, a[0], b[0])
    return _ordered_sum(product, o.fma(a[0], b[1], o.fma(a[1], b[0], rest)))


def _pair_polynomial(o: Any, coefficients: Sequence[tuple[float, float]], x: Pair) -> Pair:
    y: Pair = _pair_sum(_pair_product(o, x, coefficients[0]), coefficients[1])
    for coefficient in coefficients[2:]:
        y = _pair_sum(_pair_product(o, x, y), coefficient)
    return y


def _quotient_of_logarithm(o: Any, x: Number) -> tuple[Number, Pair]:
    """e and s with x = 2**e * (1 + s) / (1 - s), for a positive x."""
    more: Number = 0.0
    if not o.single:
        small = x < 2.0**-1022
        x, more = o.where(small, x * 2.0**54, x), o.where(small, -54.0, 0.0)
    bits = o.bits(x)
    above = bits + (ONE - c.ROOT_HALF_BITS)
    e = o.number(o.upper(above, 52) | c.TWO_52_BITS) - (2.0**52 + 1023.0)
    f = o.number(bits - (above & -(1 << 52)) + ONE) - 1.0
    under = f + 2.0
    left = f - (under - 2.0)
    s = f / under
    return e + more, (s, o.fma(-s, left, o.fma(-s, under, f)) / under)


def _power(o: Any, x: Number, y: Number) -> Number:
    """x**y for a positive x, within about 2**-52."""
    e, s = _quotient_of_logarithm(o, x)
    z = _pair_product(o, s, s)
    rest = z[0] * polynomial(o, c.LOG2_OF_QUOTIENT, z[0])
    inner = _pair_product(o, z, _ordered_sum(c.LOG2_3[0], rest + c.LOG2_3[1]))
    logarithm = _pair_product(o, s, _pair_sum(c.LOG2_1, inner))
    logarithm = _pair_sum((e, 0.0), logarithm)
    product, left = two_product(o, y, logarithm[0])
    left = o.fma(y, logarithm[1], left)
    limit = 200.0 if o.single else 1200.0
    ordinary = o.abs(product) < limit
    product, left = clamp(o, product, -limit, limit), o.where(ordinary, left, 0.0)
    n, bits = nearest(o, product)
    r = (product - n) + left
    return scale(o, o.fma(r, polynomial(o, c.EXP2, r), 1.0), n, bits)


def _power_of_singles(o: Any, x: Number, y: Number) -> Number:
    """x**y for a positive x, in pairs of numbers, within about 2**-90, rounded to odd.

    For numbers with 24 bits, only powers by a multiple of 1 / 8 can be representable, or lie halfway between
    two such numbers; a value as close as that to such a point is that point.
    """
    e, s = _quotient_of_logarithm(o, x)
    z = _pair_product(o, s, s)
    logarithm = _pair_product(o, s, _pair_polynomial(o, c.LOG2_PAIRS, z))
    logarithm = _pair_sum((e, 0.0), logarithm)
    product = _pair_product(o, logarithm, (y, 0.0))
    whole = clamp(o, product[0], -200.0, 200.0)
    n, bits = nearest(o, whole)
    r = _pair_product(o, _ordered_sum(whole - n, product[1]), c.LN2_PAIR)
    high, low = _pair_polynomial(o, c.EXP_PAIRS, r)
    near = (high + 1.5 * 2.0**27) - 1.5 * 2.0**27
    eighths = y * 8.0
    is_it = (o.abs((high - near) + low) < 2.0**-75) & (o.abs(eighths) < 256.0)
    is_it = is_it & (nearest(o, eighths)[0] == eighths)
    even = ((o.bits(high) & 1) == 0) & ((low > 0.0) | (low < 0.0))
    odd = o.number(o.bits(high) + o.where(even, o.where(low > 0.0, 1, -1), 0))
    return scale(o, o.where(is_it, near, odd), n, bits)


def _any_power(o: Any, x: Number, y: Number, compute: Callable[[Number, Number], Number]) -> Number:
    """x**y with all of IEEE 754's special cases; `compute` handles positive x."""
    size, exponent = o.abs(x), o.abs(y)
    ordinary = (size > 0.0) & (size < math.inf) & (exponent < math.inf)
    magnitude = compute(o.where(ordinary, size, 1.0), o.where(ordinary, y, 1.0))
    grows = (size > 1.0) & (y > 0.0) | (size < 1.0) & (y < 0.0)
    magnitude = o.where(ordinary, magnitude, o.where(grows, math.inf, o.where(size == 1.0, 1.0, 0.0)))
    shifted = exponent + 2.0**52
    large = ~(exponent < 2.0**52)
    whole = large | ((shifted - 2.0**52) == exponent)
    last = o.where(large, o.bits(exponent) & o.where(exponent < 2.0**53, 1, 0), o.bits(shifted) & 1)
    negative = o.bits(x) < 0
    signed = o.where(negative & whole & (last == 1), -magnitude, magnitude)
    without = negative & ~whole & (size > 0.0) & (size < math.inf)
    nothing = without | ~(size == size) | ~(y == y)
    y_is_zero = exponent == 0.0
    return o.where((x == 1.0) | y_is_zero, 1.0, o.where(nothing, math.nan, signed))


def pow(o: Any, x: Number, y: Number) -> Number:
    compute = _power_of_singles if o.single else _power
    return _any_power(o, x, y, lambda x, y: compute(o, x, y))


def _nearly_pow(o: Any, x: Number, y: Number) -> Number:
    return _any_power(o, x, y, lambda x, y: _power(o, x, y)) * (1.0 - c.NEARLY)


def rounded(o: Any, name: str, *xs: Number) -> Number:
    """A function of numbers in the tensors' own precision."""
    wide = tuple(o.widen(x) for x in xs)
    if o.single and name in NEARLY:
        below = NEARLY[name](o, *wide)
        low, high = o.narrow(below), o.narrow(o.fma(below, 2 * c.NEARLY, below))
        return o.rarely(~(low == high), lambda: o.narrow(PROGRAMS[name](o, *wide)), low)
    y = PROGRAMS[name](o, *wide)
    found = o.narrow(y)
    if not (o.single and name in HALFWAY):
        return found
    halfway = (o.bits(y) & ((1 << 29) - 1)) == 1 << 28
    return o.rarely(halfway, lambda: _looked_up(o, HALFWAY[name], xs[0], found), found)


def _looked_up(o: Any, table: Sequence[tuple[str, str]], x: Number, y: Number) -> Number:
    for given, value in table:
        y = o.where(x == float.fromhex(given), float.fromhex(value), y)
    return y


HALFWAY: dict[str, tuple[tuple[str, str], ...]] = {
    "exp2": (("0x1.853a6ep-9", "0x1.00870ap+0"), ("-0x1.e7526ep-6", "0x1.f58d62p-1")),
    "log": (
        ("0x1.827a74p-7", "-0x1.1c2b1ep+2"),
        ("0x1.2f1fd6p+3", "0x1.1fcbcep+1"),
        ("0x1.bacb4ap+25", "0x1.1e0696p+4"),
        ("0x1.b121a6p+76", "0x1.a9a3f2p+5"),
        ("0x1.6351d8p+95", "0x1.08b512p+6"),
    ),
    "log10": (("0x1.fddcf4p-98", "-0x1.d33a46p+4"),),
    "log1p": (
        ("0x1.800006p-21", "0x1.7ffffep-21"),
        ("0x1.200036p-17", "0x1.1fffe6p-17"),
        ("0x1.fb035ap-2", "0x1.9bddc2p-2"),
        ("0x1.0f1fd6p+3", "0x1.1fcbcep+1"),
        ("0x1.b121a6p+76", "0x1.a9a3f2p+5"),
        ("0x1.6351d8p+95", "0x1.08b512p+6"),
        ("-0x1.7ffffap-21", "-0x1.800002p-21"),
        ("-0x1.1fffcap-17", "-0x1.20001ap-17"),
        ("-0x1.1d9188p-9", "-0x1.1de14ap-9"),
    ),
    "sin": (("0x1.333330p+13", "-0x1.63f4bap-2"), ("-0x1.333330p+13", "0x1.63f4bap-2")),
    "cos": (
        ("0x1.3170f0p+63", "0x1.fe2976p-1"),
        ("0x1.2b9622p+67", "0x1.f0285ep-1"),
        ("-0x1.3170f0p+63", "0x1.fe2976p-1"),
        ("-0x1.2b9622p+67", "0x1.f0285ep-1"),
    ),
    "atan": (("0x1.1ad646p-4", "0x1.1a6386p-4"), ("-0x1.1ad646p-4", "-0x1.1a6386p-4")),
    "erfc": (("-0x1.d93ec4p-17", "0x1.00010ap+0"),),
}
"""Float32 arguments whose float64 values look halfway between two results, but are not, and their results."""


def _nearly_erf(o: Any, x: Number) -> Number:
    x = clamp(o, x, -4.0, 4.0)
    return x * polynomial(o, c.NEARLY_ERF, o.fma(x, x, -8.0))


NEARLY: dict[str, Callable[..., Number]] = {"erf": _nearly_erf, "pow": _nearly_pow}
"""Shorter programs for float32, whose value y is closer to zero than the true one, while y + 2 * c.NEARLY * y
is not. If both round to the same float32, that is the value."""

PROGRAMS: dict[str, Callable[..., Number]] = {
    function.__name__: function
    for function in (
        *(exp, exp2, expm1, log, log2, log10, log1p, sin, cos, tan, atan, tanh, erf, erfc),
        *(rsqrt, pow),
    )
}
