"""How long a model takes that codes one position after another: told before it begins."""

from __future__ import annotations

import math
import time

import torch
from torch import nn

from overlap_tool.files.codec import Codec
from overlap_tool.files.pixels import Frame
from overlap_tool.files.summary import Clock

LONG_WAIT = 60.0
"""Seconds from which one is told how long it will take."""

TRIALS_NOT_WORTH_IT = 8
"""An image of at most so many trial images is simply coded."""


def tell_a_long_wait(codec: Codec, frame: Frame, clock: Clock) -> None:
    """How long, a small image shows."""
    if not any(_one_by_one(module) for module in codec.model.modules()):
        return
    side = 2 * codec.multiple
    times = math.prod(frame.padded) / side**2
    if times <= TRIALS_NOT_WORTH_IT:
        return
    trial = torch.full((1, codec.channels, side, side), 0.5, device=codec.device)
    with torch.no_grad():
        started = time.monotonic()
        codec.model.compress(trial)
        seconds = (time.monotonic() - started) * times
    if seconds > LONG_WAIT:
        clock.note(
            f"{codec.architecture} codes one position after another: this takes about {_spoken(seconds)}, "
            "in which nothing can be resumed"
        )


def _one_by_one(module: nn.Module) -> bool:
    return hasattr(module, "_compress_ar") or type(module).__name__ == "RasterScanLatentCodec"


def _spoken(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"
