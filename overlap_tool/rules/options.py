"""Layers that hold a function's options as attributes of the same names: they use the function's rule."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from inspect import signature
from typing import Any

from torch import Tensor, nn

from overlap_tool.rules.pieces import Patches
from overlap_tool.rules.registry import Call, Operand, Reduction, Rule, RuleBuilder


def of_layer(build: RuleBuilder) -> RuleBuilder:
    """The rule of a layer, from that of the function: `register_rule(nn.Conv2d)(of_layer(conv))`.

    Weights are read from the layer at every call, the other options once.
    """
    _, _, *options = signature(build).parameters

    def of_options(call: Call, layer: nn.Module, input: Operand) -> Rule | Reduction:
        held = {name: getattr(layer, name) for name in options if hasattr(layer, name)}
        weights = [name for name, value in held.items() if isinstance(value, Tensor)]
        held |= {name: Operand(name, tuple(held[name].shape), spatial=False) for name in weights}
        rule = build(call, input, **held)
        if isinstance(rule, Reduction):
            return replace(rule, run=lambda layer, input: rule.run(input))

        @wraps(rule.run)  # keeps the module name, by which our own rules are known
        def run(patches: Patches, layer: nn.Module, input: Tensor) -> Any:
            return rule.run(patches, input, **{name: getattr(layer, name) for name in weights})

        return replace(rule, run=run)

    return of_options
