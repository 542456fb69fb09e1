"""What commands print for people beside their results."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from overlap_tool.legible import legible


def say(text: str, kind: str = "", colour: str = "red") -> None:
    """One line on stderr, after what kind of message it is."""
    mark = (f"{kind}: ", colour) if kind else ""
    Console(stderr=True).print(Text.assemble(mark, legible(text)), soft_wrap=True)
