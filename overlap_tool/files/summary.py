"""The summary of a run on files: its costs and results."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from overlap_tool.geometry.layout import Kind
from overlap_tool.settings import Samples, Size

SCHEMA = 1


@dataclass(frozen=True)
class RunSummary:
    """The fields are described in docs/schema.md."""

    command: str
    input: str
    output: str
    width: int
    height: int
    depth: int | None
    channels: int
    sample_bits: int
    bytes: int | None
    bits_per_pixel: float | None
    bands: int | None
    psnr: float | None
    resumed: bool
    seconds: float
    peak_memory_bytes: int
    kind: Kind = "image"
    renewed: int | None = None
    """For an update, how many bands differ from before."""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2)

    def to_text(self) -> str:
        size = (Samples if self.kind == "sound" else Size)(self.width, self.height)
        parts = [str(size) if self.depth is None else f"{size}x{self.depth}"]
        if self.bytes is not None and self.bits_per_pixel is not None:
            parts.append(f"{self.bytes} bytes, {self.bits_per_pixel:.4f} bits per pixel")
        if self.bands is not None and self.bands > 1:
            parts.append(f"coded in {self.bands} bands")
        if self.renewed is not None:
            parts.append(f"{self.renewed} of all bands are new")
        if self.psnr is not None:
            parts.append(f"PSNR {self.psnr:.3f} dB")
        parts += [f"{self.seconds:.1f} s", f"peak memory {self.peak_memory_bytes / 2**20:.0f} MiB"]
        return f"{self.input} -> {self.output}: {', '.join(parts)}"


class RunNotes:
    """The seconds since it was created, and the notes of a run."""

    def __init__(self, notify: Callable[[str], None] | None) -> None:
        self.started = time.monotonic()
        self.notes: list[str] = []
        self.notify = notify

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            if self.notify is not None:
                self.notify(text)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


def peak_memory_bytes() -> int:
    """The peak resident memory of this process so far.

    `getrusage` would include the peak of the parent process, from whose copy this one started.
    """
    try:
        told = Path("/proc/self/status").read_text()
        return int(told.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
