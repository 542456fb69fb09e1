"""`run_stream`: runs a model for sound on chunks that arrive one after another and may never end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from overlap_tool.errors import OptionError, SizeError, TraceError, TrainingModeError
from overlap_tool.geometry.layout import COLUMNS
from overlap_tool.graph.network import Network
from overlap_tool.graph.returned import ALONE
from overlap_tool.graph.trace import fitted, trace
from overlap_tool.graph.tracer import FITTING
from overlap_tool.rules import exact_kernels
from overlap_tool.rules.pieces import as_kept, as_laid_out
from overlap_tool.runtime.endless import ChunkByChunk, require_alike

ENDLESS, LONG = FITTING << 20, (FITTING << 19) + 1
"""Lengths that no sound reaches: months. Networks for the two are the same except at the end."""


def run_stream(model: nn.Module, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Run a model for sound on chunks as they arrive; the outputs, joined, are those of the whole sound.

    `chunks` are tensors of (images, channels, samples), of any lengths; they need not end. An output is
    yielded once all that it reads has arrived, and beyond that as many samples as the widest output reads.
    Context, padding at the border and the states of recurrent layers are carried from chunk to chunk, and
    nothing is computed twice. The bits are those of `model(torch.cat(chunks, -1))` under `exact_kernels()`.

    >>> model = nn.Sequential(nn.Conv1d(1, 4, 9, padding=4), nn.ELU(), nn.Conv1d(4, 1, 8, stride=4)).eval()
    >>> sound = torch.rand(1, 1, 1000)
    >>> parts = list(run_stream(model, sound.split(130, -1)))
    >>> with torch.no_grad(), exact_kernels():
    ...     torch.equal(torch.cat(parts, -1), model(sound))
    True
    """
    network: Network | None = None
    stream: ChunkByChunk | None = None
    for chunk in chunks:
        network = network or _network_for_sound(model)
        kept = _kept(network, chunk, stream)
        with torch.no_grad(), exact_kernels():
            stream = stream or _begun(network, kept)
            made = stream.add(kept)
        if made is not None:
            yield _as_returned(stream, made)
    if network is None or stream is None:
        return
    with torch.no_grad(), exact_kernels():
        rest = _at_the_end(model, network, stream)
    if rest is not None:
        yield rest


def _network_for_sound(model: nn.Module) -> Network:
    where = type(model).__name__
    if any(part.training for part in model.modules()):
        raise TrainingModeError(
            where, "chunks are for inference, and it is in training mode", "Call model.eval() first"
        )
    network = trace(model, "")
    if not network.takes_sound:
        reason = "takes no sound, of images, channels and samples"
        raise OptionError(where, reason, "Use overlap_tool.wrap")
    output = network.ops[-1]
    if network.results != (output.id,) or network.returns != ALONE or output.layout.dims[-1] != (COLUMNS,):
        reason = "does not return one tensor with samples as its last dimension"
        raise OptionError(where, reason, "Use overlap_tool.wrap")
    return network


def _kept(network: Network, chunk: Tensor, stream: ChunkByChunk | None) -> Tensor:
    """The chunk as a map of one row, if it fits the model and the chunks before it."""
    layout = network.ops[0].layout
    size = layout.size_of(chunk.shape) if isinstance(chunk, Tensor) else None
    if size is None or not chunk.is_floating_point():
        told = tuple(chunk.shape) if isinstance(chunk, Tensor) else type(chunk).__name__
        raise OptionError(
            "chunks",
            f"one, {told}, is no sound of {layout.channels[0]} channels",
            "Give tensors of images, channels and samples, of floating-point numbers",
        )
    kept = as_kept(chunk, layout, *size[1:])
    before = kept if stream is None else stream.given.samples
    if (kept.shape[0], kept.dtype, kept.device) != (before.shape[0], before.dtype, before.device):
        raise OptionError(
            "chunks",
            f"one of {kept.shape[0]} x {kept.dtype} on {kept.device} follows one of {before.shape[0]} x "
            f"{before.dtype} on {before.device}",
            "Give chunks of as many images, of one type and on one device",
        )
    return kept


def _begun(network: Network, kept: Tensor) -> ChunkByChunk:
    """Begin the stream, before its first chunk. Raises if the model's code computes with the length."""
    images = kept.shape[0]
    endless = fitted(network, images, 1, ENDLESS)
    require_alike(endless, fitted(network, images, 1, LONG))
    return ChunkByChunk(endless, ENDLESS, kept[..., :0])


def _at_the_end(model: nn.Module, network: Network, stream: ChunkByChunk) -> Tensor | None:
    images, n = stream.given.samples.shape[0], stream.given.stop
    whole = as_laid_out(stream.given.samples, network.ops[0].layout)
    try:
        ended = fitted(network, images, 1, n)
        ended.require(1, n)
    except (SizeError, TraceError):
        if stream.outputs:
            raise
        # a short sound may take another path through the code, and all of it is in memory
        returned: Tensor = model(whole)
        return returned
    rest = stream.end(ended)
    return None if rest is None else _as_returned(stream, rest)


def _as_returned(stream: ChunkByChunk, made: Tensor) -> Tensor:
    return as_laid_out(made, stream.network.ops[-1].layout)
