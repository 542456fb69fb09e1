"""`run_stream`: a model for sound, on chunks that arrive one after another and may never end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from overlap_tool.errors import OptionError, SizeDependenceError, TraceError
from overlap_tool.geometry.layout import Layout
from overlap_tool.graph.trace import fitted, trace
from overlap_tool.graph.tracer import FITTING
from overlap_tool.kernels import exact_kernels
from overlap_tool.rules.pieces import as_kept, as_laid_out
from overlap_tool.runtime.endless import ChunkByChunk

ENDLESS = FITTING << 20
"""Samples that no sound has: months."""


def run_stream(model: nn.Module, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """What a model for sound makes of chunks, as they arrive: joined, the outputs are those of the whole.

    `chunks` are tensors of images, channels and samples, of any lengths; there may be no end of them. An
    output is given as soon as all that it reads has arrived, and as much again as any output reads. What lies
    between chunks, padding at the border and the states of recurrent layers included, is carried over, and
    nothing is computed twice. The bits are those of `model(torch.cat(chunks, -1))` under `exact_kernels()`.

    >>> model = nn.Sequential(nn.Conv1d(1, 4, 9, padding=4), nn.ELU(), nn.Conv1d(4, 1, 8, stride=4)).eval()
    >>> sound = torch.rand(1, 1, 1000)
    >>> parts = list(run_stream(model, sound.split(130, -1)))
    >>> with torch.no_grad(), exact_kernels():
    ...     torch.equal(torch.cat(parts, -1), model(sound))
    True
    """
    stream: ChunkByChunk | None = None
    layout = Layout.of_sequence(1)
    for chunk in chunks:
        if stream is None:
            network = trace(model, "")
            layout = network.ops[0].layout
            if layout != Layout.of_sequence(network.ops[0].channels):
                raise OptionError(
                    type(model).__name__,
                    "takes no sound, of images, channels and samples",
                    "Use overlap_tool.wrap",
                )
        size = layout.size_of(chunk.shape)
        if size is None or (stream is not None and size[0] != stream.given.samples.shape[0]):
            raise OptionError(
                "chunks",
                f"one of {tuple(chunk.shape)} is no sound of {layout.channels[0]} channels",
                "Give tensors of images, channels and samples, all of as many images",
            )
        kept = as_kept(chunk, layout, *size[1:])
        with torch.no_grad(), exact_kernels():
            if stream is None:
                stream = ChunkByChunk(fitted(network, size[0], 1, ENDLESS), ENDLESS, kept)
                made = stream.catch_up()
            else:
                made = stream.add(kept)
        if made is not None:
            yield _as_returned(stream, made)
    if stream is None:
        return
    images, n = stream.given.samples.shape[0], stream.given.stop
    with torch.no_grad(), exact_kernels():
        try:
            rest = stream.end(fitted(network, images, 1, n))
        except (SizeDependenceError, TraceError):
            if stream.outputs:
                raise
            # a short sound may take another way through the code, and all of it is here
            yield model(as_laid_out(stream.given.samples, layout))
            return
    if rest is not None:
        yield _as_returned(stream, rest)


def _as_returned(stream: ChunkByChunk, made: Tensor) -> Tensor:
    return as_laid_out(made, stream.network.ops[-1].layout)
