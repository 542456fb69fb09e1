"""bmshj2018-factorized-relu: ReLUs, which have no keys, in place of GDN; no weights are published."""

from overlap_tool.checkpoint.architectures import shared
from overlap_tool.checkpoint.architectures.compressai_zoo import builder
from overlap_tool.checkpoint.conditions import has_key, has_prefix, size
from overlap_tool.checkpoint.registry import Architecture

ARCHITECTURE = Architecture(
    name="bmshj2018-factorized-relu",
    detect=shared.MAIN
    & has_key("g_a.2.weight", "g_a.4.weight")
    & size("entropy_bottleneck.quantiles").matches(size("g_a.6.weight"))
    & ~has_prefix("g_a.1.")
    & ~has_prefix("g_s.1.")
    & ~has_prefix("h_a."),
    arguments=shared.widths,
    build=builder("bmshj2018-factorized-relu"),
    small={"N": 8, "M": 12},
    default={"N": 192, "M": 192},
)
