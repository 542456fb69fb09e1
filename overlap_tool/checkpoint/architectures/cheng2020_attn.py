"""cheng2020-attn: cheng2020-anchor with attention, which is gated convolutions, at 1/4 and 1/16."""

from overlap_tool.checkpoint.architectures import shared
from overlap_tool.checkpoint.architectures.compressai_zoo import builder, published
from overlap_tool.checkpoint.conditions import has_key, has_prefix
from overlap_tool.checkpoint.registry import Architecture

ARCHITECTURE = Architecture(
    name="cheng2020-attn",
    detect=shared.CHENG
    & shared.CONTEXT
    & has_key("g_a.3.conv_a.0.conv.0.weight", "g_a.7.weight", "h_a.8.weight", "entropy_bottleneck.quantiles")
    & ~has_prefix("latent_codec."),
    arguments=shared.cheng_width,
    build=builder("cheng2020-attn"),
    small={"N": 8},
    default={"N": 192},
    pretrained=published("cheng2020-attn"),
)
