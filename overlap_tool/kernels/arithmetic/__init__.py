"""The exact engine's arithmetic on single numbers, as docs/arithmetic.md defines it."""

VERSION = "1"
"""Of that page. Another one has other bits."""
