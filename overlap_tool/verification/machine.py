"""Describes the machine: device, threads, and every version that may influence the bits."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from overlap_tool import __version__
from overlap_tool.errors import OptionError
from overlap_tool.verification.certificate import Machine

LIBRARIES = ("compressai", "numpy", "llvmlite")


def find_device(name: str) -> torch.device:
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise OptionError(f"device={name!r}", "is not one", "Use cpu or cuda")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise OptionError(f"device={name!r}", f"is not to be had ({reason})", 'Use `device="cpu"`') from error
    return device


def describe(device: torch.device) -> Machine:
    return Machine(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        libraries={
            "overlap-tool": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: _version(name) for name in LIBRARIES},
        },
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(named)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
