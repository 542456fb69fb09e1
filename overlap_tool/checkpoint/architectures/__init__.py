"""The built-in architectures, one file per family. Add yours here, or register it in a plugin."""

from overlap_tool.checkpoint.architectures import cheng2020, elic2022, hyperpriors
from overlap_tool.checkpoint.registry import register_architecture

KNOWN = (*hyperpriors.ARCHITECTURES, *cheng2020.ARCHITECTURES, *elic2022.ARCHITECTURES)

for _architecture in KNOWN:
    register_architecture(_architecture)
