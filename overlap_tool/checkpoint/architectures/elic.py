"""What the two ELIC models share: their transforms, and the channel groups, read from the shapes."""

from __future__ import annotations

from typing import Any

from overlap_tool.checkpoint.conditions import StateDict, has_key, shape, size
from overlap_tool.checkpoint.numbering import numbered

HYPER_SYNTHESIS = "latent_codec.hyper.h_s"

ELIC = (
    shape("g_a.0.weight", None, 3, 5, 5)
    & shape("g_a.13.weight", None, None, 5, 5)
    & shape("g_s.14.weight", None, 3, 5, 5)
    & has_key("g_a.1.conv3.weight", "latent_codec.hyper.entropy_bottleneck.quantiles")
    & has_key("latent_codec.y.latent_codec.y0.context_prediction.weight")
    & size("latent_codec.hyper.h_a.0.weight", 1).matches(size("g_a.13.weight"))
)


def widths_and_groups(state: StateDict) -> dict[str, Any]:
    context = "latent_codec.y.latent_codec.y{}.context_prediction.weight"
    return {
        "N": state["g_a.0.weight"].shape[0],
        "M": state["g_a.13.weight"].shape[0],
        "groups": [state[context.format(k)].shape[1] for k in numbered(state, context)],
    }
