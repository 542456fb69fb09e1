"""Safe use of CompressAI's range coder on strings from untrusted files.

CompressAI's decoder does not check where the string ends, and its encoder wraps around at large symbols, and
may end the process at one or two. Entropy models, a model's own loops and plugins all use its classes, so the
checks are put into the methods of these classes: nothing has to be known about the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from copy import deepcopy
from functools import cache, wraps
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from overlap_tool.errors import ContainerError, WeightsError
from overlap_tool.settings import inside

MOST = 1 << 26
"""The largest symbol, of either sign. The encoder doubles a symbol's distance beyond its table, and stores at
most 28 bits of it."""

_expected: ContextVar[int | None] = ContextVar("expected", default=None)
_installing = Lock()


def reading_at_most(symbols: int) -> AbstractContextManager[int]:
    """Inside, at most `symbols` symbols can be read from a string, by whichever decoder gets it."""
    return inside(_expected, symbols)


def decoder_of(string: bytes, symbols: int) -> Any:
    """CompressAI's decoder of an untrusted string from which `symbols` symbols will be read."""
    decoder = _bare("RansDecoder")()
    decoder.set_stream(guarded(string, symbols))
    return decoder


def buffered_encoder() -> Any:
    """CompressAI's encoder, for symbols that passed `refuse_wild`."""
    return _bare("BufferedRansEncoder")()


def guarded(string: bytes, symbols: int) -> bytes:
    """The string, followed by as many zeros as a decoder of a corrupt string can read.

    The decoder reads at most four bytes per symbol. For a symbol beyond its table it also reads a number
    whose length the string states: up to 15 * 4 bits for every 4 bits of length.
    """
    return string + bytes(guarded_bytes(len(string), symbols) - len(string))


def guarded_bytes(string: int, symbols: int) -> int:
    """The length of such a string, from its own length."""
    return 4 * symbols + 17 * string + 64


SYMBOLS_AT_ONCE = 1 << 18
"""How many symbols are passed to the coder at once, as lists of Python integers."""


def encoded(symbols: Tensor, indexes: Tensor, *tables: Tensor) -> bytes:
    """The string of a sequence of symbols, each with its table's number; `tables` as the encoder
    takes them."""
    refuse_wild(symbols, read=False)
    encoder = buffered_encoder()
    encode_in_pieces(encoder, symbols, indexes, *(table.tolist() for table in tables))
    string: bytes = encoder.flush()
    return string


def encode_in_pieces(encoder: Any, symbols: Tensor, indexes: Tensor, *tables: list[Any]) -> None:
    """Pass a sequence of symbols to an encoder, without a list of all."""
    for part, where in zip(symbols.split(SYMBOLS_AT_ONCE), indexes.split(SYMBOLS_AT_ONCE), strict=True):
        encoder.encode_with_indexes(part.tolist(), where.tolist(), *tables)


def decode_in_pieces(decoder: Any, indexes: Tensor, *tables: list[Any]) -> Tensor:
    """The next symbols of a decoder, by the numbers of their tables, without a list of all."""
    parts = (decoder.decode_stream(where.tolist(), *tables) for where in indexes.split(SYMBOLS_AT_ONCE))
    return torch.cat([torch.tensor(part, dtype=torch.int32) for part in parts])


def refuse_wild(symbols: Tensor, read: bool) -> None:
    """Raise for symbols that the coder cannot code; `read` if they were decoded from a string."""
    if symbols.numel():
        least, most = symbols.aminmax()
        _refuse_wild(int(least), int(most), read)


def guard() -> None:
    """Make CompressAI's coder read zeros after a string's end, and refuse symbols beyond `MOST`.

    The number of symbols in a string is known when it is decoded at once, and otherwise inside
    `reading_at_most`; other uses of a decoder are left alone.
    """
    with _installing:
        _methods()


@cache
def _methods() -> dict[str, dict[str, Callable[..., Any]]]:
    """The classes' methods, which checked ones have replaced: their own, but for few symbols."""
    from compressai import ans

    left: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def set_stream(own: Callable[..., Any], decoder: Any, string: bytes) -> Any:
        symbols = _expected.get()
        if symbols is None:
            left.pop(decoder, None)
            return own(decoder, string)
        left[decoder] = symbols
        return own(decoder, guarded(string, symbols))

    def decode_stream(own: Callable[..., Any], decoder: Any, indexes: Sequence[int], *tables: Any) -> Any:
        if decoder in left:
            left[decoder] -= len(indexes)
            if left[decoder] < 0:
                raise ContainerError(
                    "a string",
                    "more symbols are read from it than the maps of its model have",
                    "Decode it by the model's own decompress",
                )
        return _tame(own(decoder, indexes, *tables), read=True)

    def decode_with_indexes(
        own: Callable[..., Any], decoder: Any, string: bytes, indexes: Sequence[int], *tables: Any
    ) -> Any:
        return _tame(own(decoder, guarded(string, len(indexes)), indexes, *tables), read=True)

    def encode_with_indexes(own: Callable[..., Any], encoder: Any, symbols: Sequence[int], *rest: Any) -> Any:
        return own(encoder, _tame(symbols, read=False), *rest)

    checked: dict[str, dict[str, Callable[..., Any]]] = {
        "RansDecoder": {
            "set_stream": set_stream,
            "decode_stream": decode_stream,
            "decode_with_indexes": decode_with_indexes,
        },
        "RansEncoder": {"encode_with_indexes": encode_with_indexes},
        "BufferedRansEncoder": {"encode_with_indexes": encode_with_indexes},
    }
    before: dict[str, dict[str, Callable[..., Any]]] = {
        "RansDecoder": {name: getattr(ans.RansDecoder, name) for name in checked["RansDecoder"]},
        "RansEncoder": _for_few_at_once(ans.RansEncoder.encode_with_indexes),
        "BufferedRansEncoder": _for_few(
            ans.BufferedRansEncoder.encode_with_indexes, ans.BufferedRansEncoder.flush
        ),
    }
    for kind, methods in before.items():
        for name, own in methods.items():
            method = checked[kind].get(name)
            setattr(getattr(ans, kind), name, own if method is None else _in_place_of(own, method))
    return before


def _for_few_at_once(encode: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The method of an encoder that gets all symbols at once."""

    def encode_with_indexes(encoder: Any, *call: Any) -> Any:
        return _few_encoded([call]) or encode(encoder, *call)

    return {"encode_with_indexes": encode_with_indexes}


def _for_few(encode: Callable[..., Any], flush: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The methods of a buffered encoder, which gets the first symbols when it is clear that there are
    enough."""
    waiting: WeakKeyDictionary[Any, list[Any] | None] = WeakKeyDictionary()
    """The calls that wait; None once the encoder has got them."""

    def encode_with_indexes(encoder: Any, *call: Any) -> None:
        calls = waiting.get(encoder, [])
        waiting[encoder] = None
        if calls is not None and sum(len(symbols) for symbols, *_ in (*calls, call)) <= FEW:
            waiting[encoder] = [*calls, deepcopy(call)]  # the caller may use its lists again
            return
        for each in (*(calls or ()), call):
            encode(encoder, *each)

    def flushed(encoder: Any) -> Any:
        calls = waiting.pop(encoder, [])
        if calls is not None and (string := _few_encoded(calls)):
            return string
        for each in calls or ():
            encode(encoder, *each)
        return flush(encoder)

    return {"encode_with_indexes": encode_with_indexes, "flush": flushed}


FEW = 2
"""The most symbols for which CompressAI's encoder may write in front of its memory: that has a word for each,
and the string of one symbol has two, of two symbols up to three."""


def _few_encoded(calls: Sequence[Any]) -> bytes | None:
    """The string of no more than these, as CompressAI would write it; None for more symbols, and for one
    outside of its table, for which it makes room."""
    coded = [
        (tables[index], int(lengths[index]), int(symbol) - int(offsets[index]))
        for symbols, indexes, tables, lengths, offsets in calls
        for symbol, index in zip(symbols[: FEW + 1], indexes, strict=False)
    ]
    if len(coded) > FEW or any(not 0 <= place < length - 2 for _, length, place in coded):
        return None
    state, words = 1 << 31, b""
    for table, _, place in reversed(coded):
        start, stop = int(table[place]), int(table[place + 1])
        share = stop - start
        if state >= share << 47:
            words = (state & 0xFFFFFFFF).to_bytes(4, "little") + words
            state >>= 32
        state = (state // share << 16) + state % share + start
    return state.to_bytes(8, "little") + words


def _in_place_of(own: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def called(coder: Any, *args: Any) -> Any:
        return method(own, coder, *args)

    return called


@cache
def _bare(kind: str) -> Any:
    """The class without checks, for callers that make them."""
    from compressai import ans

    guard()
    return type(kind, (getattr(ans, kind),), dict(_methods()[kind]))


def _tame(symbols: Sequence[int], read: bool) -> Sequence[int]:
    if symbols:
        _refuse_wild(min(symbols), max(symbols), read)
    return symbols


def _refuse_wild(least: int, most: int, read: bool) -> None:
    if least >= -MOST and most <= MOST:
        return
    told = f"a symbol of {most if most > MOST else least}, past {MOST}"
    if read:
        raise altered(told)
    raise WeightsError(
        "the latents",
        f"they have {told}, which the coder cannot write",
        "The weights are damaged, or their training diverged: use another checkpoint",
    )


def altered(holds: str) -> ContainerError:
    """The error for a string that no encoder wrote."""
    return ContainerError(
        "a string", f"it holds {holds}: it was altered", "Copy the file again, or compress the image again"
    )
