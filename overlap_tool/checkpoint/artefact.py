"""The file that `overlap-tool wrap` writes: weights, how to build their model, and how to tile it. No code.

It is an ordinary `torch.save` file that loads with `weights_only=True`, and a checkpoint like any other: its
weights stand under `state_dict`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from overlap_tool import __version__
from overlap_tool.checkpoint.conditions import StateDict
from overlap_tool.checkpoint.hashing import hash_weights
from overlap_tool.checkpoint.reading import read_payload
from overlap_tool.checkpoint.writing import save_atomically
from overlap_tool.errors import CheckpointError

FORMAT = "overlap-tool/tiled"
VERSION = 1
REWRAP = "Write it again with overlap-tool wrap"


def wrapped_settings(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """How a file says that its model is to be tiled; None if it is another kind of checkpoint, or none."""
    try:
        payload = read_payload(path)
    except CheckpointError:
        return None
    wrapped = isinstance(payload, dict) and payload.get("format") == FORMAT
    return Artefact.read(path).settings if wrapped else None


@dataclass(frozen=True)
class Artefact:
    """A wrapped model as plain data.

    `architecture` is a registered name or `pkg.module:Class`; `overlaps` are the stages' left, right, top and
    bottom, for whoever reads the file without the tool. A stage with barriers has none.
    """

    architecture: str
    arguments: dict[str, Any]
    state: StateDict
    settings: dict[str, Any]
    overlaps: dict[str, list[int]] = field(default_factory=dict)

    def write(self, path: str | os.PathLike[str]) -> None:
        payload = {
            "format": FORMAT,
            "version": VERSION,
            "tool": __version__,
            "architecture": self.architecture,
            "arguments": self.arguments,
            "settings": self.settings,
            "overlaps": self.overlaps,
            "weights_sha256": hash_weights(self.state),
            "state_dict": self.state,
        }
        try:
            save_atomically(payload, path)
        except OSError as error:
            raise CheckpointError(
                os.fspath(path), f"it cannot be written ({error.strerror})", "Name another file with --output"
            ) from error

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Artefact:
        where = os.fspath(path)
        payload = read_payload(path)
        if not isinstance(payload, dict) or payload.get("format") != FORMAT:
            raise CheckpointError(
                where, "it was not written by overlap-tool wrap", f"Make one with overlap-tool wrap {where}"
            )
        if payload.get("version") != VERSION:
            raise CheckpointError(
                where,
                f"its format has version {payload.get('version')}, and this tool knows {VERSION}",
                f"Update overlap-tool, or {REWRAP[0].lower()}{REWRAP[1:]}",
            )
        try:
            artefact = Artefact(
                payload["architecture"],
                dict(payload["arguments"]),
                dict(payload["state_dict"]),
                dict(payload["settings"]),
                dict(payload["overlaps"]),
            )
            promised = payload["weights_sha256"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                where, f"a part of it is missing or malformed ({error!r})", REWRAP
            ) from error
        if hash_weights(artefact.state) != promised:
            raise CheckpointError(where, "its weights are not those it was written with", REWRAP)
        return artefact
