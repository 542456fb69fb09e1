"""What is known of each kind of op: one file per family, one registry, open to plugins."""

from overlap_tool.rules import (
    borders,
    channels,
    convolution,
    pointwise,
    pooling,
    resampling,
    whole_map,
)
from overlap_tool.rules.pieces import extend, place
from overlap_tool.rules.registry import (
    Call,
    Operand,
    Patch,
    Patches,
    Rule,
    Size,
    builder_for_function,
    builder_for_module,
    is_quantiser,
    register,
    register_quantiser,
)

register_quantiser(
    "compressai.entropy_models.entropy_models.EntropyModel",
    "compressai.entropy_models.entropy_models_vbr.EntropyModelVbr",
)

__all__ = [
    "Call",
    "Operand",
    "Patch",
    "Patches",
    "Rule",
    "Size",
    "borders",
    "builder_for_function",
    "builder_for_module",
    "channels",
    "convolution",
    "extend",
    "is_quantiser",
    "place",
    "pointwise",
    "pooling",
    "register",
    "register_quantiser",
    "resampling",
    "whole_map",
]
