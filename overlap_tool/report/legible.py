"""Names and messages made fit to be shown: they come from checkpoints and files that may be hostile."""

from __future__ import annotations

import unicodedata

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn"}
"""Categories of characters that no XML may hold, that a terminal obeys, or that turn the text around them."""


def legible(text: str) -> str:
    """The text with every character that cannot be seen replaced by a mark."""
    return "".join("\ufffd" if unicodedata.category(char) in HIDDEN else char for char in text)


def shortened(text: str, most: int) -> str:
    """At most so many characters: the middle of a dotted name says least."""
    text = legible(text)
    if len(text) <= most:
        return text
    ending = (most - 1) * 2 // 3
    return f"{text[: most - 1 - ending]}…{text[len(text) - ending :]}"
