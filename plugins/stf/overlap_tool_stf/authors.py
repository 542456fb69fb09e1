"""The authors' own classes, by qualified name: their code is a fork called compressai, too.

WACNN needs a rule for one of its layers. STF hands tokens from layer to layer, (images, positions, channels),
with their height and width, inline in all of its methods. So its transforms are ours, on its own weights.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from overlap_tool.errors import UnknownOpError
from overlap_tool.models import inline
from overlap_tool.models.inline import InlineStage
from overlap_tool.rules import (
    Attention,
    Call,
    Operand,
    Patches,
    Rule,
    attention_in_windows,
    place,
    register_rule,
)
from overlap_tool_stf.attention import bias_of, by_heads
from overlap_tool_stf.swin import analysis, synthesis


@register_rule("compressai.layers.win_attention.WinBasedAttention")
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


@inline.register_inline_stages("compressai.models.stf.SymmetricalTransFormer")
def symmetrical_transformer(model: Any) -> tuple[InlineStage, ...]:
    """The first part computes all of y from the image, and the layers hand on its tokens. From y back, the
    layers hand its tokens on to the last part, which computes the image."""
    from overlap_tool_stf import STF

    state = model.state_dict()
    if not STF.detect(state):
        _refuse(f"{type(model).__name__} ({type(model).__module__})")
    arguments = STF.arguments(state)
    del arguments["slices"]
    with torch.device("meta"):
        g_a, g_s = analysis(**arguments), synthesis(**arguments)
    y = arguments["embed_dim"] << len(arguments["depths"]) - 1
    return (
        InlineStage(
            "g_a",
            _on_weights_of(model, g_a),
            begins=(model.patch_embed, lambda image: image),
            ends=(model.layers[-1], lambda output: _as_map(*output)),
            forwards={model.patch_embed: _compute, **dict.fromkeys(model.layers, _hand_on)},
        ),
        InlineStage(
            "g_s",
            _on_weights_of(model, g_s),
            begins=(model.syn_layers[0], _as_map),
            ends=(model.end_conv, lambda image: image),
            forwards={
                **dict.fromkeys(model.syn_layers, _hand_on),
                model.end_conv: partial(_compute_from_tokens, channels=y),
            },
        ),
    )


def _on_weights_of(model: nn.Module, stage: nn.Module) -> nn.Module:
    """The stage with the model's own parameters and buffers, which have the same names."""
    theirs = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for key, blank in stage.state_dict().items():
        if key not in theirs or theirs[key].shape != blank.shape:
            _refuse(f"{key} of {type(model).__name__} ({type(model).__module__})")
        path, _, name = key.rpartition(".")
        setattr(stage.get_submodule(path), name, theirs[key])
    return stage.eval()


def _as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _compute(stage: nn.Module, map: Tensor) -> Tensor:
    found: Tensor = stage(map)
    return found


def _hand_on(stage: nn.Module, tokens: Tensor, height: int, width: int) -> tuple[Tensor, int, int]:
    return tokens, height, width


def _compute_from_tokens(stage: nn.Module, map: Tensor, channels: int) -> Tensor:
    """The class takes the tokens for those of the last layer, of fewer channels, and makes a map of them as
    if of more images. Their numbers and their order are still those of y."""
    tokens = map.permute(0, 2, 3, 1)
    return _compute(stage, tokens.reshape(-1, *map.shape[2:], channels).permute(0, 3, 1, 2))


@register_rule("compressai.models.stf.PatchEmbed")
def patch_embed(call: Call, module: Any, input: Operand) -> Rule:
    """The only part of STF's analysis that maps a map to a map, so the only one that could be a stage in a
    class whose inline stages are not known. What follows would be left out of the tiles without a word."""
    _refuse(f"{call.name} ({call.kind})")


def _refuse(where: str) -> NoReturn:
    raise UnknownOpError(
        where,
        "STF's code hands on tokens with their height and width, not maps, and this is not the class whose "
        "transforms are known",
        'Leave `model_class` out, or say `architecture="stf"`, with CompressAI itself installed: its '
        "transforms are maps, and it loads the same checkpoint",
    )
