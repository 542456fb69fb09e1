"""LLIC (Jiang et al., TMM 2024): how its models are recognised and built. Importing this registers them."""

from __future__ import annotations

from typing import Any

from torch import nn

from overlap_tool.checkpoint import Architecture, StateDict, has_key, numbered, register_architecture, shape

LLIC = (
    shape("g_a.0.down.weight", None, 3, 3, 3)
    & has_key("g_a.0.block.0.transform.condition.numbers.weight", "g_a.3.block.1.gate.widen.weight")
    & has_key("g_s.0.block.1.transform.condition.numbers.weight", "g_s.3.up.weight")
)
"""The transforms, which all models share."""

ELIC = has_key("latent_codec.y.latent_codec.y0.context_prediction.weight")
TCM = has_key("atten_mean.0.0.in_conv.weight", "lrp_transforms.0.0.weight")
STF = has_key("cc_mean_transforms.0.8.weight", "h_mean_s.8.weight", "lrp_transforms.0.0.weight")


def _widths(state: StateDict) -> dict[str, Any]:
    return {"N": state["g_a.0.down.weight"].shape[0], "M": state["g_a.3.down.weight"].shape[0]}


def _with_groups(state: StateDict) -> dict[str, Any]:
    context = "latent_codec.y.latent_codec.y{}.context_prediction.weight"
    groups = [state[context.format(k)].shape[1] for k in numbered(state, context)]
    return {**_widths(state), "groups": groups}


def _with_slices(state: StateDict) -> dict[str, Any]:
    return {**_widths(state), "slices": len(numbered(state, "lrp_transforms.{}.0.weight"))}


def _with_hyperprior(state: StateDict) -> dict[str, Any]:
    return {**_with_slices(state), "width": state["h_a.0.conv1.weight"].shape[0]}


# Importing CompressAI takes seconds, so it waits until a model is wanted.
def _elic(**arguments: Any) -> nn.Module:
    from overlap_tool_llic.elic import LlicElic

    return LlicElic(**arguments)


def _stf(**arguments: Any) -> nn.Module:
    from overlap_tool_llic.stf import LlicStf

    return LlicStf(**arguments)


def _tcm(**arguments: Any) -> nn.Module:
    from overlap_tool_llic.tcm import LlicTcm

    return LlicTcm(**arguments)


register_architecture(
    Architecture(
        name="llic-elic",
        detect=LLIC & ELIC,
        arguments=_with_groups,
        build=_elic,
        small={"N": 8, "M": 12, "groups": [2, 4, 6]},
        default={"N": 192, "M": 320, "groups": [16, 16, 32, 64, 192]},
    )
)
register_architecture(
    Architecture(
        name="llic-stf",
        detect=LLIC & STF,
        arguments=_with_slices,
        build=_stf,
        small={"N": 8, "M": 20, "slices": 5},
        default={"N": 192, "M": 320, "slices": 10},
    )
)
register_architecture(
    Architecture(
        name="llic-tcm",
        detect=LLIC & TCM,
        arguments=_with_hyperprior,
        build=_tcm,
        small={"N": 8, "M": 20, "width": 64, "slices": 5},
        default={"N": 192, "M": 320, "width": 256, "slices": 5},
    )
)
