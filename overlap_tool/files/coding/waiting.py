"""Estimates how long a model takes that codes one position after another."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import torch
from torch import nn

from overlap_tool.files.codec import Codec
from overlap_tool.files.formats.frame import Frame
from overlap_tool.files.summary import RunNotes

LONG_WAIT = 60.0
"""The estimate, in seconds, above which it is reported."""

TRIALS_NOT_WORTH_IT = 8
"""An image of at most this many trial images is coded without an estimate."""


def note_a_long_wait(codec: Codec, frame: Frame, in_memory: int, notes: RunNotes) -> None:
    """Estimate the time from small images, and report it if it is long.

    Only a latent that is coded in bands can be resumed.
    """
    if not codes_in_order(codec.model):
        return
    side = 2 * codec.multiple
    times = math.prod(frame.padded) / side**2
    if times <= TRIALS_NOT_WORTH_IT:
        return
    # one-time costs are excluded: those of a model's first call, and those of an image
    _, small, larger = (_seconds(codec, images * side, side) for images in (1, 1, 4))
    seconds = max(0, larger - small) / 3 * times
    if seconds > LONG_WAIT:
        resumed = "can be resumed" if _latent_bytes(codec, frame) > in_memory else "cannot be resumed"
        notes.note(
            f"{codec.architecture} codes one position after another: this takes about {_spoken(seconds)}, "
            f"and {resumed}"
        )


def _seconds(codec: Codec, height: int, width: int) -> float:
    trial = torch.full((1, codec.channels, height, width), 0.5, device=codec.device)
    with torch.no_grad():
        started = time.monotonic()
        codec.model.compress(trial)
        return time.monotonic() - started


def codes_in_order(model: nn.Module) -> bool:
    """Whether any part of the model codes one position after another."""
    return any(
        hasattr(module, "_compress_ar") or type(module).__name__ == "RasterScanLatentCodec"
        for module in model.modules()
    )


def _latent_bytes(codec: Codec, frame: Frame) -> Fraction:
    """The size of the first stage's output, in 32-bit floats."""
    network = next(stage for stage in codec.stages if stage.input_scale == 1).network
    return network.ops[-1].channels * math.prod(frame.padded) * network.rows.scale * network.columns.scale * 4


def _spoken(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"
