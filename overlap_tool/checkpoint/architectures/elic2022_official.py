"""elic2022-official: uneven channel groups; h_s ends in a *transposed* convolution to 2N channels."""

from overlap_tool.checkpoint.architectures import elic
from overlap_tool.checkpoint.architectures.compressai_zoo import builder
from overlap_tool.checkpoint.conditions import size
from overlap_tool.checkpoint.registry import Architecture

ARCHITECTURE = Architecture(
    name="elic2022-official",
    detect=elic.ELIC
    & size(f"{elic.HYPER_SYNTHESIS}.4.weight").matches(size(f"{elic.HYPER_SYNTHESIS}.2.bias"))
    & size(f"{elic.HYPER_SYNTHESIS}.4.weight", 1).matches(2 * size("g_a.0.weight")),
    arguments=elic.widths_and_groups,
    build=builder("elic2022-official"),
    small={"N": 8, "M": 12, "groups": [2, 4, 6]},
    default={"N": 192, "M": 320, "groups": [16, 16, 32, 64, 192]},
)
