"""A GPU without data. Its tensors have a shape and a device, so that what runs shows where everything lives.

PyTorch refuses an op whose tensors lie on several devices, of fake tensors as of real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor

from overlap_tool import stores
from overlap_tool.kernels import chain, cuda, mode


class Stream:
    """A stream of copies, and the event at its end."""

    def wait_stream(self, other: object) -> None: ...

    def record_event(self) -> Stream:
        return self

    def synchronize(self) -> None: ...


def stand_in_for_streams(
    monkeypatch: pytest.MonkeyPatch, copies: Callable[[torch.device], Stream | None]
) -> None:
    """`copies` gives the stream on which pieces go to and from a device."""
    monkeypatch.setattr(stores, "_copy_stream", copies)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(Tensor, "record_stream", lambda values, stream: None)


def stand_in_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> fake_tensor.FakeTensorMode:
    """Inside what is returned, tensors are fake, and "cuda" is a device with 80 GiB."""
    stand_in_for_streams(monkeypatch, lambda device: None if device.type == "cpu" else Stream())
    monkeypatch.setattr(stores, "_pinned", lambda like: torch.empty(like.shape, dtype=like.dtype))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 << 30, 80 << 30))
    monkeypatch.setattr(torch, "from_file", lambda *_, size, dtype, **__: torch.empty(size, dtype=dtype))
    monkeypatch.setattr(chain, "kernel_for", lambda layer: cuda)
    # the exact engine leaves tensors without data alone; here it is to compute on them
    monkeypatch.setattr(mode, "_has_memory", lambda value: isinstance(value, Tensor) and not value.is_meta)
    monkeypatch.setattr(mode, "AS_IS", mode.AS_IS | {"prim::device"})
    # no fake tensor has an address, so that a write to one would be a write to all
    monkeypatch.setattr(chain.Prepared, "changed", lambda prepared, tensor: None)
    # single numbers are no exception: PyTorch would keep theirs, and copy them to a real device
    monkeypatch.setattr(fake_tensor, "CONSTANT_NUMEL_LIMIT", 0)
    monkeypatch.setattr(cuda, "_triton_chain", lambda: SimpleNamespace(run=_launch))
    return fake_tensor.FakeTensorMode()


def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, form: object, out: Tensor) -> None:
    """The kernel reads and writes these, the weights as they were packed."""
    assert weight.permute(2, 3, 1, 0).is_contiguous()
    assert {t.device.type for t in (x, weight, bias, out) if t is not None} == {"cuda"}


def move_to_the_gpu(model: nn.Module) -> None:
    """Inside the mode: the model's parameters and buffers, without their values."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    moved = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    tensors[name] = nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved
