"""Attention inside windows, plain or shifted: any piece gives the bits that the whole map gives.

A model rolls the map, cuts it in windows, and masks what the roll brought in from the other end. A piece has
no other end. Its windows at a border are filled up where the image ends, and what fills them is closed to
every query. Samples keep their places in the window, so that weights add up in the same order, and a closed
key has a weight of zero, which changes no sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.geometry import Patch, Span, Windows
from overlap_tool.rules.pieces import Patches
from overlap_tool.rules.registry import Rule


@dataclass(frozen=True)
class Attention:
    """What a module computes in one window, in functions of tokens, whose last dimension is channels."""

    project: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    """From tokens (..., channels) to queries, keys and values, each (..., heads, channels of a head)."""
    similarity: Callable[[Tensor, Tensor], Tensor]
    """From some queries (..., q, channels of a head) and all keys (..., k, same) to (..., q, k)."""
    bias: Tensor
    """What is added to similarities: (heads, window², window²)."""
    merge: Callable[[Tensor], Tensor]
    """From what all heads found, (..., heads * channels of a head), to tokens."""


def attention_in_windows(
    attention: Callable[[Any], Attention],
    *,
    window: int,
    shift: int,
    channels: int,
    weights: int,
    heads: int,
    fills: bool,
) -> Rule:
    """The rule of a module that maps a map to attention in its windows, cut at `shift`.

    `channels` are those of all heads, `weights` how many numbers the projections multiply a token by. An op
    that `fills` brings its input to whole windows with zeros at its ends, which are keys like any other; else
    it refuses inputs that are not whole windows.
    """
    windows = Windows(window, shift, whole=not fills)

    def run(patches: Patches, module: nn.Module, input: Tensor) -> Tensor:
        return attend(attention(module), window, patches, input)

    keys = window * window
    # queries, keys and values, the same in windows, and what is found; similarities, their powers and weights
    scratch = 7 + -(-3 * heads * keys // channels)
    return Rule(run, windows, windows, weights + 2 * keys * channels, scratch)


def attend(attention: Attention, window: int, patches: Patches, input: Tensor) -> Tensor:
    """The outputs `out` of attention in windows, from a piece of its input.

    As many products as the model spends on these outputs: each query meets the keys of one whole window.
    """
    rows, columns = (_Side.of(patch, window) for patch in patches)
    tokens = F.pad(input, (0, columns.zeros, 0, rows.zeros)).permute(0, 2, 3, 1)
    closed = 0, 0, 0, 0, *columns.closed, *rows.closed
    queries, keys, values = (
        F.pad(part, closed).unflatten(2, (-1, window)).unflatten(1, (-1, window))
        for part in attention.project(tokens)
    )
    heads, depth = queries.shape[-2:]
    bias = attention.bias.unflatten(1, (window, window))
    found = queries.new_empty(input.shape[0], patches[0].out.length, patches[1].out.length, heads * depth)
    for down in rows.runs:
        for across in columns.runs:
            asked = _places(queries, down.windows, across.windows)[:, :, :, :, down.places, across.places]
            given, meant = (
                _places(part, down.windows, across.windows).flatten(4, 5) for part in (keys, values)
            )
            some_bias = bias[:, down.places, across.places].flatten(1, 2)
            scores = attention.similarity(asked.flatten(4, 5), given) + some_bias
            if any((*rows.closed, *columns.closed)):
                is_open = (
                    rows.is_open[down.windows][:, None, :, None] & columns.is_open[across.windows][:, None]
                )
                is_open = is_open.flatten(2).to(scores.device)[:, :, None, None]
                scores = scores.masked_fill(~is_open, -torch.inf)
            parts = (torch.softmax(scores, -1) @ meant).unflatten(4, asked.shape[4:6])
            # (images, windows down, across, heads, rows, columns, depth), back to a map of tokens
            parts = parts.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4).flatten(1, 2)
            found[:, down.outputs, across.outputs] = parts
    return attention.merge(found).permute(0, 3, 1, 2)


def _places(tokens: Tensor, down: slice, across: slice) -> Tensor:
    """Some windows of (images, windows, rows, windows, columns, heads, depth), as
    (images, windows down, across, heads, rows, columns, depth)."""
    return tokens[:, down, :, across].permute(0, 1, 3, 5, 2, 4, 6)


@dataclass(frozen=True)
class _Run:
    """Neighbouring windows of which the same places are asked for, and where those lie among the outputs."""

    windows: slice
    places: slice
    outputs: slice


@dataclass(frozen=True)
class _Side:
    """One axis of a piece: how it is filled up to whole windows, and which of their places are asked for."""

    zeros: int
    """What the model fills up with at the end of the image: zeros, which are keys."""
    closed: tuple[int, int]
    """Beyond those, before and after: what no query may see."""
    is_open: Tensor
    """For every window and place in it, whether queries may see it."""
    runs: tuple[_Run, ...]

    @staticmethod
    def of(patch: Patch, window: int) -> _Side:
        filled = -(-patch.n // window) * window
        zeros = max(0, min(patch.need.stop, filled) - patch.have.stop)
        closed = patch.have.start - patch.need.start, patch.need.stop - patch.have.stop - zeros
        is_open = torch.ones(patch.need.length, dtype=torch.bool)
        is_open[: closed[0]] = False
        is_open[patch.need.length - closed[1] :] = False
        return _Side(zeros, closed, is_open.unflatten(0, (-1, window)), tuple(_runs(patch, window)))


def _runs(patch: Patch, window: int) -> list[_Run]:
    starts = range(patch.need.start, patch.need.stop, window)
    asked = [
        Span(max(start, patch.out.start), min(start + window, patch.out.stop)).shift(-start)
        for start in starts
    ]
    runs: list[_Run] = []
    first = at = 0
    for places, alike in groupby(asked):
        count = len(list(alike))
        stop = at + count * places.length
        runs.append(_Run(slice(first, first + count), slice(*places), slice(at, stop)))
        first, at = first + count, stop
    return runs
