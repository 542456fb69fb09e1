"""Copies between pieces of maps on a GPU, channels last: several in one launch."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch

from overlap_tool.kernels import nvrtc
from overlap_tool.kernels.copying import Copied
from overlap_tool.kernels.driver import Launch, LoadedKernel, Structure
from overlap_tool.kernels.work import AnyTensor

REST = struct.Struct("6q4I")
"""The fields of `Box` in `boxes.cu` after the addresses."""

THREADS = 256

MOST_TOGETHER = 16

WORDS = {16: "uint4", 4: "unsigned"}


@dataclass(frozen=True)
class Boxes:
    """Copies, none of which writes what another reads or writes."""

    copies: tuple[Copied, ...]

    def launch(self) -> Launch:
        whole = all(each % 16 == 0 for copy in self.copies for each in _bytes(copy))
        size = 16 if whole else 4
        counts = [copy.to.numel() * copy.to.element_size() // size for copy in self.copies]
        kernel = _loaded(WORDS[size], len(self.copies), self.copies[0].to.device.index)
        grid = -(-max(counts) // THREADS), len(self.copies)
        return Launch(kernel, grid, tuple(_structure(copy, size) for copy in self.copies))


def can_copy(source: AnyTensor, to: AnyTensor) -> bool:
    """Whether a copy consists of whole words, countable in 32 bits."""
    return all(each % 4 == 0 for each in _bytes(Copied(source, to))) and 0 < to.numel() < 2**31


def _bytes(copy: Copied) -> Iterator[int]:
    """All sizes and addresses that have to be whole words."""
    size = copy.to.element_size()
    yield copy.to.shape[1] * size
    for each in (copy.source, copy.to):
        assert each is not None
        yield each.data_ptr()
        yield from (each.stride(dim) * size for dim in (0, 2, 3) if each.shape[dim] > 1)


def _structure(copy: Copied, size: int) -> Structure:
    source, to = copy.source, copy.to
    assert source is not None
    _, channels, rows, columns = to.shape
    strides = (
        each.stride(dim) * to.element_size() // size if to.shape[dim] > 1 else 0
        for each in (source, to)
        for dim in (0, 2, 3)
    )
    count = to.numel() * to.element_size() // size
    rest = REST.pack(*strides, rows, columns, channels * to.element_size() // size, count)
    return Structure((source, to), rest)


@cache
def _loaded(word: str, count: int, device: int) -> LoadedKernel:
    source = (files("overlap_tool.kernels") / "boxes.cu").read_text()
    target = nvrtc.target(torch.cuda.get_device_capability(device))
    compiled = nvrtc.compile_kernel(source, f"copied<{word}, {count}>", target)
    return LoadedKernel(compiled, device, THREADS)
