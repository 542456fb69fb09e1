"""The two ELIC models: uneven groups of channels, whose number and sizes are read from the shapes."""

from __future__ import annotations

from typing import Any

from overlap_tool.checkpoint.architectures.compressai_zoo import of_compressai
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
SMALL = {"N": 8, "M": 12, "groups": [2, 4, 6]}
WIDE = {"N": 192, "M": 320, "groups": [16, 16, 32, 64, 192]}


def widths_and_groups(state: StateDict) -> dict[str, Any]:
    context = "latent_codec.y.latent_codec.y{}.context_prediction.weight"
    return {
        "N": state["g_a.0.weight"].shape[0],
        "M": state["g_a.13.weight"].shape[0],
        "groups": [state[context.format(k)].shape[1] for k in numbered(state, context)],
    }


ARCHITECTURES = (
    # h_s ends in a *transposed* convolution to 2N channels
    of_compressai(
        "elic2022-official",
        ELIC
        & size(f"{HYPER_SYNTHESIS}.4.weight").matches(size(f"{HYPER_SYNTHESIS}.2.bias"))
        & size(f"{HYPER_SYNTHESIS}.4.weight", 1).matches(2 * size("g_a.0.weight")),
        widths_and_groups, SMALL, WIDE, published=False,
    ),
    # context from the first and the latest group; h_s ends in a convolution to 2M channels
    of_compressai(
        "elic2022-chandelier",
        ELIC
        & size(f"{HYPER_SYNTHESIS}.4.weight", 1).matches(size(f"{HYPER_SYNTHESIS}.2.bias"))
        & size(f"{HYPER_SYNTHESIS}.4.weight").matches(2 * size("g_a.13.weight")),
        widths_and_groups, SMALL, WIDE, published=False,
    ),
)  # fmt: skip
