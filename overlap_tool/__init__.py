"""Exact, retraining-free tiled inference for learned image codecs and other CNNs."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overlap_tool.analysis import Analysis, analyze
    from overlap_tool.kernels import exact_kernels
    from overlap_tool.verification import Certificate, verify
    from overlap_tool.wrapping.retrofit import load, plans, save, unwrap, wrap

__version__ = version("overlap-tool")
__all__ = [
    "Analysis",
    "Certificate",
    "__version__",
    "analyze",
    "exact_kernels",
    "load",
    "plans",
    "save",
    "unwrap",
    "verify",
    "wrap",
]

# torch takes seconds to import, so it is imported when something here is first used, not before.
_HOMES = {
    **dict.fromkeys(("Analysis", "analyze"), "overlap_tool.analysis"),
    "exact_kernels": "overlap_tool.kernels",
    **dict.fromkeys(("load", "plans", "save", "unwrap", "wrap"), "overlap_tool.wrapping.retrofit"),
    **dict.fromkeys(("Certificate", "verify"), "overlap_tool.verification"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
