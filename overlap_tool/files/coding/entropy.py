"""CompressAI's entropy coding of whole maps, in pieces: the same strings, without lists of all symbols.

A map that is not in memory is coded in bands of rows, each as a string of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from overlap_tool.errors import ContainerError
from overlap_tool.files.coding.change import Change, FromString
from overlap_tool.files.formats.container import Band, CodedString
from overlap_tool.files.running import Block, Workspace
from overlap_tool.geometry import Span
from overlap_tool.geometry.plan import cut
from overlap_tool.geometry.walk import Area
from overlap_tool.models.range_coding import (
    SYMBOLS_AT_ONCE,
    buffered_encoder,
    decoder_of,
    guarded_bytes,
    refuse_wild,
)
from overlap_tool.runtime.deferred import OnDemand
from overlap_tool.runtime.lazy import LazyMap

Tables = tuple[list[list[int]], list[int], list[int]]
"""Of an entropy model: cumulative probabilities, their lengths, and each table's first symbol."""

SYMBOLS_IN_A_BAND = 1 << 22
"""The most symbols of one band; fewer where the memory limit is low."""

BYTES_OF_A_SYMBOL = 16
"""The memory per symbol of a band: the number to code, its mean, its table and the symbol."""


@dataclass(frozen=True)
class CodedBand:
    """A band in its place: its rectangle of the map, and where its string lies among those of the map."""

    string: CodedString
    area: Area
    start: int
    band: Band

    def read(self) -> bytes:
        """The band's string."""
        return self.string.part(self.start, self.start + self.band.length)


def coded_bands(string: bytes, height: int, width: int, where: str) -> list[CodedBand]:
    """The bands of a map of this size; a plain string is a single band."""
    if not isinstance(string, CodedString):
        string = CodedString.of([string], [Band(0, len(string), "")])
    bands = string.bands
    if len(bands) == 1 and bands[0].rows == 0:
        bands = (replace(bands[0], rows=height),)
    found: list[CodedBand] = []
    top = left = start = 0
    for band in bands:
        right = left + (band.columns or width)
        beside = left > 0 and band.rows != found[-1].area.rows.length
        if beside or right > width or top + band.rows > height:
            break
        found.append(CodedBand(string, Area(Span(top, top + band.rows), Span(left, right)), start, band))
        left, start = right % width, start + band.length
        top += 0 if left else band.rows
    if len(found) < len(bands) or (top, left) != (height, 0):
        raise other_bands(where)
    return found


def other_bands(where: str) -> ContainerError:
    return ContainerError(where, "its bands are not those of this map", "Compress the image again")


def check_symbols(band: Band, found: str, where: str) -> None:
    if band.symbols not in ("", found):
        raise ContainerError(
            where,
            "its symbols are not those that were written: another engine coded it, or it was altered",
            "Decode it with the versions of overlap-tool and torch that wrote it, on such a machine",
        )


def rows_of_a_band(limit: int, channels: int, width: int) -> int:
    """The rows of a band of a map with so many channels and columns, within a memory limit in bytes."""
    symbols = min(SYMBOLS_IN_A_BAND, limit // BYTES_OF_A_SYMBOL)
    return max(1, symbols // max(1, channels * width))


def encoding_bytes(symbols: int, string: int, others: bool) -> int:
    """The memory that it takes to code so many symbols as a string of so many bytes.

    A symbol and its table take 8 bytes. CompressAI's encoder has a vector of 6 bytes for each symbol, which
    is copied to one of twice the length when it is full; beside it are lists and vectors of the symbols that
    are passed to it at once. At the end there are 4 more bytes for each symbol, and the string twice. If the
    map has `others` to code, the next one waits, and the string before is on its way.
    """
    grows = 6 << (symbols - 1).bit_length()
    takes = max(grows + 24 * min(symbols, SYMBOLS_AT_ONCE), 10 * symbols + 2 * string)
    return 8 * symbols + takes + others * (8 * symbols + string)


def decoding_bytes(symbols: int, string: int, others: bool) -> int:
    """The memory that it takes to decode them: when a decoder begins, it holds its string three times, with
    the zeros that follow it."""
    given = 4 * symbols + string
    return given + 3 * guarded_bytes(string, symbols) + others * (given + 4 * symbols)


def areas_to_code(shape: Sequence[int], lazy: bool, limit: int, block: Block) -> list[Area]:
    """The bands that a map is coded in: blocks, cut into bands of as many rows as memory allows."""
    height, width = _lines(shape)
    if len(shape) != 4:  # not a map: its bands could not be joined again
        return [Area.whole(height, width)]
    rows, columns = (max(1, ceil(side * part)) for side, part in zip((height, width), block, strict=True))
    if lazy:
        rows = min(rows, rows_of_a_band(limit, shape[1], columns))
    return [Area(down, across) for down in cut(height, rows) for across in cut(width, columns)]


@contextmanager
def coded_in_pieces(
    model: nn.Module, workspace: Workspace, where: str, change: Change | None = None
) -> Iterator[None]:
    """Inside, CompressAI's entropy models code piece by piece; classes with their own coding keep it.

    After a `change`, bands that it does not reach keep their strings.
    """
    with _coded_by(
        model, lambda number, module: _Coder(module, workspace, f"{where}, symbols {number}", change)
    ):
        yield


def maps_coded(model: nn.Module, code: Callable[[], object]) -> list[tuple[int, ...]]:
    """The shapes of the maps that CompressAI's entropy models are given while a model codes; they code
    nothing meanwhile, and need no tables."""
    found: list[tuple[int, ...]] = []
    with torch.no_grad(), _coded_by(model, lambda _, module: _Noting(module, found)):
        code()
    return found


@contextmanager
def _coded_by(model: nn.Module, coder_of: Callable[[int, nn.Module], _Coder]) -> Iterator[None]:
    from compressai.entropy_models import EntropyBottleneck, GaussianConditional

    changed: list[tuple[nn.Module, str]] = []

    def put_in_place(module: nn.Module, kind: type[nn.Module], name: str, method: Callable[..., Any]) -> None:
        if getattr(type(module), name) is getattr(kind, name):
            setattr(module, name, method)
            changed.append((module, name))

    for number, module in enumerate(model.modules()):
        coder = coder_of(number, module)
        if isinstance(module, EntropyBottleneck):
            put_in_place(module, EntropyBottleneck, "compress", coder.compress_by_channel)
            put_in_place(module, EntropyBottleneck, "decompress", coder.decompress_by_channel)
        elif isinstance(module, GaussianConditional):
            put_in_place(module, GaussianConditional, "compress", coder.compress)
            put_in_place(module, GaussianConditional, "decompress", coder.decompress)
            put_in_place(module, GaussianConditional, "build_indexes", coder.build_indexes)
    try:
        yield
    finally:
        for module, name in changed:
            delattr(module, name)


class _Coder:
    """Replaces the methods of one entropy model."""

    def __init__(self, model: Any, workspace: Workspace, where: str, change: Change | None) -> None:
        self.model = model
        self.workspace = workspace
        self.where = where
        self.change = change

    def compress_by_channel(self, x: Tensor) -> list[CodedString]:
        return self.compress(x, *self._by_channel(tuple(x.shape)))

    def decompress_by_channel(self, strings: Sequence[bytes], size: Sequence[int]) -> Tensor:
        indexes, medians = self._by_channel((len(strings), len(self.model.quantiles), *size))
        return self.decompress(strings, indexes, medians.dtype, medians)

    def build_indexes(self, scales: Tensor) -> Tensor:
        if not isinstance(scales, LazyMap):
            return table_numbers(self.model, scales)
        return scales.each(lambda piece: table_numbers(self.model, piece), torch.int32)

    def compress(self, inputs: Tensor, indexes: Tensor, means: Tensor | None = None) -> list[CodedString]:
        self.model._check_cdf_size()
        self.model._check_cdf_length()
        self.model._check_offsets_size()
        if inputs.shape != indexes.shape:
            raise ValueError("`inputs` and `indexes` should have the same size.")
        inputs, indexes, means = _as_now(inputs), _as_now(indexes), None if means is None else _as_now(means)
        read = [one for one in (inputs, indexes, means) if one is not None]
        lazy = any(isinstance(one, LazyMap) for one in read)
        strings = []
        for image in range(inputs.shape[0]):
            parts, bands, changed = [], [], []
            before = self._coded_before(inputs.shape)
            areas = list(before) or areas_to_code(
                inputs.shape, lazy, self.workspace.limit, self.workspace.block
            )
            kept = {
                area: before[area]
                for area in areas
                if area in before and self.change and not any(self.change.reaches(one, area) for one in read)
            }
            tables = self._tables()
            given = (
                (self._symbols(inputs, means, image, area), _numbers(indexes, image, area), tables)
                for area in areas
                if area not in kept
            )
            coded = self.workspace.each(band_to_string, given)
            for area in areas:
                if area in kept:
                    parts.append(kept[area].read())
                    bands.append(kept[area].band)
                    continue
                string, digest = next(coded)
                columns = 0 if area.columns == areas[-1].columns == areas[0].columns else area.columns.length
                parts.append(string)
                bands.append(Band(area.rows.length, len(string), digest, columns))
                old = before.get(area)
                if old is None or (string, bands[-1]) != (old.read(), old.band):
                    changed.append(area)
            strings.append(CodedString.of(parts, bands))
            self.workspace.coded.append(strings[-1])
            if self.change:
                self.change.coded(strings[-1], changed)
        return strings

    def _coded_before(self, shape: Sequence[int]) -> dict[Area, CodedBand]:
        """The bands of the same map before it changed, by their places."""
        string = None if self.change is None else next(self.change.before, None)
        if string is None:
            return {}
        return {band.area: band for band in coded_bands(string, *_lines(shape), self.where)}

    def decompress(
        self,
        strings: Sequence[bytes],
        indexes: Tensor,
        dtype: torch.dtype = torch.float,
        means: Tensor | None = None,
    ) -> Tensor:
        self.model._check_cdf_size()
        self.model._check_cdf_length()
        self.model._check_offsets_size()
        if not isinstance(strings, tuple | list) or len(strings) != indexes.shape[0]:
            raise ValueError("Invalid strings or indexes parameters")
        [*decoded] = (
            self._decode_string(string, image, indexes, means, dtype) for image, string in enumerate(strings)
        )
        return decoded[0] if len(decoded) == 1 else torch.cat(decoded)

    def _decode_string(
        self, string: bytes, image: int, indexes: Tensor, means: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        channels, height, width = indexes.shape[1], *_lines(indexes.shape)
        coded = coded_bands(string, height, width, self.where)
        indexes, means = _as_now(indexes), None if means is None else _as_now(means)

        def decode(bands: Sequence[CodedBand]) -> Iterator[Tensor]:
            tables = self._tables()
            given = ((band.read(), _numbers(indexes, image, band.area), tables) for band in bands)
            for band, (numbers, digest) in zip(
                bands, self.workspace.each(string_to_band, given), strict=True
            ):
                check_symbols(band.band, digest, self.where)
                symbols = torch.from_numpy(numbers).to(indexes.device)[None]
                yield (
                    symbols.to(dtype)  # older versions of CompressAI have no dtype argument
                    if means is None
                    else self.model.dequantize(symbols, _piece(means, image, band.area))
                )

        if len(coded) == 1:
            self.workspace.took_whole = True
            return next(decode(coded))
        like = torch.empty(0, dtype=dtype, device=indexes.device)
        if self.workspace.on_demand:
            areas = [band.area for band in coded]
            made_of = FromString(string, means)
            numbers = OnDemand(
                areas, lambda number: next(decode([coded[number]])), self.workspace.limit, made_of
            )
            return self.workspace.lazy(numbers, (1, channels, height, width), like)
        stored = self.workspace.store("decoded", (channels, height, width), dtype)
        missing = [band for band in coded if band.area.rows.stop > stored.done]
        values = decode(missing)
        for rows, beside in groupby(missing, lambda band: band.area.rows):
            stored.take(rows.start, torch.cat([next(values) for _ in beside], -1))
        return self.workspace.map(stored, channels, stored, like)

    def _symbols(self, inputs: Tensor, means: Tensor | None, image: int, area: Area) -> NDArray[np.int32]:
        offsets = None if means is None else _piece(means, image, area)
        symbols: Tensor = self.model.quantize(_piece(inputs, image, area), "symbols", offsets)[0]
        return symbols.cpu().numpy()

    def _tables(self) -> Tables:
        model = self.model
        return (
            model.quantized_cdf.tolist(),
            model.cdf_length.reshape(-1).int().tolist(),
            model.offset.reshape(-1).int().tolist(),
        )

    def _by_channel(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The table and the median of every position, as expanded views."""
        medians = self.model._get_medians().detach()
        form = (1, -1, *[1] * (len(shape) - 2))
        numbers = torch.arange(shape[1], dtype=torch.int32, device=medians.device)
        return numbers.reshape(form).expand(shape), medians.reshape(form).expand(shape)


class _Noting(_Coder):
    """Notes the shapes of maps, and codes nothing."""

    def __init__(self, model: Any, found: list[tuple[int, ...]]) -> None:
        self.model = model
        self.found = found

    def compress(self, inputs: Tensor, indexes: Tensor, means: Tensor | None = None) -> list[CodedString]:
        self.found.append(tuple(inputs.shape))
        return [CodedString()] * len(inputs)

    def decompress(
        self,
        strings: Sequence[bytes],
        indexes: Tensor,
        dtype: torch.dtype = torch.float,
        means: Tensor | None = None,
    ) -> Tensor:
        return torch.zeros(indexes.shape, dtype=dtype, device=indexes.device)


def table_numbers(model: Any, scales: Tensor) -> Tensor:
    """The result of `GaussianConditional.build_indexes`: for each scale, the first table whose scale is not
    smaller. It compares all scales with each table; if the tables ascend, a lookup is quicker."""
    limits = model.scale_table[:-1]
    if scales.dtype != limits.dtype or not (limits[1:] >= limits[:-1]).all():
        indexes: Tensor = type(model).build_indexes(model, scales)
        return indexes
    return torch.bucketize(model.lower_bound_scale(scales), limits, out_int32=True)


def band_to_string(
    symbols: NDArray[np.int32], indexes: NDArray[np.int32], tables: Tables
) -> tuple[bytes, str]:
    """The string of a band, and a digest of its symbols."""
    values = torch.from_numpy(symbols)
    refuse_wild(values, read=False)
    encoder, digest = buffered_encoder(), hashlib.sha256()
    for part, where in zip(_pieces(values), _pieces(torch.from_numpy(indexes)), strict=True):
        digest.update(part.numpy().data)
        encoder.encode_with_indexes(part.tolist(), where.tolist(), *tables)
    return encoder.flush(), digest.hexdigest()


def string_to_band(
    string: bytes, indexes: NDArray[np.int32], tables: Tables
) -> tuple[NDArray[np.int32], str]:
    """The symbols of a string, and a digest of them."""
    decoder, digest = decoder_of(string, indexes.size), hashlib.sha256()
    symbols = torch.empty(indexes.shape, dtype=torch.int32)
    for part, where in zip(_pieces(symbols), _pieces(torch.from_numpy(indexes)), strict=True):
        part.copy_(torch.tensor(decoder.decode_stream(where.tolist(), *tables), dtype=torch.int32))
        digest.update(part.numpy().data)
    refuse_wild(symbols, read=True)
    return symbols.numpy(), digest.hexdigest()


def _numbers(indexes: Tensor, image: int, area: Area) -> NDArray[np.int32]:
    return _piece(indexes, image, area)[0].cpu().numpy()


def _lines(shape: Sequence[int]) -> tuple[int, int]:
    """The rows and columns of a map, 1 where it has no such axis."""
    return shape[2] if len(shape) > 2 else 1, shape[3] if len(shape) > 3 else 1


def _as_now(values: Tensor) -> Tensor:
    """A snapshot of a map, unaffected by later writes; computed whole if its axes are not those that bands
    are cut along."""
    if not isinstance(values, LazyMap):
        return values
    return values.snapshot() if (values.ndim, values.at) == (4, 2) else values.whole("compress")


def _piece(values: Tensor, image: int, area: Area) -> Tensor:
    first = image if values.shape[0] > 1 else 0  # otherwise one value serves all images
    if isinstance(values, LazyMap):
        return values.read(*area)[first : first + 1]
    piece = values[first : first + 1]
    for axis, span in zip(range(2, values.ndim), area, strict=False):
        if values.shape[axis] > 1:  # otherwise it is broadcast
            piece = piece.narrow(axis, span.start, span.length)
    return piece


def _pieces(values: Tensor) -> Iterator[Tensor]:
    """The numbers in order, `SYMBOLS_AT_ONCE` or fewer at a time; views where possible."""
    channels = max(1, SYMBOLS_AT_ONCE // max(1, values[0].numel()))
    for first in range(0, values.shape[0], channels):
        yield from values[first : first + channels].reshape(-1).split(SYMBOLS_AT_ONCE)
