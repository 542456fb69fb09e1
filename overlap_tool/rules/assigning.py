"""`x[:, :8] = y`: values written into channels of a map, as an op that returns the map."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from overlap_tool.rules.borders import WHOLE, full_index
from overlap_tool.rules.pieces import Patches
from overlap_tool.rules.registry import Call, Operand, Rule, register_rule


def assign(whole: Tensor, key: Any, value: Any) -> Tensor:
    """`whole[key] = value`. Returns what it changed, as other ops in place do."""
    whole[key] = value
    return whole


@register_rule(assign)
def assigned(call: Call, whole: Operand, key: Any, value: Any) -> Rule:
    if not whole.spatial:
        call.refuse("writes a map into a tensor that is none")
    if isinstance(key, Operand):
        if not key.spatial or len(key.shape) != len(whole.shape) or isinstance(value, Operand):
            call.refuse("writes several values where a condition holds")
        return Rule(lambda patches, whole, key, value: assign(whole.clone(), key, value))
    *channels, rows, columns = full_index(call, key, len(whole.shape))
    for item, size in zip((rows, columns), call.input_shapes[0][-2:], strict=True):
        if item != WHOLE and not (call.of_one_size and _is_all_of(item, size)):
            call.refuse("writes some rows or columns of a map")
    if channels[0] != WHOLE or any(item is None or isinstance(item, Operand) for item in channels):
        call.refuse("writes some images of a batch, or channels that it computes")
    kept = sum(not isinstance(item, int) for item in (*channels, rows, columns))
    if isinstance(value, Operand) and value.summary and len(value.shape) != kept:
        call.refuse("writes a value of the whole map that has other dimensions than the map")

    def run(patches: Patches, whole: Tensor, key: Any, value: Any) -> Tensor:
        return assign(whole.clone(), tuple(channels), value)

    return Rule(run)


def _is_all_of(item: Any, size: int) -> bool:
    return isinstance(item, slice) and item.indices(size) == (0, size, 1)
