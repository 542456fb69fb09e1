"""cheng2020-anchor-checkerboard: cheng2020-anchor with a two-step context model, under `latent_codec`."""

from overlap_tool.checkpoint.architectures import shared
from overlap_tool.checkpoint.architectures.compressai_zoo import builder
from overlap_tool.checkpoint.conditions import has_key
from overlap_tool.checkpoint.registry import Architecture

ARCHITECTURE = Architecture(
    name="cheng2020-anchor-checkerboard",
    detect=shared.CHENG
    & has_key("g_a.6.weight", "latent_codec.hyper.h_a.8.weight", "latent_codec.y.context_prediction.weight"),
    arguments=shared.cheng_width,
    build=builder("cheng2020-anchor-checkerboard"),
    small={"N": 8},
    default={"N": 192},
)
