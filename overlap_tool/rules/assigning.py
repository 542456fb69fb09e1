"""`x[:, :8, ::2] = y`: values written into a part of a map, as an op that returns the map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from overlap_tool.geometry import AT_ITS_PLACE, POINTWISE, Geometry, Patch, Transposed
from overlap_tool.kernels import compositions
from overlap_tool.rules.borders import WHOLE, full_index
from overlap_tool.rules.exactness import composed
from overlap_tool.rules.pieces import Patches
from overlap_tool.rules.registry import Call, Operand, Rule, register_rule


def assign(whole: Tensor, key: Any, value: Any) -> Tensor:
    """`whole[key] = value`, returning the changed tensor, as in-place ops do."""
    whole[key] = value
    return whole


@register_rule(assign, exact=composed(index_put=compositions.index_put))
def assigned(call: Call, whole: Operand, key: Any, value: Any) -> Rule:
    if not whole.spatial:
        call.refuse("writes a map into a tensor that is none")
    if isinstance(key, Operand):
        if not key.spatial or len(key.shape) != len(whole.shape) or isinstance(value, Operand):
            call.refuse("writes several values where a condition holds")
        return Rule(lambda patches, whole, key, value: assign(whole.clone(), key, value))
    *channels, rows, columns = full_index(call, key, len(whole.shape))
    written: list[range | None] = []
    for item, size in zip((rows, columns), call.input_shapes[0][-2:], strict=True):
        if item != WHOLE and not call.of_one_size:
            call.refuse_size("writes some rows or columns of a map")
        if not isinstance(item, slice) or (item.step or 1) < 0:
            call.refuse("writes rows or columns that are no slice")
        taken = range(*item.indices(size))
        written.append(None if taken == range(size) else taken)
    if channels[0] != WHOLE or any(item is None or isinstance(item, Operand) for item in channels):
        call.refuse("writes some images of a batch, or channels that it computes")
    kept = sum(not isinstance(item, int) for item in (*channels, rows, columns))
    if isinstance(value, Operand) and value.summary and len(value.shape) != kept:
        call.refuse("writes a value of the whole map that has other dimensions than the map")
    if any(written) and isinstance(value, Operand):
        if value.spatial and value.shape[-2:] != whole.shape[-2:]:
            call.refuse("repeats a map over the rows or columns that it writes")
        if not value.spatial and any(n != 1 for n in value.shape[-2:]):
            call.refuse("writes a value that is not a map to some rows or columns of a map")

    def run(patches: Patches, whole: Tensor, key: Any, value: Any) -> Tensor:
        made = whole.clone()
        if any(written):
            here = [_is_among(*each, whole.device) for each in zip(written, patches, strict=True)]
            value = torch.as_tensor(value, device=whole.device).to(whole.dtype)
            value = torch.where(here[0][:, None] & here[1], value, made[tuple(channels)])
        return assign(made, tuple(channels), value)

    down, across = (POINTWISE if each is None else AT_ITS_PLACE for each in written)
    return Rule(run, down, across)


def _is_among(written: range | None, patch: Patch, device: torch.device) -> Tensor:
    """Which rows or columns of a piece are written to."""
    return torch.tensor([written is None or place in written for place in range(*patch.out)], device=device)


def scattered(value: Tensor, rows: slice, columns: slice, size: tuple[int, int]) -> Tensor:
    """A map of that size with a value in these rows and columns, and zeros elsewhere."""
    return assign(value.new_zeros(*value.shape[:-2], *size), (..., rows, columns), value)


@register_rule(scattered)
def scattering(call: Call, value: Operand, rows: slice, columns: slice, size: tuple[int, int]) -> Rule:
    """The rule of `scattered`: like a transposed convolution with a stride before it sums."""
    places = [range(*each.indices(n)) for each, n in zip((rows, columns), size, strict=True)]

    def run(patches: Patches, value: Tensor, *_: Any) -> Tensor:
        made = value.new_zeros(*value.shape[:-2], *(patch.out.length for patch in patches))
        if value.numel():
            down, across = (
                slice(
                    each[patch.have.start] - patch.out.start,
                    each[patch.have.stop - 1] - patch.out.start + 1,
                    each.step,
                )
                for each, patch in zip(places, patches, strict=True)
            )
            made[..., down, across] = value
        return made

    down, across = (_apart(each, n) for each, n in zip(places, size, strict=True))
    return Rule(run, down, across)


def _apart(places: range, n: int) -> Geometry:
    trim = -places.start
    return Transposed(1, places.step, trim, extra=n - (places[-1] + 1 - trim))
