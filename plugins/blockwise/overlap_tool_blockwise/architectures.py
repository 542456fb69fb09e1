"""How the two models are recognised and built. Importing this registers them."""

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

HYPERPRIOR = (
    shape("g_a.0.weight", None, 3, 5, 5)
    & shape("g_a.6.weight", None, None, 5, 5)
    & shape("g_s.6.weight", None, 3, 5, 5)
    & has_key("g_a.1.gamma", "g_s.1.gamma", "latent_codec.hyper.entropy_bottleneck.quantiles")
    & size("latent_codec.hyper.h_a.0.weight", 1).matches(size("g_a.6.weight"))
    & size("latent_codec.hyper.h_s.4.weight").matches(2 * size("g_a.6.weight"))
)
"""mbt2018's layers, but with the entropy model under `latent_codec`, where mbt2018's has no such prefix."""

CONTEXT = "latent_codec.y.context_prediction."
ENTROPY_PARAMETERS = "latent_codec.y.entropy_parameters."


def widths(state: StateDict) -> dict[str, Any]:
    return {"N": state["g_a.0.weight"].shape[0], "M": state["g_a.6.weight"].shape[0]}


# Importing CompressAI takes seconds, so it waits until a model is wanted.
def without_context(**widths: int) -> nn.Module:
    from overlap_tool_blockwise.models import HyperpriorWithoutContext

    return HyperpriorWithoutContext(**widths)


def with_checkerboard(**widths: int) -> nn.Module:
    from overlap_tool_blockwise.models import HyperpriorWithCheckerboard

    return HyperpriorWithCheckerboard(**widths)


register_architecture(
    Architecture(
        name="hyperprior-nocontext",
        detect=HYPERPRIOR & ~has_prefix(CONTEXT) & ~has_prefix(ENTROPY_PARAMETERS),
        arguments=widths,
        build=without_context,
        small={"N": 8, "M": 12},
        default={"N": 192, "M": 192},
    )
)
register_architecture(
    Architecture(
        name="hyperprior-checkerboard",
        detect=HYPERPRIOR
        & size(f"{CONTEXT}weight").matches(2 * size("g_a.6.weight"))
        & has_key(f"{ENTROPY_PARAMETERS}4.weight"),
        arguments=widths,
        build=with_checkerboard,
        small={"N": 8, "M": 12},
        default={"N": 192, "M": 192},
    )
)
