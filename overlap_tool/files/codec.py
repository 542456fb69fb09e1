"""`compress` and `decompress`: a wrapped codec on images in files.

The model's own `compress` and `decompress` run, given a map in place of the image. What they code is what the
untouched model codes under `exact_kernels()`, and so are their strings.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from overlap_tool import __version__
from overlap_tool.checkpoint import hash_weights
from overlap_tool.checkpoint.artefact import Artefact
from overlap_tool.errors import ContainerError, OptionError
from overlap_tool.files import container
from overlap_tool.files.coding import CodedString, coded_in_pieces
from overlap_tool.files.container import Head
from overlap_tool.files.job import Job, stamp
from overlap_tool.files.outputs import open_output, refuse_unwritable
from overlap_tool.files.pictures import Picture, open_picture, read_rows
from overlap_tool.files.pixels import Frame, PictureNumbers, channels_read, inner_rows, padding, samples
from overlap_tool.files.running import Workspace, pour
from overlap_tool.files.summary import Clock, Summary, peak_memory_bytes
from overlap_tool.kernels import engine
from overlap_tool.lazy import LazyMap
from overlap_tool.retrofit import TiledForward, restore, tiled_stages
from overlap_tool.verification import machine

IN_MEMORY = 256 << 20
"""The largest map, in bytes, that is an ordinary tensor; larger ones are coded in bands."""

LEAST_BITS = math.log2(65536 / 65535)
"""Of a symbol: its probability is told in 16 bits, and no symbol's is 1."""

LONG_WAIT = 60.0
"""Seconds from which one is told how long it will take."""

TRIALS_NOT_WORTH_IT = 8
"""An image of at most so many trial images is simply coded."""


@dataclass(frozen=True)
class Codec:
    """A wrapped model, and what identifies it."""

    model: Any
    """A wrapped module with CompressAI's `compress` and `decompress`."""
    architecture: str
    weights_sha256: str
    where: str

    @staticmethod
    def load(path: str | os.PathLike[str], device: str = "cpu") -> Codec:
        """From the file that `overlap-tool wrap` wrote."""
        place = machine.find_device(device)
        artefact = Artefact.read(path)
        model = restore(artefact, os.fspath(path), place)
        if callable(update := getattr(model, "update", None)):
            update()  # only where CDFs are missing
        return Codec(model, artefact.architecture, hash_weights(artefact.state), os.fspath(path))

    @property
    def stages(self) -> list[TiledForward]:
        return list(tiled_stages(self.model).values())

    @property
    def device(self) -> torch.device:
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    @property
    def multiple(self) -> int:
        """What the sides of an image are brought up to a multiple of."""
        return lcm(*(scale.denominator for scale in _scales(self.stages)))

    @property
    def channels(self) -> int:
        """Of the image."""
        return next(stage.network.ops[0].channels for stage in self.stages if stage.input_scale == 1)

    @property
    def fingerprint(self) -> dict[str, str]:
        """What has a say in the bits: the kernels, and whose exponential functions they use."""
        settings = self.stages[0].settings
        told = {
            "kernels": settings.engine,
            "torch": torch.__version__,
            "processor": torch.backends.cpu.get_cpu_capability(),
            "device": self.device.type,
        }
        return told if settings.engine == "exact" else {**told, "tile": str(settings.tile)}

    @contextmanager
    def running(self, workspace: Workspace) -> Iterator[None]:
        """Inside, the model runs on maps that are not in memory, and codes in pieces."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(engine(self.stages[0].settings.engine))
            stack.enter_context(workspace.running())
            stack.enter_context(coded_in_pieces(self.model, workspace, self.architecture))
            yield


def compress(
    codec: Codec,
    image: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    in_memory: int = IN_MEMORY,
    check: bool = False,
    resume: bool = False,
    quiet: bool = True,
    tell: Callable[[str], None] | None = None,
) -> Summary:
    """Code an image file as a `.lic` file. `check` decodes it again, and tells the PSNR."""
    clock, source, target = Clock(tell), Path(image), Path(output)
    _refuse_other_than_codecs(codec)
    if not target.parent.is_dir() or target.is_dir():
        raise OptionError(
            f"--output {target}", "cannot be written there", "Name a file in a folder that exists"
        )
    picture = open_picture(source)
    grey = channels_read(str(source), picture, codec.channels)
    height, width, _ = picture.shape
    around = padding(height, width, codec.multiple)
    dtype = picture.dtype.newbyteorder("=")
    frame = Frame(height, width, codec.channels, dtype, around)
    _tell_a_long_wait(codec, frame, clock)
    with Job(target, _identity("compress", codec, source, in_memory), resume) as job:
        workspace = Workspace(job, in_memory, quiet, clock.note, "compress")
        numbers = PictureNumbers(str(source), picture, frame, grey, codec.device)
        whole = LazyMap(
            numbers, (1, codec.channels, *frame.padded), torch.float32, codec.device, workspace.taken_whole
        )
        with codec.running(workspace):
            coded = codec.model.compress(whole)
        strings: list[bytes] = []
        head = Head(
            architecture=codec.architecture,
            weights_sha256=codec.weights_sha256,
            width=width,
            height=height,
            channels=picture.shape[2],
            padding=around,
            dtype=str(dtype),
            engine=codec.fingerprint,
            shape=container.plain(coded["shape"]),
            strings=container.flat(coded["strings"], strings),
            bands=tuple(container.bands_of(string) for string in strings),
        )
        _refuse_impossible(str(source), head, codec, sum(map(len, strings)))
        made = job.folder / "coded"
        with made.open("wb") as file:
            container.write(file, head, strings)
            file.flush()
            os.fsync(file.fileno())
        size = made.stat().st_size
        psnr = _psnr_of(codec, made, picture, frame, job, in_memory, quiet, clock) if check else None
        job.finish(made)
    return _summary("compress", source, target, head, size, psnr, job, clock)


def decompress(
    codec: Codec,
    coded: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    in_memory: int = IN_MEMORY,
    resume: bool = False,
    quiet: bool = True,
    tell: Callable[[str], None] | None = None,
) -> Summary:
    """Decode a `.lic` file to an image file."""
    clock, source, target = Clock(tell), Path(coded), Path(output)
    _refuse_other_than_codecs(codec)
    head, strings = container.read(source)
    _refuse_another_checkpoint(str(source), head, codec)
    _refuse_impossible(str(source), head, codec, sum(map(len, strings)))
    _tell_another_engine(head, codec, clock)
    shape = (head.height, head.width, head.channels)
    refuse_unwritable(target, shape, head.frame.dtype)
    _tell_a_long_wait(codec, head.frame, clock)
    with Job(target, _identity("decompress", codec, source, in_memory), resume) as job:
        done = job.done.get("image", 0)
        written = open_output(target, job.folder, shape, head.frame.dtype, begun="image" in job.done)

        def take(start: int, rows: NDArray[Any]) -> None:
            durable = written.write(start, rows)
            if durable > job.done.get("image", 0):
                job.mark("image", durable)

        workspace = Workspace(job, in_memory, quiet, clock.note, "decompress")
        _decode(codec, str(source), head, strings, workspace, take, done)
        job.finish(written.finish())
    return _summary("decompress", source, target, head, source.stat().st_size, None, job, clock)


def _decode(
    codec: Codec,
    where: str,
    head: Head,
    strings: list[CodedString],
    workspace: Workspace,
    take: Callable[[int, NDArray[Any]], None],
    done: int = 0,
) -> None:
    """Hand on the decoded image's rows in bands, those from `done` on at least."""
    frame = head.frame
    with codec.running(workspace):
        try:
            decoded = codec.model.decompress(
                container.nested(head.strings, strings), container.as_the_model_had(head.shape)
            )["x_hat"]
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ContainerError(
                where, f"its model cannot decode it ({type(error).__name__}: {error})", container.AGAIN
            ) from error
        if tuple(decoded.shape) != (1, codec.channels, *frame.padded):
            raise ContainerError(
                where,
                f"it decodes to the shape {tuple(decoded.shape)}, which is not that of its image",
                container.AGAIN,
            )

        def crop(start: int, band: Tensor) -> None:
            inside, rows = inner_rows(start, samples(band, frame), frame)
            if len(rows):
                take(inside, rows)

        if done < frame.height:
            pour(decoded, crop, done + frame.around[2] if done else 0)


def _psnr_of(
    codec: Codec,
    made: Path,
    picture: Picture,
    frame: Frame,
    job: Job,
    in_memory: int,
    quiet: bool,
    clock: Clock,
) -> float:
    head, strings = container.read(made)
    squares = 0.0

    def compare(start: int, rows: NDArray[Any]) -> None:
        nonlocal squares
        original = read_rows(str(made), picture, start, start + len(rows))
        squares += float(np.square(rows.astype(np.float64) - original).sum())

    _decode(codec, str(made), head, strings, Workspace(job, in_memory, quiet, clock.note, "check"), compare)
    mean = squares / math.prod(picture.shape)
    return math.inf if mean == 0 else 10 * math.log10(frame.largest**2 / mean)


def _summary(
    command: str,
    source: Path,
    target: Path,
    head: Head,
    size: int,
    psnr: float | None,
    job: Job,
    clock: Clock,
) -> Summary:
    return Summary(
        command=command,
        input=str(source),
        output=str(target),
        width=head.width,
        height=head.height,
        channels=head.channels,
        sample_bits=8 * head.frame.dtype.itemsize,
        bytes=size,
        bits_per_pixel=8 * size / (head.width * head.height),
        bands=max(len(bands) for bands in head.bands),
        psnr=psnr,
        resumed=job.resumed,
        seconds=clock.seconds,
        peak_memory_bytes=peak_memory_bytes(),
        notes=clock.notes,
    )


def _identity(command: str, codec: Codec, source: Path, in_memory: int) -> dict[str, Any]:
    return {
        "command": command,
        "tool": __version__,
        "model": [codec.architecture, codec.weights_sha256],
        "tiles": asdict(codec.stages[0].settings),
        "engine": codec.fingerprint,
        "input": stamp(source),
        "memory": in_memory,
    }


def _scales(stages: list[TiledForward]) -> set[Fraction]:
    """Of what the stages read and give, in samples per pixel of the image."""
    return {stage.input_scale for stage in stages} | {
        stage.input_scale * axis.scale
        for stage in stages
        for axis in (stage.network.rows, stage.network.columns)
    }


def _refuse_other_than_codecs(codec: Codec) -> None:
    where = f"--model {codec.where}"
    if not (hasattr(codec.model, "compress") and hasattr(codec.model, "decompress")):
        raise OptionError(
            where, f"{codec.architecture} has no compress and decompress", "Use overlap-tool run"
        )
    if not any(stage.input_scale == 1 for stage in codec.stages):
        raise OptionError(
            where, f"no stage of {codec.architecture} reads the image itself", "Use it on tensors"
        )


def _refuse_another_checkpoint(where: str, head: Head, codec: Codec) -> None:
    if head.architecture != codec.architecture:
        reason = f"it was written by {head.architecture}, and {codec.where} is {codec.architecture}"
    elif head.weights_sha256 != codec.weights_sha256:
        reason = (
            f"it was written by other weights ({head.weights_sha256[:12]}...) than those of {codec.where}"
        )
    else:
        return
    raise ContainerError(where, reason, "Decode it with the checkpoint that wrote it")


def _refuse_impossible(where: str, head: Head, codec: Codec, payload: int) -> None:
    """A head that does not fit the model, or claims more than its strings can hold."""
    channels = codec.channels
    if head.channels != channels and (head.channels, channels) != (1, 3):
        raise ContainerError(where, f"{head.channels} channels, of a model of {channels}", container.AGAIN)
    if head.padding != padding(head.height, head.width, codec.multiple):
        raise ContainerError(where, "its padding is not that of its size", container.AGAIN)
    height, width = head.frame.padded
    coded: dict[tuple[Fraction | int, Fraction | int], int] = {
        (height * stage.input_scale, width * stage.input_scale): stage.network.ops[0].channels
        for stage in codec.stages
        if stage.input_scale < 1
    }
    for size in _sizes(head.shape):
        if size not in coded:
            raise ContainerError(
                where, f"no map of the model has the size {size[1]}x{size[0]}", container.AGAIN
            )
        if coded[size] * size[0] * size[1] * LEAST_BITS > 8 * payload + 64:
            raise ContainerError(
                where,
                f"its {payload} bytes cannot hold an image of {head.width}x{head.height}",
                container.AGAIN,
            )


def _sizes(shape: Any) -> Iterator[tuple[int, int]]:
    """The heights and widths in what a model calls shape."""
    if isinstance(shape, dict):
        shape = list(shape.values())
    if isinstance(shape, list) and len(shape) >= 2 and all(isinstance(part, int) for part in shape):
        yield shape[-2], shape[-1]
    elif isinstance(shape, list):
        for part in shape:
            yield from _sizes(part)


def _tell_another_engine(head: Head, codec: Codec, clock: Clock) -> None:
    own = codec.fingerprint
    if head.engine != own:
        keys = sorted(key for key in {*own, *head.engine} if own.get(key) != head.engine.get(key))
        differences = ", ".join(f"{key} {head.engine.get(key)} then and {own.get(key)} now" for key in keys)
        clock.note(
            f"another engine wrote this file ({differences}): where a scale differs in its last bit, "
            "symbols come out wrong; models whose symbols are hashed in the file then stop with an error"
        )


def _tell_a_long_wait(codec: Codec, frame: Frame, clock: Clock) -> None:
    """A model that codes one position after another takes long: how long, a small image shows."""
    if not any(_one_by_one(module) for module in codec.model.modules()):
        return
    side = 2 * codec.multiple
    times = math.prod(frame.padded) / side**2
    if times <= TRIALS_NOT_WORTH_IT:
        return
    trial = torch.full((1, codec.channels, side, side), 0.5, device=codec.device)
    with torch.no_grad():
        started = time.monotonic()
        codec.model.compress(trial)
        seconds = (time.monotonic() - started) * times
    if seconds > LONG_WAIT:
        clock.note(
            f"{codec.architecture} codes one position after another: this takes about {_spoken(seconds)}, "
            "in which nothing can be resumed"
        )


def _one_by_one(module: nn.Module) -> bool:
    return hasattr(module, "_compress_ar") or type(module).__name__ == "RasterScanLatentCodec"


def _spoken(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"
