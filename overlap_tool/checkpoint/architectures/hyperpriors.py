"""The models of Ballé et al. (bmshj2018) and of Minnen et al. (mbt2018), for one rate or for many."""

from __future__ import annotations

from typing import Any

from overlap_tool.checkpoint.architectures.compressai_zoo import of_compressai
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

SMALL, WIDE, WIDER = {"N": 8, "M": 12}, {"N": 192, "M": 192}, {"N": 192, "M": 320}
BOTTLENECK = {"vr_entbttlnck": True}


def widths(state: StateDict) -> dict[str, Any]:
    return {"N": state["g_a.0.weight"].shape[0], "M": state["g_a.6.weight"].shape[0]}


def variable_rate_widths(state: StateDict) -> dict[str, Any]:
    return {**widths(state), "vr_entbttlnck": "gayn2zqstep.0.weight" in state}


def without_quant_offset(state: StateDict) -> StateDict:
    """Drops a parameter that checkpoints of the first variable-rate code hold and no version reads."""
    return {key: tensor for key, tensor in state.items() if key != "QuantOffset"}


ARCHITECTURES = (
    # one entropy bottleneck on y, GDN between the convolutions
    of_compressai(
        "bmshj2018-factorized",
        MAIN & GDN & size("entropy_bottleneck.quantiles").matches(size("g_a.6.weight")) & ~has_prefix("h_a."),
        widths, SMALL, WIDE,
    ),
    # ReLUs, which have no keys, in place of GDN
    of_compressai(
        "bmshj2018-factorized-relu",
        MAIN
        & has_key("g_a.2.weight", "g_a.4.weight")
        & size("entropy_bottleneck.quantiles").matches(size("g_a.6.weight"))
        & ~has_prefix("g_a.1.")
        & ~has_prefix("g_s.1.")
        & ~has_prefix("h_a."),
        widths, SMALL, WIDE, published=False,
    ),
    # h_s predicts one scale for each channel of y
    of_compressai(
        "bmshj2018-hyperprior", HYPER & SCALES_ONLY & NO_CONTEXT & ONE_RATE, widths, SMALL, WIDE
    ),
    of_compressai(
        "bmshj2018-hyperprior-vbr",
        HYPER & SCALES_ONLY & NO_CONTEXT & VARIABLE_RATE,
        variable_rate_widths, SMALL | BOTTLENECK, WIDER | BOTTLENECK, rename=without_quant_offset,
    ),
    # h_s predicts a mean and a scale, so twice as many channels
    of_compressai("mbt2018-mean", HYPER & MEANS_AND_SCALES & NO_CONTEXT & ONE_RATE, widths, SMALL, WIDE),
    of_compressai(
        "mbt2018-mean-vbr",
        HYPER & MEANS_AND_SCALES & NO_CONTEXT & VARIABLE_RATE,
        variable_rate_widths, SMALL | BOTTLENECK, WIDER | BOTTLENECK, rename=without_quant_offset,
    ),
    # an autoregressive context model in addition
    of_compressai("mbt2018", HYPER & MEANS_AND_SCALES & CONTEXT & ONE_RATE, widths, SMALL, WIDE),
    # CompressAI's has no variable-rate bottleneck
    of_compressai(
        "mbt2018-vbr",
        HYPER & MEANS_AND_SCALES & CONTEXT & VARIABLE_RATE & has_key("scale_to_context.weight"),
        widths, SMALL, WIDER, rename=without_quant_offset,
    ),
)  # fmt: skip
