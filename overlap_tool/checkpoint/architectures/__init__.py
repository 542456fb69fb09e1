"""The architectures known from the start: one file each. Add yours here, or register it in a plugin."""

from overlap_tool.checkpoint.architectures import (
    bmshj2018_factorized,
    bmshj2018_factorized_relu,
    bmshj2018_hyperprior,
    bmshj2018_hyperprior_vbr,
    cheng2020_anchor,
    cheng2020_anchor_checkerboard,
    cheng2020_attn,
    elic2022_chandelier,
    elic2022_official,
    mbt2018,
    mbt2018_mean,
    mbt2018_mean_vbr,
    mbt2018_vbr,
)
from overlap_tool.checkpoint.registry import register

for _module in (
    bmshj2018_factorized,
    bmshj2018_factorized_relu,
    bmshj2018_hyperprior,
    bmshj2018_hyperprior_vbr,
    mbt2018_mean,
    mbt2018_mean_vbr,
    mbt2018,
    mbt2018_vbr,
    cheng2020_anchor,
    cheng2020_attn,
    cheng2020_anchor_checkerboard,
    elic2022_official,
    elic2022_chandelier,
):
    register(_module.ARCHITECTURE)
