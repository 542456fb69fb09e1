"""The exact engine's arithmetic on single numbers, as docs/arithmetic.md defines it."""

VERSION = "1"
"""The version of the arithmetic on that page. Another version gives other bits."""
