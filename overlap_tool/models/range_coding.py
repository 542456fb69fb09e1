"""Reading strings of CompressAI's range coder, which come from files that nobody has vouched for."""

from __future__ import annotations

from typing import Any


def decoder_of(string: bytes, symbols: int) -> Any:
    """CompressAI's decoder of a string from which so many symbols will be read, whatever the string is."""
    from compressai.ans import RansDecoder

    decoder = RansDecoder()
    decoder.set_stream(guarded(string, symbols))
    return decoder


def guarded(string: bytes, symbols: int) -> bytes:
    """The string with as many zeros after it as a decoder that has lost its way can read.

    CompressAI's decoder does not look where the string ends. It reads at most four bytes for a symbol. For a
    symbol past its table it also reads a number whose length the string tells: 15 * 4 bits for each 4 of it.
    """
    return string + bytes(4 * symbols + 16 * len(string) + 64)
