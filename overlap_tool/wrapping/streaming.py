"""`run_stream`: a model for sound, on chunks that arrive one after another and may never end."""

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
from overlap_tool.kernels import exact_kernels
from overlap_tool.rules.pieces import as_kept, as_laid_out
from overlap_tool.runtime.endless import ChunkByChunk, require_alike

ENDLESS, LONG = FITTING << 20, (FITTING << 19) + 1
"""Samples that no sound has: months. Of one length as of another, all is the same but for the end."""


def run_stream(model: nn.Module, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """What a model for sound makes of chunks, as they arrive: joined, the outputs are those of the whole.

    `chunks` are tensors of images, channels and samples, of any lengths; there may be no end of them. An
    output is given once what it reads has arrived, and as many samples more as any output reads. What lies
    between chunks, padding at the border and the states of recurrent layers included, is carried over, and
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
    """The chunk as a map of one row, if it fits the model and those before it."""
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
    """The stream before its first chunk. Refuses code that computes with the length of the sound."""
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
        # a short sound may take another way through the code, and all of it is here
        returned: Tensor = model(whole)
        return returned
    rest = stream.end(ended)
    return None if rest is None else _as_returned(stream, rest)


def _as_returned(stream: ChunkByChunk, made: Tensor) -> Tensor:
    return as_laid_out(made, stream.network.ops[-1].layout)
