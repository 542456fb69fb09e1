"""What is known of each kind of op: one file per family, one registry, open to plugins."""

from overlap_tool.geometry import Patch
from overlap_tool.rules import (
    assigning,
    barriers,
    borders,
    channels,
    convolution,
    normalisation,
    placing,
    pointwise,
    pooling,
    resampling,
    whole_map,
    windows,
)
from overlap_tool.rules.pieces import Patches, cleared, extend, place
from overlap_tool.rules.registry import (
    Call,
    Operand,
    Reduction,
    Rule,
    SizeArgument,
    WholeMap,
    compose,
    composition_of,
    is_quantiser,
    register_quantiser,
    register_rule,
    rule_for_function,
    rule_for_module,
)
from overlap_tool.rules.windows import Attention, attend, attention_in_windows

register_quantiser(
    "compressai.entropy_models.entropy_models.EntropyModel",
    "compressai.entropy_models.entropy_models_vbr.EntropyModelVbr",
)

__all__ = [
    "Attention",
    "Call",
    "Operand",
    "Patch",
    "Patches",
    "Reduction",
    "Rule",
    "SizeArgument",
    "WholeMap",
    "assigning",
    "attend",
    "attention_in_windows",
    "barriers",
    "borders",
    "channels",
    "cleared",
    "compose",
    "composition_of",
    "convolution",
    "extend",
    "is_quantiser",
    "normalisation",
    "place",
    "placing",
    "pointwise",
    "pooling",
    "register_quantiser",
    "register_rule",
    "resampling",
    "rule_for_function",
    "rule_for_module",
    "whole_map",
    "windows",
]
