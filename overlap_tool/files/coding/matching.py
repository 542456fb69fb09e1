"""Checks whether a compressed image can be one of this model, before anything is decoded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from overlap_tool.errors import ContainerError
from overlap_tool.files.codec import Codec
from overlap_tool.files.formats import container
from overlap_tool.files.formats.container import Head
from overlap_tool.files.formats.frame import padding
from overlap_tool.files.summary import RunNotes
from overlap_tool.kernels.arithmetic import VERSION

LEAST_BITS = math.log2(65536 / 65535)
"""The least bits of a symbol: probabilities have 16 bits, and none is 1."""


def refuse_another_checkpoint(where: str, head: Head, codec: Codec) -> None:
    if head.architecture != codec.architecture:
        reason = f"it was written by {head.architecture}, and {codec.where} is {codec.architecture}"
    elif head.weights_sha256 != codec.weights_sha256:
        reason = (
            f"it was written by other weights ({head.weights_sha256[:12]}...) than those of {codec.where}"
        )
    else:
        return
    raise ContainerError(where, reason, "Decode it with the checkpoint that wrote it")


def refuse_impossible(where: str, head: Head, codec: Codec, payload: int) -> None:
    """Raise for a head that does not fit the model, or that claims more than its strings can hold."""
    channels = codec.channels
    if head.channels != channels and (head.channels, channels) != (1, 3):
        raise ContainerError(where, f"{head.channels} channels, of a model of {channels}", container.AGAIN)
    if head.padding != padding(head.height, head.width, codec.multiple):
        raise ContainerError(where, "its padding is not that of its size", container.AGAIN)
    coded = codec.coded_maps(head.frame)
    for size in _sizes(head.shape):
        if size not in coded:
            raise ContainerError(
                where, f"no map of the model has the size {size[1]}x{size[0]}", container.AGAIN
            )
        if coded[size] * size[0] * size[1] * LEAST_BITS > 8 * payload + 64:
            raise ContainerError(
                where,
                f"its {payload} bytes cannot hold an image of {head.width}x{head.height}",
                container.AGAIN,
            )


def _sizes(shape: Any) -> Iterator[tuple[int, int]]:
    """The heights and widths in what a model calls `shape`."""
    if isinstance(shape, dict):
        shape = list(shape.values())
    if isinstance(shape, list) and len(shape) >= 2 and all(isinstance(part, int) for part in shape):
        yield shape[-2], shape[-1]
    elif isinstance(shape, list):
        for part in shape:
            yield from _sizes(part)


def refuse_another_engine(where: str, head: Head, codec: Codec, allowed: bool, notes: RunNotes) -> None:
    """Raise, or note if `allowed`, that other kernels wrote the file.

    A scale that differs in its last bit gives wrong symbols, and not every model's symbols are hashed.
    """
    own = codec.fingerprint
    if head.engine == own:
        return
    keys = sorted(key for key in {*own, *head.engine} if own.get(key) != head.engine.get(key))
    told = ", ".join(f"{key} {head.engine.get(key)} then and {own.get(key)} now" for key in keys)
    reason = f"another engine wrote it ({told}), so its symbols may come out wrong"
    if not allowed:
        raise ContainerError(where, reason, f"{_what_decodes(head.engine)}; or give `any_engine=True`")
    notes.note(f"{reason}; models whose symbols are hashed in the file then stop with an error")


def _what_decodes(engine: Mapping[str, str]) -> str:
    if engine.get("kernels") != "exact":
        own = {key: value for key, value in engine.items() if key != "kernels"}
        return 'Wrap its checkpoint with `engine="stock"`, on ' + ", ".join(
            f"{key} {value}" for key, value in sorted(own.items())
        )
    if engine.get("arithmetic") != VERSION:
        return f"Decode it by a version of the tool whose arithmetic is {engine.get('arithmetic')}"
    return 'Wrap its checkpoint without `engine="stock"`'
