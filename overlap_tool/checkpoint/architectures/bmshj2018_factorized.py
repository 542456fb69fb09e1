"""bmshj2018-factorized: one entropy bottleneck on y, GDN between the convolutions."""

from overlap_tool.checkpoint.architectures import shared
from overlap_tool.checkpoint.architectures.compressai_zoo import builder, published
from overlap_tool.checkpoint.conditions import has_prefix, size
from overlap_tool.checkpoint.registry import Architecture

ARCHITECTURE = Architecture(
    name="bmshj2018-factorized",
    detect=shared.MAIN
    & shared.GDN
    & size("entropy_bottleneck.quantiles").matches(size("g_a.6.weight"))
    & ~has_prefix("h_a."),
    arguments=shared.widths,
    build=builder("bmshj2018-factorized"),
    small={"N": 8, "M": 12},
    default={"N": 192, "M": 192},
    pretrained=published("bmshj2018-factorized"),
)
