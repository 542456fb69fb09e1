"""Rules: what is known of each kind of op. One file per family, one registry, open to plugins."""

from overlap_tool.geometry import Patch
from overlap_tool.rules import (
    assigning,
    barriers,
    borders,
    channels,
    convolution,
    layouts,
    normalisation,
    placing,
    pointwise,
    pooling,
    products,
    resampling,
    sequences,
    unfolding,
    whole_map,
)
from overlap_tool.rules.exactness import register_exact_op
from overlap_tool.rules.mode import engine, exact_kernels, is_exact, rehearsal
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

register_quantiser(
    "compressai.entropy_models.entropy_models.EntropyModel",
    "compressai.entropy_models.entropy_models_vbr.EntropyModelVbr",
)

__all__ = [
    "Call",
    "Operand",
    "Patch",
    "Patches",
    "Reduction",
    "Rule",
    "SizeArgument",
    "WholeMap",
    "assigning",
    "barriers",
    "borders",
    "channels",
    "cleared",
    "compose",
    "composition_of",
    "convolution",
    "engine",
    "exact_kernels",
    "extend",
    "is_exact",
    "is_quantiser",
    "layouts",
    "normalisation",
    "place",
    "placing",
    "pointwise",
    "pooling",
    "products",
    "register_exact_op",
    "register_quantiser",
    "register_rule",
    "rehearsal",
    "resampling",
    "rule_for_function",
    "rule_for_module",
    "sequences",
    "unfolding",
    "whole_map",
]
