"""CompressAI's coding position by position, of maps that are not in memory: in bands, a string for each.

Bands are coded in order, as `models/raster.py` does it. Above each band, in the place of the padding, are the
last decoded rows of the band before: a masked convolution reads no further up, and nothing below.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.files.coding.entropy import check_symbols, coded_bands, other_bands, rows_of_a_band
from overlap_tool.files.formats.container import Band, CodedString
from overlap_tool.files.running import Stored, Workspace
from overlap_tool.geometry import Span
from overlap_tool.models import raster
from overlap_tool.models.range_coding import reading_at_most
from overlap_tool.runtime.lazy import LazyMap


@contextmanager
def raster_in_bands(model: nn.Module, workspace: Workspace, where: str) -> Iterator[None]:
    """Inside, a model that codes position by position accepts maps that are not in memory."""
    if not raster.is_raster(model):
        yield
        return
    loops = _Loops(model, workspace, f"{where}, symbols of y")
    before = {name: vars(model).get(name) for name in raster.LOOPS}
    try:
        for name, loop in zip(raster.LOOPS, (loops.compress, loops.decompress), strict=True):
            setattr(model, name, loop)
        yield
    finally:
        for name, method in before.items():
            vars(model).pop(name, None)
            if method is not None:
                setattr(model, name, method)


class _Loops:
    """Replaces the two coding loops of one model."""

    def __init__(self, model: Any, workspace: Workspace, where: str) -> None:
        self.model = model
        self.workspace = workspace
        self.where = where

    def compress(
        self, y_hat: Tensor, params: Tensor, height: int, width: int, kernel: int, padding: int, *more: Any
    ) -> CodedString:
        channels, job = y_hat.shape[1], self.workspace.job
        lazy = isinstance(y_hat, LazyMap) or isinstance(params, LazyMap)
        rows = rows_of_a_band(self.workspace.limit, channels, width) if lazy else height
        stored = self.workspace.store("coded", (channels, height, width), y_hat.dtype)
        strings, bands = [], []
        for start in range(0, height, rows):
            span = Span(start, min(start + rows, height))
            kept = f"{stored.name}-{start}"
            if span.stop > stored.done:
                padded = _read(y_hat, Span(start, span.stop + 2 * padding)).clone()
                above = _above(stored, start, padding)
                padded[..., padding - above.shape[2] : padding, padding:-padding] = above
                part = _read(params, span)
                size = span.length, width
                job.keep(kept, raster.compress(self.model, padded, part, *size, kernel, padding, *more))
                stored.take(start, _inner(padded, padding))
            strings.append(job.kept(kept))
            decoded = stored.read(span, Span(0, width))
            bands.append(Band(span.length, len(strings[-1]), _digest(decoded)))
        return CodedString.of(strings, bands)

    def decompress(self, y_string: bytes, y_hat: Tensor, params: Tensor, *how: Any) -> None:
        height, width, kernel, padding, *more = how
        channels = y_hat.shape[1]
        stored = self.workspace.store("decoded", (channels, height, width), y_hat.dtype)
        for coded in coded_bands(y_string, height, width, self.where):
            span = coded.area.rows
            if coded.band.columns:
                raise other_bands(self.where)
            if span.stop > stored.done:
                above = _above(stored, span.start, padding).to(params.device)
                rest = padding - above.shape[2], span.length + padding
                padded = F.pad(above, (padding, padding, *rest))
                part = _read(params, span)
                size = span.length, width
                with reading_at_most(channels * span.length * width):
                    raster.decompress(self.model, coded.read(), padded, part, *size, kernel, padding, *more)
                made = _inner(padded, padding)
                check_symbols(coded.band, _digest(made), self.where)
                stored.take(span.start, made)
        _inner(y_hat, padding)[:] = self.workspace.map(stored, channels, stored, params)


def _above(stored: Stored, start: int, padding: int) -> Tensor:
    """The decoded rows before `start`: as many as the padding has, or as exist."""
    return stored.read(Span(max(0, start - padding), start), Span(0, stored.width))


def _inner(padded: Tensor, padding: int) -> Tensor:
    return padded[..., padding:-padding, padding:-padding]


def _digest(decoded: Tensor) -> str:
    """A digest of decoded numbers, which follow from the symbols, not visible here. -0 counts as 0."""
    return hashlib.sha256((decoded + 0.0).contiguous().cpu().numpy().data).hexdigest()


def _read(map: Tensor, rows: Span) -> Tensor:
    if isinstance(map, LazyMap):
        return map.read(rows, Span(0, map.shape[3]))
    return map[:, :, rows.start : rows.stop]
