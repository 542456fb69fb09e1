"""mbt2018: as mbt2018-mean, with an autoregressive context model."""

from overlap_tool.checkpoint.architectures import shared
from overlap_tool.checkpoint.architectures.compressai_zoo import builder, published
from overlap_tool.checkpoint.registry import Architecture

ARCHITECTURE = Architecture(
    name="mbt2018",
    detect=shared.HYPER & shared.MEANS_AND_SCALES & shared.CONTEXT & shared.ONE_RATE,
    arguments=shared.widths,
    build=builder("mbt2018"),
    small={"N": 8, "M": 12},
    default={"N": 192, "M": 192},
    pretrained=published("mbt2018"),
)
