"""A value of every position, such as coordinates, as a map: a tile takes its own part of it."""

from __future__ import annotations

from torch import Tensor

from overlap_tool.geometry import AT_ITS_PLACE
from overlap_tool.rules.pieces import Patches
from overlap_tool.rules.registry import Call, Operand, Rule, register_rule


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A tensor with as many rows and columns as a map, or one of them that stands for all, as a map."""
    return at_least_rows(value).expand(*value.shape[:-2], *like.shape[-2:])


def at_least_rows(value: Tensor) -> Tensor:
    """A value of columns alone as one row of them."""
    return value if value.ndim > 1 else value[None]


@register_rule(placed)
def at_its_place(call: Call, value: Operand, like: Operand) -> Rule:
    def run(patches: Patches, value: Tensor, like: Tensor) -> Tensor:
        value = at_least_rows(value)
        rows, columns = (
            slice(*patch.out) if length > 1 else slice(None)
            for patch, length in zip(patches, value.shape[-2:], strict=True)
        )
        return placed(value[..., rows, columns], like)

    return Rule(run, AT_ITS_PLACE, AT_ITS_PLACE)
