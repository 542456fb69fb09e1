"""A GPU where there is none: its tensors say that they are on one, and are computed on the CPU.

Devices, values and what the allocator tells are as on a GPU. Streams do nothing, and what computes chains is
the kernel for the CPU, as `emulated_driver` launches it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from support.emulated_driver import EmulatedDriver, Stream, emulated_driver

DEVICE = torch.device("cuda:0")
FREE = 80 << 30

BETWEEN_DEVICES = {"aten::copy_", "aten::_to_copy"}
WAITING = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero"}
ALLOCATING = "aten::empty", "aten::new_empty", "aten::detach", "aten::_unsafe_view"
INDEXED_FROM_ANYWHERE = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class GpuTensor(Tensor):
    """Its numbers are another tensor's."""

    numbers: Tensor

    @staticmethod
    def __new__(cls: type[GpuTensor], numbers: Tensor) -> GpuTensor:
        made: GpuTensor = Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=DEVICE,
        )
        made.numbers = numbers
        return made

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({self.numbers})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = self.detach().clone()
            memo[id(self)] = (
                nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied
            )
        return memo[id(self)]

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.numbers.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} after the end of the emulated GPU")


class Memory:
    """What an allocator has given away, and the most that it had."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._known: set[int] = set()

    def hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def forget_peak(self) -> None:
        self.peak = self.now

    def _release(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.now -= size


class EmulatedGpu(TorchDispatchMode):
    """`launched` has the ops of PyTorch's that start work on the GPU, and `waits` what waits for its end."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()
        self.launched: list[str] = []
        self.waits: list[str] = []
        self.driver = EmulatedDriver()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if detect_fake_mode(tensors) is not None:  # has shapes and devices of its own
            return func(*args, **kwargs)
        name = func._schema.name
        here = [tensor for tensor in tensors if isinstance(tensor, GpuTensor)]
        if here and name not in BETWEEN_DEVICES:
            _refuse_several_devices(name, args, tensors)
        asked = next((each for each in args if isinstance(each, torch.device)), kwargs.get("device"))
        on_gpu = bool(here) and (name != "aten::copy_" or isinstance(args[0], GpuTensor))
        if asked is not None:
            on_gpu = torch.device(asked).type == "cuda"
            really = torch.device("cpu") if on_gpu else asked
            args = [really if isinstance(each, torch.device) else each for each in args]
            kwargs = {**kwargs, **({"device": really} if "device" in kwargs else {})}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        moves = name in BETWEEN_DEVICES and on_gpu != isinstance(args[name == "aten::copy_"], GpuTensor)
        if name in WAITING or (moves and not (kwargs.get("non_blocking") or args[2:3] == (True,))):
            self.waits.append(name)
        elif on_gpu and not func.is_view and not name.startswith(ALLOCATING):
            self.launched.append(name)
        owners = {id(tensor.numbers): tensor for tensor in here}
        result = func(*tree_map(_numbers, args), **tree_map(_numbers, kwargs))

        def owned(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.is_meta or not on_gpu:
                return value
            if id(value) in owners:  # an op in place
                return owners[id(value)]
            self.memory.hold(value)
            return GpuTensor(value)

        return tree_map(owned, result)


def _numbers(value: Any) -> Any:
    return value.numbers if isinstance(value, GpuTensor) else value


def _refuse_several_devices(name: str, args: Any, tensors: list[Tensor]) -> None:
    if name in INDEXED_FROM_ANYWHERE and isinstance(args[0], GpuTensor):
        return
    devices = {tensor.device for tensor in tensors if tensor.ndim > 0 or isinstance(tensor, GpuTensor)}
    if len(devices - {torch.device("meta")}) > 1:
        raise RuntimeError(f"{name}: all tensors must be on the same device, and are on {devices}")


def stand_in_for_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(Tensor, "record_stream", lambda values, stream: None)


def can_emulate() -> bool:
    """PyTorch 2.6 asks a driver which GPU is the current one, and cannot be kept from it."""
    return hasattr(torch._C, "_ensureCUDADeviceGuardSet")


@contextmanager
def emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedGpu]:
    """Inside, "cuda" is a device."""
    mode, generator_of_cpu = EmulatedGpu(), torch.Generator

    class Generator:  # a class, since modules that are imported inside may name it as a type
        def __new__(cls, device: object = None) -> torch.Generator:
            return generator_of_cpu()

    stand_in_for_streams(monkeypatch)
    for name, stand_in in {
        "_lazy_init": lambda: None,
        "synchronize": lambda: mode.waits.append("synchronize"),
        "get_device_name": lambda device=None: "emulated",
        "mem_get_info": lambda device=None: (FREE, FREE),
        "memory_allocated": lambda: mode.memory.now,
        "max_memory_allocated": lambda: mode.memory.peak,
        "reset_peak_memory_stats": mode.memory.forget_peak,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch, "Generator", Generator)
    torch._C._ensureCUDADeviceGuardSet()
    # new tensors of Python's numbers, and modules that move, go through the mode
    torch._C._set_only_lift_cpu_tensors(True)
    moves = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with emulated_driver(interpret=False) as mode.driver, mode:
            yield mode
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(moves)
        torch._C._set_only_lift_cpu_tensors(False)
