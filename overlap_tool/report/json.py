"""An analysis or a certificate as one JSON object: a stable interface, described in docs/schema.md."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from fractions import Fraction
from typing import Any

from overlap_tool import __version__, verification
from overlap_tool.planning.analysis import SCHEMA, Analysis
from overlap_tool.verification import Certificate, SelfTest


def to_json(analysis: Analysis) -> str:
    return json.dumps({"schema": SCHEMA, "tool": __version__, **asdict(analysis)}, indent=2, default=_plain)


def certificate_to_json(certificate: Certificate) -> str:
    return json.dumps(
        {
            "schema": verification.SCHEMA,
            "tool": __version__,
            "verdict": certificate.verdict,
            **_finite(asdict(certificate)),
        },
        indent=2,
        allow_nan=False,
    )


def selftest_to_json(found: SelfTest) -> str:
    verdict = "holds" if found.holds else "differs"
    return json.dumps({"tool": __version__, "verdict": verdict, **asdict(found)}, indent=2)


def _finite(value: Any) -> Any:
    """The value with infinity and NaN as text, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> str:
    if isinstance(value, Fraction):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in a report")
