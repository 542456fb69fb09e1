"""Wrapping: gives a model tiled forwards, and restores its own."""

from overlap_tool.wrapping.retrofit import (
    load,
    plans,
    rewrap,
    save,
    settings_of,
    tiled,
    unwrap,
    wrap,
)
from overlap_tool.wrapping.streaming import run_stream

__all__ = ["load", "plans", "rewrap", "run_stream", "save", "settings_of", "tiled", "unwrap", "wrap"]
