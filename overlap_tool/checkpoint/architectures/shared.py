"""Conditions and arguments that several of CompressAI's architectures share."""

from __future__ import annotations

from typing import Any

from overlap_tool.checkpoint.conditions import StateDict, has_key, has_prefix, shape, size

MAIN = (
    shape("g_a.0.weight", None, 3, 5, 5)
    & shape("g_a.6.weight", None, None, 5, 5)
    & shape("g_s.6.weight", None, 3, 5, 5)
    & has_key("entropy_bottleneck.quantiles")
    & ~has_prefix("latent_codec.")
)
"""Four strided convolutions down and four up, at the positions that a GDN or a ReLU between them gives."""

GDN = has_key("g_a.1.gamma", "g_s.1.gamma")

HYPER = MAIN & GDN & has_key("h_a.0.weight", "h_a.4.weight", "h_s.0.weight", "h_s.4.weight")
SCALES_ONLY = size("h_s.4.weight").matches(size("g_a.6.weight"))
MEANS_AND_SCALES = size("h_s.4.weight").matches(2 * size("g_a.6.weight"))
CONTEXT = has_key("context_prediction.weight", "entropy_parameters.0.weight")
NO_CONTEXT = ~has_prefix("context_prediction.") & ~has_prefix("entropy_parameters.")
VARIABLE_RATE = has_key("Gain", "QuantABCD.0.weight")
ONE_RATE = ~has_key("Gain") & ~has_prefix("QuantABCD.")

CHENG = shape("g_a.0.conv1.weight", None, 3, 3, 3) & has_key("g_a.0.conv2.weight")


def widths(state: StateDict) -> dict[str, Any]:
    return {"N": state["g_a.0.weight"].shape[0], "M": state["g_a.6.weight"].shape[0]}


def variable_rate_widths(state: StateDict) -> dict[str, Any]:
    return {**widths(state), "vr_entbttlnck": "gayn2zqstep.0.weight" in state}


def cheng_width(state: StateDict) -> dict[str, Any]:
    return {"N": state["g_a.0.conv1.weight"].shape[0]}


def without_quant_offset(state: StateDict) -> StateDict:
    """Drops a parameter that checkpoints of the first variable-rate code hold and no version reads."""
    return {key: tensor for key, tensor in state.items() if key != "QuantOffset"}
