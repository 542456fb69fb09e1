"""The models of Cheng et al.: residual blocks of small convolutions, sub-pixel upsampling."""

from __future__ import annotations

from typing import Any

from overlap_tool.checkpoint.architectures.compressai_zoo import of_compressai
from overlap_tool.checkpoint.architectures.hyperpriors import CONTEXT
from overlap_tool.checkpoint.conditions import StateDict, has_key, has_prefix, shape

CHENG = shape("g_a.0.conv1.weight", None, 3, 3, 3) & has_key("g_a.0.conv2.weight")
SMALL, WIDE = {"N": 8}, {"N": 192}


def width(state: StateDict) -> dict[str, Any]:
    return {"N": state["g_a.0.conv1.weight"].shape[0]}


ARCHITECTURES = (
    # the entropy model of mbt2018
    of_compressai(
        "cheng2020-anchor",
        CHENG
        & CONTEXT
        & has_key("g_a.6.weight", "h_a.8.weight", "entropy_bottleneck.quantiles")
        & ~has_prefix("g_a.3.conv_a.")
        & ~has_prefix("latent_codec."),
        width, SMALL, WIDE,
    ),
    # attention, which is gated convolutions, at 1/4 and 1/16
    of_compressai(
        "cheng2020-attn",
        CHENG
        & CONTEXT
        & has_key(
            "g_a.3.conv_a.0.conv.0.weight", "g_a.7.weight", "h_a.8.weight", "entropy_bottleneck.quantiles"
        )
        & ~has_prefix("latent_codec."),
        width, SMALL, WIDE,
    ),
    # a context model in two steps, under `latent_codec`
    of_compressai(
        "cheng2020-anchor-checkerboard",
        CHENG
        & has_key(
            "g_a.6.weight", "latent_codec.hyper.h_a.8.weight", "latent_codec.y.context_prediction.weight"
        ),
        width, SMALL, WIDE, published=False,
    ),
)  # fmt: skip
