"""bmshj2018-hyperprior: h_s predicts one scale for each channel of y."""

from overlap_tool.checkpoint.architectures import shared
from overlap_tool.checkpoint.architectures.compressai_zoo import builder, published
from overlap_tool.checkpoint.registry import Architecture

ARCHITECTURE = Architecture(
    name="bmshj2018-hyperprior",
    detect=shared.HYPER & shared.SCALES_ONLY & shared.NO_CONTEXT & shared.ONE_RATE,
    arguments=shared.widths,
    build=builder("bmshj2018-hyperprior"),
    small={"N": 8, "M": 12},
    default={"N": 192, "M": 192},
    pretrained=published("bmshj2018-hyperprior"),
)
