"""STF and WACNN (Zou, Song and Zhang, CVPR 2022): how their checkpoints are recognised and built.

Importing this registers them, and the stages of the authors' own class.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from overlap_tool.checkpoint import (
    Architecture,
    Condition,
    StateDict,
    has_key,
    has_prefix,
    numbered,
    register_architecture,
    shape,
    size,
)
from overlap_tool_stf import authors

__all__ = ["STF", "WACNN", "authors"]

SLICED = (
    has_key("cc_mean_transforms.0.8.weight", "cc_scale_transforms.0.8.weight", "lrp_transforms.0.8.weight")
    & has_key("h_mean_s.8.weight", "h_scale_s.8.weight", "entropy_bottleneck.quantiles")
    & ~has_prefix("latent_codec.")
)


def _analysis_reads(y: str) -> Condition:
    return size("h_a.0.weight", 1).matches(size(y))


# Importing CompressAI takes seconds, so it waits until a model is wanted.
def _wacnn(**arguments: Any) -> nn.Module:
    from overlap_tool_stf.wacnn import WACNN

    return WACNN(**arguments)


def _stf(**arguments: Any) -> nn.Module:
    from overlap_tool_stf.stf import SymmetricalTransFormer

    return SymmetricalTransFormer(**arguments)


def _shape_of_stf(state: StateDict) -> dict[str, Any]:
    table = "attn.relative_position_bias_table"
    scales = numbered(state, f"layers.{{}}.blocks.0.{table}")
    return {
        "embed_dim": state["patch_embed.proj.weight"].shape[0],
        "depths": [len(numbered(state, f"layers.{scale}.blocks.{{}}.{table}")) for scale in scales],
        "heads": [state[f"layers.{scale}.blocks.0.{table}"].shape[1] for scale in scales],
        "slices": len(numbered(state, "lrp_transforms.{}.8.weight")),
    }


WACNN = register_architecture(
    Architecture(
        name="wacnn",
        detect=SLICED
        & shape("g_a.0.weight", None, 3, 5, 5)
        & shape("g_a.4.conv_b.0.attn.relative_position_bias_table", 225, 8)
        & shape("g_a.8.conv_b.0.attn.relative_position_bias_table", 49, 8)
        & shape("g_s.8.weight", None, 3, 5, 5)
        & has_key("g_a.1.gamma")
        & _analysis_reads("g_a.7.weight"),
        arguments=lambda state: {"N": state["g_a.0.weight"].shape[0], "M": state["g_a.7.weight"].shape[0]},
        build=_wacnn,
        small={"N": 16, "M": 40},
        default={"N": 192, "M": 320},
    )
)
STF = register_architecture(
    Architecture(
        name="stf",
        detect=SLICED
        & shape("patch_embed.proj.weight", None, 3, 2, 2)
        & shape("layers.0.blocks.0.attn.relative_position_bias_table", 49, None)
        & has_key("layers.0.downsample.reduction.weight", "syn_layers.0.blocks.0.mlp.fc1.weight")
        & has_key("end_conv.0.weight", "end_conv.2.weight")
        & _analysis_reads("syn_layers.0.blocks.0.norm1.weight"),
        arguments=_shape_of_stf,
        build=_stf,
        small={"embed_dim": 6, "depths": [2, 2, 2, 2], "heads": [1, 2, 3, 4], "slices": 12},
        default={"embed_dim": 48, "depths": [2, 2, 6, 2], "heads": [3, 6, 12, 24], "slices": 12},
    )
)
