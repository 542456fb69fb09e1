"""Text that came from outside made fit to be shown: names in files, and of files, may be hostile.

Every refusal, table, page and line on a terminal passes through here.
"""

from __future__ import annotations

import re
import unicodedata

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories of characters that no XML may hold, that a terminal obeys, or that turn the text around them."""

LONGEST_NAME = 200
LONGEST_TEXT = 4000
"""In characters. A name is whatever stands without a space: no word of ours is as long."""

_LONG_WORD = re.compile(rf"\S{{{LONGEST_NAME + 1},}}")


def legible(text: str) -> str:
    """A sentence or a cell: what cannot be seen is written as an escape, and what is too long is cut."""
    text = _escaped(_cut(text, LONGEST_TEXT))
    return _cut(_LONG_WORD.sub(lambda word: _cut(word[0], LONGEST_NAME), text), LONGEST_TEXT)


def shortened(text: str, most: int = LONGEST_NAME) -> str:
    """At most so many characters, legible: the middle of a dotted name says least."""
    return _cut(_escaped(_cut(text, most)), most)


def first_line(error: Exception) -> str:
    """Of what an error says; its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    ending = (most - 1) * 2 // 3
    return f"{text[: most - 1 - ending]}…{text[len(text) - ending :]}"


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in HIDDEN else char
        for char in text
    )
