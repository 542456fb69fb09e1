"""Continuous Patch Stitching (Zhang et al.): its network, and how its checkpoints are recognised."""

from __future__ import annotations

from typing import Any

from torch import nn

from overlap_tool.checkpoint import (
    Architecture,
    StateDict,
    has_key,
    has_prefix,
    register_architecture,
    shape,
    size,
)


def _widths(state: StateDict) -> dict[str, Any]:
    return {"N": state["g_a.0.down.weight"].shape[0], "M": state["g_a.6.weight"].shape[0]}


def _build(**widths: Any) -> nn.Module:
    # It imports CompressAI, which takes seconds, and every command imports this plugin.
    from overlap_tool_cps.network import ContinuousPatchStitching

    return ContinuousPatchStitching(**widths)


ARCHITECTURE = register_architecture(
    Architecture(
        name="cps",
        detect=shape("g_a.0.down.weight", None, 3, 2, 2)
        & shape("g_a.1.shrink.weight", None, None, 3, 3)
        & shape("g_a.1.grow.weight", None, None, 3, 3)
        & shape("g_a.6.weight", None, None, 2, 2)
        & shape("g_s.6.up.weight", None, 3, 2, 2)
        & size("h_s.4.weight").matches(2 * size("g_a.6.weight"))
        & has_key("h_a.0.weight", "context_prediction.weight", "entropy_parameters.0.weight")
        & has_key("entropy_bottleneck.quantiles")
        & ~has_prefix("latent_codec."),
        arguments=_widths,
        build=_build,
        small={"N": 8, "M": 12},
        default={"N": 192, "M": 192},
    )
)
