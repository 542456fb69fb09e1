"""Rules for the authors' own classes, by qualified name: their code is a fork called compressai, too."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from overlap_tool.errors import UnknownOpError
from overlap_tool.rules import Attention, Call, Operand, Patches, Rule, attention_in_windows, place, register
from overlap_tool_stf.attention import bias_of, by_heads


@register("compressai.layers.win_attention.WinBasedAttention")
def win_based_attention(call: Call, module: Any, input: Operand) -> Rule:
    """WACNN's attention with its skip: a map of whole windows to a map."""

    def attention(module: Any) -> Attention:
        attn = module.attn
        return Attention(
            project=lambda tokens: by_heads(attn.qkv(tokens), attn.num_heads, lambda q: q * attn.scale),
            similarity=lambda queries, keys: queries @ keys.transpose(-2, -1),
            bias=bias_of(attn.relative_position_bias_table, attn.relative_position_index),
            merge=attn.proj,
        )

    rule = attention_in_windows(
        attention,
        window=module.window_size,
        shift=module.shift_size,
        channels=module.dim,
        weights=module.attn.qkv.weight.numel() + module.attn.proj.weight.numel(),
        heads=module.num_heads,
        fills=False,
    )

    def run(patches: Patches, module: Any, input: Tensor) -> Tensor:
        rows, columns = patches
        skip = place(input, (rows.have.start, columns.have.start), patches)
        return skip + rule.run(patches, module, input)

    return Rule(run, rule.rows, rule.columns, rule.macs, rule.scratch)


@register("compressai.models.stf.PatchEmbed")
def patch_embed(call: Call, module: Any, input: Operand) -> Rule:
    """The only part of STF's analysis that maps a map to a map, so the only one that could be a stage. What
    follows would be left out of the tiles without a word."""
    raise UnknownOpError(
        f"{call.name} ({call.kind})",
        "the transforms of STF's own code hand on tokens and their height and width, not maps",
        "Leave --model out, or say --arch stf: its transforms are maps, and it loads the same checkpoint",
    )
