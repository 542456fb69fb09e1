"""cheng2020-anchor: residual blocks of small convolutions, sub-pixel upsampling, mbt2018's entropy model."""

from overlap_tool.checkpoint.architectures import shared
from overlap_tool.checkpoint.architectures.compressai_zoo import builder, published
from overlap_tool.checkpoint.conditions import has_key, has_prefix
from overlap_tool.checkpoint.registry import Architecture

ARCHITECTURE = Architecture(
    name="cheng2020-anchor",
    detect=shared.CHENG
    & shared.CONTEXT
    & has_key("g_a.6.weight", "h_a.8.weight", "entropy_bottleneck.quantiles")
    & ~has_prefix("g_a.3.conv_a.")
    & ~has_prefix("latent_codec."),
    arguments=shared.cheng_width,
    build=builder("cheng2020-anchor"),
    small={"N": 8},
    default={"N": 192},
    pretrained=published("cheng2020-anchor"),
)
