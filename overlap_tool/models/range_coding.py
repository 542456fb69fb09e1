"""Reading strings of CompressAI's range coder, which come from files that nobody has vouched for.

CompressAI's decoder does not look where the string ends, and its encoder wraps around at large symbols.
Whatever codes, be it an entropy model of CompressAI's, a model's own loop or a plugin, uses these classes. So
it is their methods that look: nothing has to be known of who calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import cache, wraps
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from overlap_tool.errors import ContainerError, WeightsError
from overlap_tool.settings import inside

MOST = 1 << 26
"""The largest symbol, of either sign. The encoder doubles how far it lies past its table, and never ends on
more than 28 bits."""

_expected: ContextVar[int | None] = ContextVar("expected", default=None)
_installing = Lock()


def reading_at_most(symbols: int) -> AbstractContextManager[int]:
    """Inside, so many symbols can be read from a string by whoever gives it to a decoder, whatever it is."""
    return inside(_expected, symbols)


def decoder_of(string: bytes, symbols: int) -> Any:
    """CompressAI's decoder of a string from which so many symbols will be read, whatever the string is."""
    decoder = _bare("RansDecoder")()
    decoder.set_stream(guarded(string, symbols))
    return decoder


def buffered_encoder() -> Any:
    """CompressAI's encoder, for symbols that `refuse_wild` was asked about."""
    return _bare("BufferedRansEncoder")()


def guarded(string: bytes, symbols: int) -> bytes:
    """The string with as many zeros after it as a decoder that has lost its way can read.

    The decoder reads at most four bytes for a symbol. For a symbol past its table it also reads a number
    whose length the string tells: 15 * 4 bits for each 4 of it.
    """
    return string + bytes(4 * symbols + 16 * len(string) + 64)


SYMBOLS_AT_ONCE = 1 << 18
"""How many symbols go to the coder at once, as lists of Python's integers."""


def encoded(symbols: Tensor, indexes: Tensor, *tables: Tensor) -> bytes:
    """The string of symbols in a row, each with the number of its table; `tables` as the encoder has them."""
    refuse_wild(symbols, read=False)
    encoder = buffered_encoder()
    encode_in_pieces(encoder, symbols, indexes, *(table.tolist() for table in tables))
    string: bytes = encoder.flush()
    return string


def encode_in_pieces(encoder: Any, symbols: Tensor, indexes: Tensor, *tables: list[Any]) -> None:
    """Give symbols in a row to an encoder, without a list of all."""
    for part, where in zip(symbols.split(SYMBOLS_AT_ONCE), indexes.split(SYMBOLS_AT_ONCE), strict=True):
        encoder.encode_with_indexes(part.tolist(), where.tolist(), *tables)


def decode_in_pieces(decoder: Any, indexes: Tensor, *tables: list[Any]) -> Tensor:
    """The next symbols of a decoder, by the numbers of their tables in a row, without a list of all."""
    parts = (decoder.decode_stream(where.tolist(), *tables) for where in indexes.split(SYMBOLS_AT_ONCE))
    return torch.cat([torch.tensor(part, dtype=torch.int32) for part in parts])


def refuse_wild(symbols: Tensor, read: bool) -> None:
    """Symbols that the coder cannot have been given, or must not be; `read` if they come out of a string."""
    if symbols.numel():
        least, most = symbols.aminmax()
        _refuse_wild(int(least), int(most), read)


def guard() -> None:
    """From now on CompressAI's coder reads zeros after a string's end, and refuses symbols past `MOST`.

    How many symbols a string has is told when it is decoded at once, and else by `reading_at_most`; outside
    that, a decoder of somebody's own is left alone.
    """
    with _installing:
        _methods()


@cache
def _methods() -> dict[str, dict[str, Callable[..., Any]]]:
    """The classes' own methods, which others stand in for from then on."""
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

    replaced: dict[str, dict[str, Callable[..., Any]]] = {
        "RansDecoder": {
            "set_stream": set_stream,
            "decode_stream": decode_stream,
            "decode_with_indexes": decode_with_indexes,
        },
        "RansEncoder": {"encode_with_indexes": encode_with_indexes},
        "BufferedRansEncoder": {"encode_with_indexes": encode_with_indexes},
    }
    before: dict[str, dict[str, Callable[..., Any]]] = {}
    for kind, methods in replaced.items():
        coder = getattr(ans, kind)
        before[kind] = {name: getattr(coder, name) for name in methods}
        for name, method in methods.items():
            setattr(coder, name, _in_place_of(before[kind][name], method))
    return before


def _in_place_of(own: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def called(coder: Any, *args: Any) -> Any:
        return method(own, coder, *args)

    return called


@cache
def _bare(kind: str) -> Any:
    """The class with its own methods, for callers that look themselves."""
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
    """The refusal of a string that holds what no encoder wrote."""
    return ContainerError(
        "a string", f"it holds {holds}: it was altered", "Copy the file again, or compress the image again"
    )
