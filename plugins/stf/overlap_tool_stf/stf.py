"""STF: transforms made of Swin blocks alone, from patches of two pixels on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from overlap_tool_stf.entropy import StfCodec, evenly
from overlap_tool_stf.swin import analysis, synthesis

STAGES = ("g_a.", "g_s.")


class SymmetricalTransFormer(StfCodec):
    """`embed_dim` is the width at half the image's sides; it doubles with each of four scales.

    `depths` and `heads` are the numbers of Swin blocks, and of heads in each, from the largest scale to the
    smallest; the synthesis mirrors them.

    In checkpoints the parts of the transforms stand on their own, without the names g_a and g_s. So that each
    transform is one module all the same, those names are taken from the keys of the state dict and put back.
    """

    def __init__(
        self,
        embed_dim: int = 48,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        slices: int = 12,
    ) -> None:
        y, z = embed_dim << len(depths) - 1, 4 * embed_dim
        between = evenly(y, z)
        super().__init__(
            analysis(embed_dim, depths, heads),
            synthesis(embed_dim, depths, heads),
            slices=slices,
            analysis=[y, *between],
            synthesis=[z, *between[-2::-1], y],
        )
        self.register_state_dict_post_hook(_leave_out_stages)
        self.register_load_state_dict_pre_hook(_put_in_stages)


def _leave_out_stages(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename(state, {f"{prefix}{stage}": prefix for stage in STAGES})


def _put_in_stages(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    parts = {
        f"{prefix}{part}.": f"{prefix}{stage}{part}."
        for stage in STAGES
        for part, _ in module.get_submodule(stage[:-1]).named_children()
    }
    _rename(state, parts)


def _rename(state: dict[str, Any], beginnings: dict[str, str]) -> None:
    """In place and in order, as both hooks have to work."""
    items = list(state.items())
    state.clear()
    for key, value in items:
        old = next((old for old in beginnings if key.startswith(old)), "")
        state[beginnings.get(old, "") + key.removeprefix(old)] = value
