"""Ops that need the whole map at once: recognised, and refused by name."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from overlap_tool.rules.registry import Call, Rule, register


@register(
    F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d,
)  # fmt: skip
def adaptive_pool(call: Call, *args: Any, **kwargs: Any) -> Rule:
    call.refuse_global("pools over parts of the map whose bounds depend on its size")


@register(nn.GroupNorm, F.group_norm, nn.InstanceNorm2d, F.instance_norm, F.batch_norm)
def normalisation(call: Call, *args: Any, **kwargs: Any) -> Rule:
    call.refuse_global("normalises by the mean and variance of the whole map")


@register(nn.LayerNorm, F.layer_norm, nn.Linear, F.linear, F.scaled_dot_product_attention,
          nn.MultiheadAttention, torch.matmul, torch.bmm, "matmul", "bmm", torch.einsum)  # fmt: skip
def last_dimension(call: Call, *args: Any, **kwargs: Any) -> Rule:
    call.refuse_global("works along the last dimension, which is that of the columns here")


@register(torch.cumsum, "cumsum", torch.cumprod, "cumprod", torch.flip, "flip", torch.sort, "sort",
          torch.fft.fft, torch.fft.rfft, torch.fft.fft2, torch.fft.rfft2, torch.fft.fftn,
          torch.fft.rfftn)  # fmt: skip
def scans(call: Call, *args: Any, **kwargs: Any) -> Rule:
    call.refuse_global("scans, sorts, mirrors or transforms the map")
