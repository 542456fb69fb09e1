"""What the figures were measured on, and medians with their spread."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch


def describe(device: str = "cpu") -> str:
    """One line: GPU, if it is one, processor, cores, and the versions that matter."""
    cpuinfo = Path("/proc/cpuinfo")
    model = platform.processor() or platform.machine()
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    versions = [f"{name} {version(name)}" for name in ("torch", "compressai", "overlap-tool")]
    python = f"Python {platform.python_version()}"
    gpu = [torch.cuda.get_device_name()] if device == "cuda" else []
    return ", ".join([*gpu, model, f"{os.cpu_count()} cores", python, *versions])


def spread(values: Sequence[float], unit: str = "s") -> str:
    return f"{median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f})"
