"""Makes text from outside printable: names in files, and names of files, may be hostile.

Every error, table, page and line on a terminal passes through here.
"""

from __future__ import annotations

import re
import unicodedata

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that XML cannot hold, that control a terminal, or that reorder the text around them."""

LONGEST_NAME = 200
LONGEST_TEXT = 4000
"""Lengths at which text and names are cut, in characters. A name is any run without spaces; no English word
is as long."""

_LONG_WORD = re.compile(rf"\S{{{LONGEST_NAME + 1},}}")


def legible(text: str) -> str:
    """A sentence or a cell, with invisible characters escaped and overlong text cut."""
    text = _escaped(_cut(text, LONGEST_TEXT))
    return _cut(_LONG_WORD.sub(lambda word: _cut(word[0], LONGEST_NAME), text), LONGEST_TEXT)


def shortened(text: str, most: int = LONGEST_NAME) -> str:
    """At most `most` characters, printable: the middle of a dotted name is left out first."""
    return _cut(_escaped(_cut(text, most)), most)


def first_line(error: Exception) -> str:
    """The first line of an error's message; the error's type if it has none."""
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
