"""The file that `overlap-tool wrap` writes: weights, how to build their model, and how to tile it. No code.

It is an ordinary `torch.save` file that loads with `weights_only=True`, and a checkpoint like any other: its
weights stand under `state_dict`.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from overlap_tool import __version__
from overlap_tool.checkpoint.conditions import StateDict
from overlap_tool.checkpoint.hashing import hash_weights
from overlap_tool.checkpoint.reading import read_payload, refuse_hollow_tensors
from overlap_tool.checkpoint.writing import save_atomically
from overlap_tool.checkpoint.zoo import PREFIX
from overlap_tool.errors import CheckpointError
from overlap_tool.graph.example import is_map

FORMAT = "overlap-tool/tiled"
VERSION = 1
REWRAP = "Write it again with overlap-tool wrap"


def wrapped_settings(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The settings in a wrapped model's file; None for any other kind of file."""
    try:
        payload = read_payload(path)
    except CheckpointError:
        return None
    return Artefact.parse(payload, os.fspath(path)).settings if is_artefact(payload) else None


def is_artefact(payload: object) -> bool:
    """Whether a file's payload is a wrapped model."""
    if not isinstance(payload, dict):
        return False
    written = payload.get("format")
    return isinstance(written, str) and written == FORMAT


@dataclass(frozen=True)
class Artefact:
    """A wrapped model as plain data.

    `architecture` is a registered name or `pkg.module:Class`. `overlaps` are each stage's left, right, top
    and bottom, for readers without this tool; a stage with barriers has none. `example` describes the call,
    if not with an image alone: a method and its arguments, with small maps.
    """

    architecture: str
    arguments: dict[str, Any]
    state: StateDict
    settings: dict[str, Any]
    overlaps: dict[str, list[int]] = field(default_factory=dict)
    example: dict[str, Any] | None = None

    def write(self, path: str | os.PathLike[str]) -> None:
        payload = {
            "format": FORMAT,
            "version": VERSION,
            "tool": __version__,
            "architecture": self.architecture,
            "arguments": self.arguments,
            "settings": self.settings,
            "overlaps": self.overlaps,
            **({} if self.example is None else {"example": self.example}),
            "weights_sha256": hash_weights(self.state),
            "state_dict": self.state,
        }
        try:
            save_atomically(payload, path)
        except OSError as error:
            raise CheckpointError(
                os.fspath(path), f"it cannot be written ({error.strerror})", "Make room, or name another file"
            ) from error

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Artefact:
        where = os.fspath(path)
        if where.startswith(PREFIX) or not is_artefact(payload := read_payload(path)):
            raise CheckpointError(
                where,
                "it was not written by overlap-tool wrap",
                f"Run overlap-tool wrap {shlex.quote(where)}, and give the file that it writes",
            )
        return Artefact.parse(payload, where)

    @staticmethod
    def parse(payload: dict[str, Any], where: str) -> Artefact:
        """Parse a file's payload; `where` names the file in errors."""
        version = payload.get("version")
        if type(version) is not int:  # True equals 1, too
            raise CheckpointError(where, "a part of it is missing or malformed ('version')", REWRAP)
        if version != VERSION:
            raise CheckpointError(
                where,
                f"its format has version {version}, and this tool knows {VERSION}",
                f"Update overlap-tool, or {REWRAP[0].lower()}{REWRAP[1:]}",
            )
        try:
            artefact = Artefact(
                payload["architecture"],
                dict(payload["arguments"]),
                dict(payload["state_dict"]),
                dict(payload["settings"]),
                dict(payload["overlaps"]),
                _checked_example(payload.get("example"), Path(where)),
            )
            promised = payload["weights_sha256"]
            if not isinstance(artefact.architecture, str):
                raise TypeError("architecture")
            if not all(isinstance(tensor, Tensor) for tensor in artefact.state.values()):
                raise TypeError("state_dict")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                where, f"a part of it is missing or malformed ({error!r})", REWRAP
            ) from error
        refuse_hollow_tensors(artefact.state, Path(where))
        if hash_weights(artefact.state) != promised:
            raise CheckpointError(where, "its weights are not those it was written with", REWRAP)
        return artefact


def _checked_example(example: Any, file: Path) -> dict[str, Any] | None:
    """The example, if it is a call with some map and plain values; a pickle may hold anything else."""
    if example is None:
        return None
    call = {key: example[key] for key in ("method", "args", "kwargs")}
    kinds = zip(call.values(), (str, tuple, dict), strict=True)
    values = tree_leaves((call["args"], call["kwargs"]))
    if not all(isinstance(*each) for each in kinds) or not all(
        isinstance(key, str) for key in call["kwargs"]
    ):
        raise TypeError("example")
    if not any(map(is_map, values)):
        raise ValueError("example")
    for value in values:
        if isinstance(value, Tensor):
            refuse_hollow_tensors({"example": value}, file)
    return call
