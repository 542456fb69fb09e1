"""Converts a picture's samples to a model's input and back: from 0 to 1, padded as CompressAI pads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overlap_tool.errors import ImageFileError
from overlap_tool.files.formats.frame import Frame
from overlap_tool.files.formats.pictures import FLATTEN, Picture, read_window
from overlap_tool.geometry import Span


def refuse_channels(where: str, picture: Picture, wanted: int) -> None:
    """Raise unless a model of `wanted` channels takes the picture. A grey picture is repeated for three."""
    found, is_image = picture.form.channels, picture.form.kind == "image"
    if found == wanted or (is_image and (found, wanted) == (1, 3)):
        return
    reason = f"it has {found} channels, and the model takes {wanted}"
    if is_image and found in (2, 4):
        raise ImageFileError(where, f"{reason}; the last may be an alpha channel", FLATTEN)
    if is_image and picture.form.shape[0] == wanted:
        reason += ": arrays are taken as rows, columns and channels"
        raise ImageFileError(where, reason, "Save it with its channels last")
    raise ImageFileError(where, reason, "Convert it, or use a model of as many channels")


class PictureNumbers:
    """A picture as the numbers of a map. The band that was read last is cached, as the file stores it.

    Bands have the columns `across`, all by default; only these can be read. `channels` are those of the frame
    by default.
    """

    def __init__(
        self,
        where: str,
        picture: Picture,
        frame: Frame,
        device: torch.device,
        across: Span | None = None,
        channels: tuple[int, ...] = (-1,),
    ) -> None:
        self.where = where
        self.picture = picture
        self.frame = frame
        self.device = device
        self.channels = channels
        left = frame.around[0]
        self.across = Span(0, frame.width) if across is None else across.shift(-left).clip(frame.width)
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
            assert across.within(self.across) == across, "columns that were not to be read"
            piece[down : down + real.length, aside : aside + across.length] = self._samples(real)[
                :, across.start - self.across.start : across.stop - self.across.start
            ]
        # these strides are channels last, which convolutions take without reordering
        planes = torch.from_numpy(piece).div_(self.frame.largest).permute(2, 0, 1)
        return planes.unflatten(0, self.channels)[None].to(self.device)

    def expect(self, rows: Span, columns: Span) -> None:
        """As a source of the executor: nothing is fetched ahead."""

    def _samples(self, rows: Span) -> NDArray[Any]:
        if self.band is None or rows.start < self.rows.start or rows.stop > self.rows.stop:
            self.rows, self.band = rows, read_window(self.where, self.picture, rows, self.across)
        return self.band[rows.start - self.rows.start : rows.stop - self.rows.start]


def samples(values: Tensor, frame: Frame, where: str, way_out: str) -> NDArray[Any]:
    """A band of a map as samples: rows, columns, channels.

    `where` and `way_out` are for the error if there is a NaN, which is no integer.
    """
    inside = values[0].flatten(0, -3)
    if frame.dtype.kind in "ui":
        if torch.isnan(inside).any():
            raise ImageFileError(where, "what the model makes of it is NaN in places, no colour", way_out)
        known = np.iinfo(frame.dtype)
        inside = (inside * frame.largest).round_().clamp_(known.min, known.max)
    rows = inside.permute(1, 2, 0).cpu().numpy()
    if frame.channels == 1 and rows.shape[2] == 3:  # a grey picture that was repeated
        return np.rint(rows.astype(np.float64).mean(2, keepdims=True)).astype(frame.dtype)
    return rows.astype(frame.dtype, copy=False)
