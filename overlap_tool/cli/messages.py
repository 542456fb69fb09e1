"""Messages for people that commands print beside their results."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from overlap_tool.legible import legible


def say(text: str, kind: str = "", colour: str = "red") -> None:
    """Print one line on stderr, preceded by the kind of message."""
    mark = (f"{kind}: ", colour) if kind else ""
    Console(stderr=True).print(Text.assemble(mark, legible(text)), soft_wrap=True)
