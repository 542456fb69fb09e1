"""From the samples of a picture to what a model reads, and back: from 0 to 1, padded as CompressAI pads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overlap_tool.errors import ImageFileError
from overlap_tool.files.formats.frame import Frame
from overlap_tool.files.formats.pictures import FLATTEN, Picture, read_rows
from overlap_tool.geometry import Span


def channels_read(where: str, picture: Picture, wanted: int) -> bool:
    """Whether a grey picture has to be repeated for a model of `wanted` channels; else it has to fit."""
    found = picture.shape[2]
    if found == wanted:
        return False
    if found == 1 and wanted == 3:
        return True
    reason = f"it has {found} channels, and the model takes {wanted}"
    if found in (2, 4):
        raise ImageFileError(where, f"{reason}; the last may be an alpha channel", FLATTEN)
    raise ImageFileError(where, reason, "Convert it, or use a model of as many channels")


class PictureNumbers:
    """A picture as the numbers of a map. The band that was read last stays, as the file holds it."""

    def __init__(self, where: str, picture: Picture, frame: Frame, grey: bool, device: torch.device) -> None:
        self.where = where
        self.picture = picture
        self.frame = frame
        self.grey = grey
        self.device = device
        self.rows = Span(0, 0)
        self.band: NDArray[Any] | None = None

    def read(self, rows: Span, columns: Span) -> Tensor:
        left, _, top, _ = self.frame.around
        real = rows.shift(-top).clip(self.frame.height)
        across = columns.shift(-left).clip(self.frame.width)
        piece = np.zeros((rows.length, columns.length, self.frame.channels), np.float32)
        if not (real.empty or across.empty):
            down = real.start + top - rows.start
            aside = across.start + left - columns.start
            piece[down : down + real.length, aside : aside + across.length] = self._samples(real)[
                :, across.start : across.stop
            ]
        # torch sees these strides as channels last, in which convolutions need not reorder
        return (torch.from_numpy(piece) / self.frame.largest).permute(2, 0, 1)[None].to(self.device)

    def _samples(self, rows: Span) -> NDArray[Any]:
        if self.band is None or rows.start < self.rows.start or rows.stop > self.rows.stop:
            self.rows, self.band = rows, read_rows(self.where, self.picture, rows.start, rows.stop)
        return self.band[rows.start - self.rows.start : rows.stop - self.rows.start]


def samples(values: Tensor, frame: Frame, where: str, way_out: str) -> NDArray[Any]:
    """Rows of a map, padding taken off on the sides, as samples: rows, columns, channels.

    `where` and `way_out` are for the refusal of numbers that are no samples.
    """
    left = frame.around[0]
    inside = values[0, :, :, left : left + frame.width]
    if frame.dtype.kind == "u":
        if torch.isnan(inside).any():
            raise ImageFileError(where, "what the model makes of it is NaN in places, no colour", way_out)
        inside = torch.round(inside.clamp(0, 1) * frame.largest)
    rows = inside.permute(1, 2, 0).cpu().numpy()
    if frame.channels == 1 and rows.shape[2] == 3:  # grey that was repeated
        return np.rint(rows.astype(np.float64).mean(2, keepdims=True)).astype(frame.dtype)
    return rows.astype(frame.dtype)


def inner_rows(start: int, rows: NDArray[Any], frame: Frame) -> tuple[int, NDArray[Any]]:
    """The rows of a band that lie within the image, and the first one's number there."""
    top = frame.around[2]
    inside = Span(start - top, start - top + len(rows)).clip(frame.height)
    return inside.start, rows[inside.start - (start - top) :][: inside.length]
