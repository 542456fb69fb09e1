"""`zoo:NAME`, a seeded model that needs no file, and `zoo:NAME@QUALITY`, CompressAI's pretrained one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from overlap_tool.checkpoint.blank import blank_weights
from overlap_tool.checkpoint.conditions import StateDict
from overlap_tool.checkpoint.registry import Architecture, find
from overlap_tool.checkpoint.seeded import Draw, seed_weights
from overlap_tool.errors import CheckpointError, OptionError
from overlap_tool.rules import exact_kernels

PREFIX = "zoo:"
_EXAMPLE = "Write for example zoo:mbt2018@3, or zoo:mbt2018 for a seeded model"


def from_zoo(source: str) -> tuple[nn.Module, Architecture, dict[str, Any]]:
    name, at, quality = source.removeprefix(PREFIX).partition("@")
    architecture = find(name, written=source)
    if at:
        model = _pretrained(architecture, quality, source)
        state: StateDict = model.state_dict()
        return model, architecture, architecture.arguments(state)
    return seeded_model(architecture), architecture, dict(architecture.default)


def seeded_model(
    architecture: Architecture,
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
    draw: Draw | None = None,
) -> nn.Module:
    """The architecture with seeded weights and, if it codes, its CDFs computed by exact kernels."""
    with blank_weights():
        model = architecture.build(**(architecture.default if arguments is None else arguments))
    seed_weights(model, seed, draw).eval()
    update = getattr(model, "update", None)
    if callable(update):
        with exact_kernels():
            update(force=True)
    return model


def _pretrained(architecture: Architecture, quality: str, source: str) -> nn.Module:
    seeded = f"{PREFIX}{architecture.name}"
    if architecture.pretrained is None:
        raise OptionError(source, "no pretrained weights were published for it", f"Use {seeded}, or a file")
    if not quality.isdecimal():
        raise OptionError(source, f"the quality {quality!r} is not a number", _EXAMPLE)
    try:
        return architecture.pretrained(int(quality))
    except ValueError as error:
        raise OptionError(source, str(error), _EXAMPLE) from error
    except OSError as error:  # urllib's errors, and a full disk
        raise CheckpointError(
            source,
            f"the pretrained weights could not be downloaded: {error}",
            f"Connect to the network, or give a file that is already here; {seeded} needs neither",
        ) from error
    except RuntimeError as error:  # torch.hub found another hash
        raise CheckpointError(
            source, f"the downloaded weights are not what was published: {error}", "Try again"
        ) from error
