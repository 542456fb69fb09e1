"""A wrapped model as a codec for image files: its identity, and how it runs on maps that are not in
memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch

from overlap_tool import __version__
from overlap_tool.checkpoint import hash_weights
from overlap_tool.checkpoint.artefact import Artefact
from overlap_tool.errors import OptionError
from overlap_tool.files.coding.change import Change
from overlap_tool.files.coding.entropy import coded_in_pieces
from overlap_tool.files.coding.raster import raster_in_bands
from overlap_tool.files.formats.frame import Frame
from overlap_tool.files.running import Workspace
from overlap_tool.kernels import pieces
from overlap_tool.kernels.arithmetic import VERSION
from overlap_tool.models import range_coding
from overlap_tool.models.coding_tables import complete_tables, entropy_models, refuse_broken_tables
from overlap_tool.models.stages import fitting_multiple
from overlap_tool.rules import engine
from overlap_tool.verification import machine
from overlap_tool.wrapping.retrofit import TiledForward, restore, tiled_stages


@dataclass(frozen=True)
class Codec:
    """A wrapped model, and what identifies it."""

    model: Any
    """A wrapped module with CompressAI's `compress` and `decompress`."""
    architecture: str
    weights_sha256: str
    where: str

    @staticmethod
    def load(path: str | os.PathLike[str], device: str = "cpu", *, trust: bool = False) -> Codec:
        """Load a file of `overlap-tool wrap`. `trust` permits importing a class that the file names."""
        place = machine.find_device(device)
        artefact = Artefact.read(path)
        model = restore(artefact, os.fspath(path), place, trust)
        complete_tables(model, os.fspath(path))
        return Codec(model, artefact.architecture, hash_weights(artefact.state), os.fspath(path))

    @property
    def stages(self) -> list[TiledForward]:
        return list(tiled_stages(self.model).values())

    @property
    def device(self) -> torch.device:
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    @cached_property
    def multiple(self) -> int:
        """The number that the padded sides of an image are a multiple of."""
        stages = ((stage.network, stage.input_scale) for stage in self.stages)
        return fitting_multiple(_scales(self.stages), stages)

    @property
    def channels(self) -> int:
        """The channels of the image."""
        return next(stage.network.ops[0].channels for stage in self.stages if stage.input_scale == 1)

    @property
    def fingerprint(self) -> dict[str, str]:
        """What the bits depend on: the version of the exact arithmetic, or PyTorch and the processor."""
        settings = self.stages[0].settings
        if settings.engine == "exact":
            return {"kernels": "exact", "arithmetic": VERSION}
        return {
            "kernels": settings.engine,
            "torch": torch.__version__,
            "processor": torch.backends.cpu.get_cpu_capability(),
            "device": self.device.type,
            "tile": str(settings.tile and tuple(settings.tile)),
        }

    @property
    def identity(self) -> dict[str, Any]:
        """What the result of a run depends on, of the tool and the model."""
        return {
            "tool": __version__,
            "model": [self.architecture, self.weights_sha256],
            "tiles": asdict(self.stages[0].settings),
            "call": repr(self.stages[0].example),
            "engine": self.fingerprint,
        }

    def refuse_if_no_codec(self) -> None:
        """Raise if the network does not code, or does not begin with the image."""
        where = self.where
        if not (hasattr(self.model, "compress") and hasattr(self.model, "decompress")):
            raise OptionError(
                where, f"{self.architecture} has no compress and decompress", "Use overlap-tool run"
            )
        if not any(stage.input_scale == 1 for stage in self.stages):
            raise OptionError(
                where, f"no stage of {self.architecture} reads the image itself", "Use it on tensors"
            )

    def coded_maps(self, frame: Frame) -> dict[tuple[Fraction | int, Fraction | int], int]:
        """The height, width and channels of each map that may be coded, for an image."""
        height, width = frame.padded
        return {
            (height * stage.input_scale, width * stage.input_scale): stage.network.ops[0].channels
            for stage in self.stages
            if stage.input_scale < 1
        }

    @contextmanager
    def running(self, workspace: Workspace, frame: Frame, change: Change | None = None) -> Iterator[None]:
        """Inside, the model runs on maps of this image that are not in memory, and codes in pieces.

        After a `change` of the image, it codes only the pieces that the change reaches.
        """
        refuse_broken_tables(self.model, self.architecture)
        symbols = sum(math.prod(size) * channels for size, channels in self.coded_maps(frame).items())
        with ExitStack() as stack:
            if any(entropy_models(self.model)):
                range_coding.guard()
                stack.enter_context(range_coding.reading_at_most(math.ceil(symbols)))
            stack.enter_context(torch.no_grad())
            stack.enter_context(engine(self.stages[0].settings.engine))
            stack.enter_context(pieces())
            stack.enter_context(workspace.running())
            stack.enter_context(coded_in_pieces(self.model, workspace, self.architecture, change))
            stack.enter_context(raster_in_bands(self.model, workspace, self.architecture))
            yield


def _scales(stages: list[TiledForward]) -> set[Fraction]:
    """The scales of the stages' inputs and outputs, in samples per pixel of the image."""
    return {stage.input_scale for stage in stages} | {
        stage.input_scale * axis.scale
        for stage in stages
        for axis in (stage.network.rows, stage.network.columns)
    }
