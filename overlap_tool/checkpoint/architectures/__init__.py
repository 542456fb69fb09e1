"""The built-in architectures, one file each. Add yours here, or register it in a plugin."""

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
from overlap_tool.checkpoint.registry import register_architecture

KNOWN = (
    bmshj2018_factorized.ARCHITECTURE,
    bmshj2018_factorized_relu.ARCHITECTURE,
    bmshj2018_hyperprior.ARCHITECTURE,
    bmshj2018_hyperprior_vbr.ARCHITECTURE,
    mbt2018_mean.ARCHITECTURE,
    mbt2018_mean_vbr.ARCHITECTURE,
    mbt2018.ARCHITECTURE,
    mbt2018_vbr.ARCHITECTURE,
    cheng2020_anchor.ARCHITECTURE,
    cheng2020_attn.ARCHITECTURE,
    cheng2020_anchor_checkerboard.ARCHITECTURE,
    elic2022_official.ARCHITECTURE,
    elic2022_chandelier.ARCHITECTURE,
)

for _architecture in KNOWN:
    register_architecture(_architecture)
