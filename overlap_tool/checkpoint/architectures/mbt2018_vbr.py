"""mbt2018-vbr: mbt2018 for many rates; CompressAI's has no variable-rate bottleneck."""

from overlap_tool.checkpoint.architectures import shared
from overlap_tool.checkpoint.architectures.compressai_zoo import builder, published
from overlap_tool.checkpoint.conditions import has_key
from overlap_tool.checkpoint.registry import Architecture

ARCHITECTURE = Architecture(
    name="mbt2018-vbr",
    detect=shared.HYPER
    & shared.MEANS_AND_SCALES
    & shared.CONTEXT
    & shared.VARIABLE_RATE
    & has_key("scale_to_context.weight"),
    arguments=shared.widths,
    build=builder("mbt2018-vbr"),
    small={"N": 8, "M": 12},
    default={"N": 192, "M": 320},
    rename=shared.without_quant_offset,
    pretrained=published("mbt2018-vbr"),
)
