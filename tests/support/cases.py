"""How many cases a property test tries: a few every time, thousands with new seeds when CASES says so.

A test that says no number tries 100, or as many as CASES says (`conftest.py`).
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

CASES = int(os.environ.get("CASES", "0"))


def tries(count: int, **options: Any) -> settings:
    """`CASES=12000 pytest ...` tries as many instead, drawn anew every time, whatever the options say."""
    if CASES:
        options["derandomize"] = False
    return settings(max_examples=CASES or count, deadline=None, **options)
