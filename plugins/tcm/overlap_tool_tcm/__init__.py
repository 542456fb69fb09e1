"""LIC-TCM (Liu et al., CVPR 2023): its network, and how its checkpoints are recognised."""

from __future__ import annotations

from typing import Any

from torch import nn

from overlap_tool.checkpoint import (
    Architecture,
    StateDict,
    has_key,
    numbered,
    register_architecture,
    shape,
    size,
)

WINDOW = 8
REACH = 2 * WINDOW - 1
"""How many relative positions there are on an axis of a window."""


def _shape_of(state: StateDict) -> dict[str, Any]:
    """The constructor's arguments, from the order and the shapes of the layers."""
    analysis, synthesis = _mixed_blocks(state, "g_a"), _mixed_blocks(state, "g_s")
    N = state["g_a.1.conv1_1.weight"].shape[0] // 2
    last = f"g_a.{max(analysis[-1]) + 1}.weight"
    return {
        "N": N,
        "M": state[last].shape[0],
        "config": [len(scale) for scale in (*analysis, *synthesis)],
        "head_dim": [
            N // max(1, state[f"{stage}.{scale[0]}.trans_block.msa.relative_position_params"].shape[0])
            for stage, scales in (("g_a", analysis), ("g_s", synthesis))
            for scale in scales
        ],
        "slices": len(numbered(state, "lrp_transforms.{}.0.weight")),
        "z": state["h_mean_s.0.subpel_conv.0.weight"].shape[1],
        "attention": state["atten_mean.0.0.in_conv.weight"].shape[0],
        "prediction": [state[f"lrp_transforms.0.{layer}.weight"].shape[0] for layer in (0, 2)],
    }


def _mixed_blocks(state: StateDict, stage: str) -> list[list[int]]:
    """Where in a stage its mixed blocks are, for each of its three scales."""
    scales: list[list[int]] = []
    start = 1
    for _ in range(3):
        blocks = numbered(state, f"{stage}.{{}}.conv1_1.weight", start)
        scales.append(blocks)
        start = blocks[-1] + 2
    return scales


def _build(**arguments: Any) -> nn.Module:
    # It imports CompressAI, which takes seconds, and every command imports this plugin.
    from overlap_tool_tcm.model import TCM

    return TCM(**arguments)


ARCHITECTURE = register_architecture(
    Architecture(
        name="tcm",
        detect=shape("g_a.0.conv1.weight", None, 3, 3, 3)
        & has_key("g_a.1.conv1_1.weight", "g_s.1.conv1_1.weight", "h_a.1.conv1_1.weight")
        & shape("g_a.1.trans_block.msa.relative_position_params", None, REACH, REACH)
        & size("g_s.0.conv.weight").matches(size("g_a.0.conv1.weight"))
        & size("h_a.0.conv1.weight", 1).matches(size("g_s.0.subpel_conv.0.weight", 1))
        & has_key("h_mean_s.0.conv.weight", "h_scale_s.0.conv.weight")
        & has_key("atten_mean.0.0.in_conv.weight", "cc_scale_transforms.0.0.weight")
        & has_key("lrp_transforms.0.0.weight", "entropy_bottleneck.quantiles"),
        arguments=_shape_of,
        build=_build,
        small={
            "N": 32,
            "M": 8,
            "config": [2, 1, 1, 2, 1, 1],
            "head_dim": [8, 16, 32, 32, 16, 8],
            "slices": 2,
            "z": 8,
            "attention": 16,
            "prediction": [12, 8],
        },
        default={
            "N": 128,
            "M": 320,
            "config": [2, 2, 2, 2, 2, 2],
            "head_dim": [8, 16, 32, 32, 16, 8],
            "slices": 5,
            "z": 192,
            "attention": 128,
            "prediction": [224, 128],
        },
    )
)
