"""Entropy coding: a string for every row of blocks, so that rows can be decoded beside one another.

The paper has one string for all blocks in raster order. Before a block can be decoded from that, all blocks
of the rows above have to be, so that no two rows could be decoded together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from compressai.ans import RansEncoder
from compressai.entropy_models import GaussianConditional

from overlap_tool.errors import CheckpointError, OptionError
from overlap_tool.models.range_coding import decoder_of, refuse_wild

Numbers: TypeAlias = npt.NDArray[np.integer[Any]]


class Tables:
    """The distributions of a model as CompressAI's coder takes them: lists, each as long as it has to be."""

    def __init__(self, model: GaussianConditional) -> None:
        if model.quantized_cdf.numel() == 0:
            raise CheckpointError(
                "conditional_gaussian_model", "its CDFs are not computed yet", "Call model.update() first"
            )
        self.lengths: list[int] = model.cdf_length.tolist()
        self.offsets: list[int] = model.offset.tolist()
        self.cdfs: list[list[int]] = [
            row[:length] for row, length in zip(model.quantized_cdf.tolist(), self.lengths, strict=True)
        ]

    def used_by(
        self, indexes: Sequence[int] | Numbers
    ) -> tuple[list[int], list[list[int]], list[int], list[int]]:
        """The tables that are used, and indexes into these: the coder copies whatever it is given."""
        used, places = np.unique(indexes, return_inverse=True)
        return (
            places.tolist(),
            [self.cdfs[i] for i in used],
            [self.lengths[i] for i in used],
            [self.offsets[i] for i in used],
        )


class RowEncoder:
    """Takes the symbols of a row, block by block, and gives its string: the coder works from the end."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.symbols: list[Numbers] = []
        self.indexes: list[Numbers] = []

    def add(self, symbols: Numbers, indexes: Numbers) -> None:
        # copies, for what is given is part of a whole front
        self.symbols.append(symbols.copy())
        self.indexes.append(indexes.copy())

    def string(self) -> bytes:
        symbols, indexes = np.concatenate(self.symbols), np.concatenate(self.indexes)
        refuse_wild(torch.from_numpy(symbols), read=False)
        return RansEncoder().encode_with_indexes(symbols.tolist(), *self.tables.used_by(indexes))


class RowDecoder:
    """Gives the symbols of a row, as many as are asked for at a time."""

    def __init__(self, tables: Tables, string: bytes, symbols: int) -> None:
        self.tables = tables
        self.decoder = decoder_of(string, symbols)

    def decode(self, indexes: list[int]) -> list[int]:
        symbols: list[int] = self.decoder.decode_stream(*self.tables.used_by(indexes))
        return symbols


def check_strings(strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> tuple[int, int, int]:
    """Images, rows and columns of blocks, before anything is made of that size."""
    sides = tuple(shape)
    counts = {len(row) for row in strings}
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise OptionError(f"shape {sides}", "is not two numbers of blocks", "Give what compress gave")
    if len(strings) != sides[0] or len(counts) != 1 or 0 in counts:
        raise OptionError(
            f"{len(strings)} rows of strings",
            f"are not one string per image for each of the {sides[0]} rows of blocks",
            "Give what compress gave",
        )
    return counts.pop(), sides[0], sides[1]
