"""bmshj2018-hyperprior-vbr: the hyperprior for many rates, with or without a variable-rate bottleneck."""

from overlap_tool.checkpoint.architectures import shared
from overlap_tool.checkpoint.architectures.compressai_zoo import builder, published
from overlap_tool.checkpoint.registry import Architecture

ARCHITECTURE = Architecture(
    name="bmshj2018-hyperprior-vbr",
    detect=shared.HYPER & shared.SCALES_ONLY & shared.NO_CONTEXT & shared.VARIABLE_RATE,
    arguments=shared.variable_rate_widths,
    build=builder("bmshj2018-hyperprior-vbr"),
    small={"N": 8, "M": 12, "vr_entbttlnck": True},
    default={"N": 192, "M": 320, "vr_entbttlnck": True},
    rename=shared.without_quant_offset,
    pretrained=published("bmshj2018-hyperprior-vbr"),
)
