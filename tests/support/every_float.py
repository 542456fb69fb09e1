"""Tries every float32 of a function against references that share no code with it.

    PYTHONPATH=tests python -m support.every_float exp log      # or no name: all; about three minutes each

A float64 value of PyTorch's, made by other programs and good to a few units in the last place, decides
wherever all that lies within 2**-44 of it is rounded alike. The rest, some thousand inputs a function, MPFR
decides. What differs is printed, with the exit status 1; where nothing does, the digest of all values goes
into overlap_tool/vectors/functions.json.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from typing import Any, NamedTuple

import gmpy2
import numpy as np
import torch

from overlap_tool.kernels.arithmetic.tensors import compute
from overlap_tool.kernels.arithmetic.vectors import FUNCTIONS, PUBLISHED, digest, sample

MARGIN = 2.0**-44
"""A hundred times what such float64 functions promise."""

BLOCK = 1 << 17

SINGLES = gmpy2.context(precision=24, emax=128, emin=-148, subnormalize=True)
PRECISE = gmpy2.context(precision=200)


class Hard(NamedTuple):
    """Inputs and correctly rounded values whose true value lies close to halfway between two float32."""

    inputs: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]

    @staticmethod
    def none() -> Hard:
        return Hard(np.empty(0, np.float32), np.empty(0, np.float32))


def truth(name: str, x: float) -> float:
    """The correctly rounded value, by MPFR."""
    with gmpy2.context(SINGLES):
        return float(_mpfr(name)(gmpy2.mpfr(x)))


def distance(name: str, x: float, y: float) -> float:
    """How far the true value lies from the nearest point halfway between two float32, as a part of it."""
    with gmpy2.context(PRECISE):
        value = _mpfr(name)(gmpy2.mpfr(x))
        here = np.float32(y)
        ends = [np.nextafter(here, np.float32(end)) for end in (-np.inf, np.inf)]
        halves = [(gmpy2.mpfr(float(here)) + gmpy2.mpfr(float(end))) / 2 for end in ends]
        return float(min(abs(value - half) for half in halves) / abs(value))


def _mpfr(name: str) -> Any:
    return getattr(gmpy2, {"rsqrt": "rec_sqrt"}.get(name, name))


_FIRST = torch.arange(BLOCK, dtype=torch.int32)


def floats(first: int) -> torch.Tensor:
    """A block of float32, in the order of their bits."""
    return (_FIRST + (first - (first >> 31 << 32))).view(torch.float32)


SATURATED = {"exp": 200.0, "exp2": 300.0, "expm1": 200.0, "tanh": 50.0, "erf": 50.0, "erfc": 50.0}
"""Monotonic functions whose float32 is the same from there on: PyTorch takes long for what overflows."""


class Judge:
    """Holds blocks of values to references. Its buffers stay in the cache."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.function = getattr(torch, name)
        self.limit = SATURATED.get(name)
        self.wide, self.end = (torch.empty(BLOCK, dtype=torch.float64) for _ in range(2))
        self.low, self.high = (torch.empty(BLOCK) for _ in range(2))

    def wrong(self, x: torch.Tensor, found: torch.Tensor) -> tuple[list[int], Hard]:
        """Where the values found are wrong, and what float64 could not decide. All that is no number becomes
        one."""
        self.wide.copy_(x)
        if self.limit is not None:
            self.wide.clamp_(-self.limit, self.limit)
        if self.name.startswith(("log", "sqrt", "rsqrt")) and bool(x[0] < -1) and bool(x[-1] < -1):
            self.wide.fill_(math.nan)
        else:
            self.function(self.wide, out=self.wide)
        for end, factor in ((self.low, 1 - MARGIN), (self.high, 1 + MARGIN)):
            end.copy_(torch.mul(self.wide, factor, out=self.end))
        # zeros have signs
        low, high, bits = (values.view(torch.int32) for values in (self.low, self.high, found))
        if torch.equal(low, bits) and torch.equal(high, bits):
            return [], Hard.none()
        unsure = (self.low != self.high).logical_and_(~self.low.isnan())
        nothing = self.low.isnan() & found.isnan()
        wrong, inputs, values = [], [], []
        for at in ((low != bits) & ~nothing | unsure).nonzero()[:, 0].tolist():
            value = float(self.low[at])
            if unsure[at]:
                value = truth(self.name, float(x[at]))
                inputs.append(float(x[at]))
                values.append(value)
            if not _same(value, float(found[at])):
                wrong.append(at)
        found[nothing] = torch.nan
        return wrong, Hard(np.array(inputs, np.float32), np.array(values, np.float32))


def _same(a: float, b: float) -> bool:
    return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b)


def check(name: str) -> bool:
    """Try all, print what is wrong, and store the digest if nothing is."""
    start = time.time()
    everything = hashlib.sha256()
    wrong_inputs, hard_inputs, hard_values = [], [], []
    judge = Judge(name)
    for first in range(0, 1 << 32, BLOCK):
        x = floats(first)
        found = compute(name, x)
        wrong, hard = judge.wrong(x, found)
        everything.update(found.numpy().tobytes())
        if len(hard.inputs):
            hard_inputs.append(hard.inputs)
            hard_values.append(hard.values)
        wrong_inputs += x[wrong].view(torch.int32).tolist()
    inputs, values = (
        np.concatenate([np.empty(0, np.float32), *those]) for those in (hard_inputs, hard_values)
    )
    print(
        f"{name}: {len(wrong_inputs)} wrong, {len(inputs)} by MPFR, {time.time() - start:.0f} s", flush=True
    )
    for one in wrong_inputs[:50]:
        x = float(np.array(one, np.int32).view(np.float32))
        print(f"  {one & 0xFFFFFFFF:#010x} {x!r}: {truth(name, x)!r}", flush=True)
    if not wrong_inputs:
        _store(name, everything.hexdigest(), inputs, values)
    return not wrong_inputs


def _store(name: str, every: str, inputs: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
    path = PUBLISHED / "functions.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    near = [distance(name, float(x), float(y)) for x, y in zip(inputs, values, strict=True)]
    hardest = sorted(np.argsort(near)[:32])
    known[name] = {
        "every float32": every,
        "sample": digest(compute(name, sample())),
        "hardest": {
            f"{int(inputs[i].view(np.uint32)):#010x}": f"{int(values[i].view(np.uint32)):#010x}"
            for i in hardest
        },
    }
    path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def main(names: list[str]) -> int:
    torch.set_num_threads(1)
    right = [check(name) for name in names or FUNCTIONS]
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
