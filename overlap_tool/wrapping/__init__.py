"""Gives a model a tiled forward, and takes it away again."""

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

__all__ = ["load", "plans", "rewrap", "save", "settings_of", "tiled", "unwrap", "wrap"]
