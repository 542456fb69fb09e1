"""Checkpoints: safe loading, architecture detection from keys and shapes, seeded models.

To add an architecture, see `architectures/`, one file per family: a condition, arguments, a constructor.
"""

from overlap_tool.checkpoint import architectures as _architectures  # noqa: F401  (registers them)
from overlap_tool.checkpoint.conditions import Condition, StateDict, has_key, has_prefix, shape, size
from overlap_tool.checkpoint.hashing import hash_weights
from overlap_tool.checkpoint.loading import Loaded, load_checkpoint, rebuild
from overlap_tool.checkpoint.numbering import numbered
from overlap_tool.checkpoint.origin import Origin, origin_of
from overlap_tool.checkpoint.registry import Architecture, detect, find, names, register_architecture
from overlap_tool.checkpoint.seeded import seed_weights
from overlap_tool.checkpoint.third_party import look_in_working_folder, require_class
from overlap_tool.checkpoint.writing import save_atomically, write_atomically, write_bytes
from overlap_tool.checkpoint.zoo import seeded_model

__all__ = [
    "Architecture",
    "Condition",
    "Loaded",
    "Origin",
    "StateDict",
    "detect",
    "find",
    "has_key",
    "has_prefix",
    "hash_weights",
    "load_checkpoint",
    "look_in_working_folder",
    "names",
    "numbered",
    "origin_of",
    "rebuild",
    "register_architecture",
    "require_class",
    "save_atomically",
    "seed_weights",
    "seeded_model",
    "shape",
    "size",
    "write_atomically",
    "write_bytes",
]
