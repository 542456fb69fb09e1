"""The model of a run on a worker: its file is sent there once, and loaded once per process."""

from __future__ import annotations

import hashlib
import json
import tempfile
from contextlib import suppress
from ctypes import CDLL
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from torch import nn

from overlap_tool import plugins
from overlap_tool.distributed.cluster import this_worker
from overlap_tool.errors import ClusterError, OverlapToolError
from overlap_tool.files.codec import Codec


@dataclass(frozen=True)
class Wanted:
    """What the model must be on every worker, and whether the class that its file names may be imported."""

    identity: dict[str, Any]
    trust: bool


def send_model(client: Any, codec: Codec) -> Any:
    """The model's file as a task: if the worker that holds it dies, the scheduler makes it again."""
    model = Path(codec.where).read_bytes()
    return client.submit(_itself, model, key=f"overlap-tool-model-{hashlib.sha256(model).hexdigest()}")


def _itself(model: bytes) -> bytes:
    return model


def file_bytes(model: nn.Module) -> int:
    """The size of a model's file, which a worker keeps in addition to the model loaded from it."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


_LOADED: dict[str, Codec] = {}
_LOADING = Lock()


def loaded(model: bytes, wanted: Wanted) -> Codec:
    """The model of a file, loaded once in this process, and checked to be the one that the run started with.

    Every task calls this first, which also returns memory freed by earlier tasks to the system.
    """
    with suppress(AttributeError, OSError, TypeError):  # not glibc's
        CDLL(None).malloc_trim(0)
    key = hashlib.sha256(model).hexdigest()
    with _LOADING:
        if key not in _LOADED:
            with tempfile.TemporaryDirectory(prefix="overlap-tool-") as folder:
                path = Path(folder) / "model.tiled.pt"
                path.write_bytes(model)
                plugins.discover()
                _LOADED[key] = _load(path, wanted.trust)
        codec = _LOADED[key]
    own, expected = (json.loads(json.dumps(identity)) for identity in (codec.identity, wanted.identity))
    differs = sorted(key for key in expected if own.get(key) != expected[key])
    if differs:
        told = ", ".join(f"{key} {own.get(key)} on the worker, {expected[key]} needed" for key in differs)
        reason = f"it would compute other bits ({told})"
        raise ClusterError(this_worker(), reason, "Install the same versions on the worker")
    return codec


def _load(path: Path, trust: bool) -> Codec:
    try:
        return Codec.load(path, trust=trust)
    except OverlapToolError as error:
        reason = f"it cannot load the model: {error.reason}"
        raise ClusterError(this_worker(), reason, error.way_out) from error
