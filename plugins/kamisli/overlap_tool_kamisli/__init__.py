"""Kamisli's block-based codec with block-level masked convolutions: how its checkpoints are recognised."""

from __future__ import annotations

from math import isqrt
from typing import Any

from torch import nn

from overlap_tool.checkpoint import (
    Architecture,
    Condition,
    StateDict,
    has_key,
    register_architecture,
    shape,
    size,
)

CODEC = (
    shape("prtr_forward1.weight", None, None, 1, 1)
    & shape("prtr_forward2.weight", None, None, 3, 3)
    & shape("prtr_forward3.5.weight", None, None, 1, 1)
    & shape("prtr_inverse1.weight", None, None, 1, 1)
    & shape("prtr_inverse2.weight", None, None, 3, 3)
    & shape("get_meanscale.0.weight", None, None, 3, 3)
    & size("prtr_inverse3.5.weight").matches(size("prtr_forward1.weight", 1))
    & size("get_meanscale.6.weight").matches(2 * size("prtr_forward3.5.weight"))
    & has_key("prtr_forward3.0.gamma", "prtr_inverse3.0.gamma", "prtr_forward2.mask")
)


def _arguments(state: StateDict) -> dict[str, Any]:
    return {
        "N": state["prtr_forward1.weight"].shape[0],
        "M": state["prtr_forward3.5.weight"].shape[0],
        "block": isqrt(state["prtr_forward1.weight"].shape[1] // 3),
        "kernel": state["get_meanscale.2.weight"].shape[-1],
    }


def _build(**arguments: Any) -> nn.Module:
    # It imports CompressAI, which takes seconds, and every command imports this plugin.
    from overlap_tool_kamisli.codec import BlockCodec

    return BlockCodec(**arguments)


def _architecture(name: str, kernel: int, detect: Condition, default: dict[str, int]) -> Architecture:
    return register_architecture(
        Architecture(
            name=name,
            detect=CODEC & detect,
            arguments=_arguments,
            build=_build,
            small={"N": 16, "M": 8, "block": 8, "kernel": kernel},
            default={**default, "block": 8, "kernel": kernel},
        )
    )


HPS1 = _architecture("kamisli", 1, shape("get_meanscale.2.weight", None, None, 1, 1), {"N": 768, "M": 96})
HPS2 = _architecture(
    "kamisli-hps2", 3, shape("get_meanscale.2.weight", None, None, 3, 3), {"N": 1152, "M": 128}
)
