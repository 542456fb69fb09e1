"""An analysis as one JSON object: an interface, described in docs/schema.md."""

from __future__ import annotations

import json
from dataclasses import asdict
from fractions import Fraction
from typing import Any

from overlap_tool import __version__
from overlap_tool.analysis import SCHEMA, Analysis


def to_json(analysis: Analysis) -> str:
    return json.dumps({"schema": SCHEMA, "tool": __version__, **asdict(analysis)}, indent=2, default=_plain)


def _plain(value: Any) -> str:
    if isinstance(value, Fraction):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in a report")
