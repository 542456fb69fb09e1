"""Reads a state dict from a file: safe by default, containers and prefixes unwrapped, refusals explained."""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from overlap_tool import bounds
from overlap_tool.checkpoint.conditions import StateDict
from overlap_tool.checkpoint.registry import listed, names
from overlap_tool.errors import CheckpointError, UntrustedPickleError, why_absent
from overlap_tool.legible import first_line

CONTAINERS = ("state_dict", "model_state_dict", "model", "network", "net", "state_dict0")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""Key prefixes added by DataParallel and torch.compile; they carry no meaning in any model."""
OWNER_PREFIXES = ("net.", "network.", "model.")
"""Attribute names of training classes: stripped only if every key has them."""

_RECORDS_ARE_HELD_TO_CLAIMS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)

_HARMLESS = re.compile(r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch\.\w+Storage|torch\.Size")
_ANOTHER_FILE = "Give a file written by torch.save or safetensors, or a seeded model such as zoo:mbt2018"
_FETCH_AGAIN = "Copy or download it again"
_ENDINGS = (".pt", ".pth", ".tar", ".ckpt", ".safetensors")
"""Suffixes of checkpoints, for suggestions only. The type of a file is read from its content."""


def read(path: str | os.PathLike[str], trust: bool = False) -> StateDict | nn.Module:
    """The state dict in a checkpoint, its containers unwrapped; or, only if trusted, a pickled module."""
    where = os.fspath(path)
    return weights_of(read_payload(where, trust), where)


def weights_of(payload: Any, where: str) -> StateDict | nn.Module:
    """The state dict in a payload that was read from the file `where`."""
    found = unwrapped_payload(payload)
    if found is None:
        raise CheckpointError(where, f"it holds no weights, but {_describe(payload)}", _ANOTHER_FILE)
    if isinstance(found, dict):
        refuse_hollow_tensors(found, Path(where))
    return found


def read_payload(path: str | os.PathLike[str], trust: bool = False) -> Any:
    """The payload of a file, as it is."""
    file = _existing_file(os.fspath(path))
    bounds.refuse_checkpoint(file)
    return _load_safetensors(file) if bounds.is_safetensors(file) else _load_pickle(file, trust)


def unwrapped_payload(payload: Any, depth: int = 8) -> StateDict | nn.Module | None:
    """The weights in a checkpoint's payload, nested at most `depth` deep: a pickle can contain itself."""
    if isinstance(payload, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrapped_payload(payload.module, depth)
    if isinstance(payload, nn.Module):
        return payload
    if not isinstance(payload, Mapping) or depth == 0:
        return None
    # a container goes first: loose tensors may stand beside it, such as a learning rate
    for name in CONTAINERS:
        inner = unwrapped_payload(payload.get(name), depth - 1)
        if inner is not None:
            return inner
    named = {key: value for key, value in payload.items() if isinstance(key, str)}
    return {key: value for key, value in named.items() if isinstance(value, Tensor)} or None


def strip_prefixes(state: StateDict, where: str) -> StateDict:
    """The state dict with the keys of the model itself."""
    *_, bare = strippings(state, where)
    return bare


def strippings(state: StateDict, where: str) -> Iterator[StateDict]:
    """The state dict as it is, then with one layer of prefixes after another removed."""
    shorter: StateDict | None = state
    while shorter is not None:
        yield shorter
        shorter = _strip_once(shorter, where)


def _strip_once(state: StateDict, where: str) -> StateDict | None:
    if any(key.startswith(WRAPPER_PREFIXES) or "._orig_mod." in key for key in state):
        removed: tuple[str, ...] = WRAPPER_PREFIXES
    else:
        shared = [prefix for prefix in OWNER_PREFIXES if all(key.startswith(prefix) for key in state)]
        if not shared:
            return None
        removed = (shared[0],)
    stripped: StateDict = {}
    for key, tensor in state.items():
        prefix = next((prefix for prefix in removed if key.startswith(prefix)), "")
        short = key.removeprefix(prefix).replace("._orig_mod.", ".")
        if short in stripped:
            raise CheckpointError(
                where,
                f"two tensors are called {short} once prefixes such as 'module.' are removed",
                "Save one model's state dict only",
            )
        stripped[short] = tensor
    return stripped


def _existing_file(where: str) -> Path:
    path = Path(where)
    if os.path.isdir(path):
        inside = [name for name in _listed(path) if name.endswith(_ENDINGS)]
        example = f", such as {path / inside[0]}" if inside else ""
        raise CheckpointError(where, "it is a directory", f"Give the checkpoint file inside it{example}")
    if absent := why_absent(path):
        raise CheckpointError(where, absent, "Check the path" if os.path.islink(path) else _meant(path))
    if not path.is_file():
        raise CheckpointError(where, "it is not a regular file", _ANOTHER_FILE)
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise CheckpointError(where, f"it cannot be read: {error.strerror}", "Check its rights") from error
    if empty:
        raise CheckpointError(where, "the file is empty", _FETCH_AGAIN)
    return path


def _meant(path: Path) -> str:
    """A suggestion for a path that does not exist."""
    if str(path) in names():
        return f"For seeded weights of that architecture, write zoo:{path}"
    if near := get_close_matches(path.name, _listed(path.parent), n=1, cutoff=0.8):
        return f"Did you mean {path.parent / near[0]}?"
    if re.fullmatch(r"[\w.]+:\w+", str(path)):
        return f'For a class, write `model_class="{path}"`'
    return "Check the path; a seeded model needs no file, such as zoo:mbt2018"


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = path.read_bytes()  # not mapped: truncating a mapped file kills the process
    try:
        return load(data)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            str(path), f"it is damaged or no safetensors file: {_first_line(error)}", _FETCH_AGAIN
        ) from error


def _load_pickle(path: Path, trust: bool) -> Any:
    _refuse_compressed(path)
    try:
        with _still(path) as (still, mapped):
            return torch.load(still, map_location="cpu", weights_only=not trust, mmap=mapped)
    except Exception as error:  # Whatever a broken or hostile file makes the reader raise.
        raise (_trusted_failure(path, error) if trust else _failure(path, error)) from error


@contextmanager
def _still(path: Path) -> Iterator[tuple[Path, bool]]:
    """A stable path to read in place of this one, and whether it may be mapped.

    Truncating a mapped file kills the process. PyTorch before 2.10 checks that records are as long as they
    claim only in mapped files; there, a private copy is mapped.
    """
    if _RECORDS_ARE_HELD_TO_CLAIMS or not zipfile.is_zipfile(path):
        yield path, False
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copyfile(path, Path(folder) / "checkpoint")), True


def _refuse_compressed(path: Path) -> None:
    """Raise for a compressed record: torch.load reads records in place, and would take it for numbers."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = [
                one.filename for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED
            ]
    except Exception:  # Too broken to list; torch.load will report that.
        return
    if compressed:
        raise CheckpointError(
            str(path),
            f"{compressed[0]} in it is compressed, as torch.save never does it",
            "Unpack it and zip it again without compression, as with zip -0 -r, or save it with torch.save",
        )


def _trusted_failure(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, (ImportError, AttributeError)):
        return CheckpointError(
            str(path),
            f"its pickled module needs code that is not importable: {_first_line(error)}",
            "Run where that code can be imported, or save model.state_dict() there",
        )
    return _failure(path, error, trust=True)


def _failure(path: Path, error: Exception, trust: bool = False) -> CheckpointError:
    where = str(path)
    needed = [] if trust else [name for name in pickled_globals(path) if not _HARMLESS.fullmatch(name)]
    if needed:
        return UntrustedPickleError(
            where,
            f"it is a pickle that runs code, not plain weights: loading it would import {listed(needed)}",
            "If you trust whoever made the file, pass `trust=True`, or "
            "else ask for model.state_dict() saved with torch.save, or safetensors",
        )
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith((b"PK", b"\x80\x02\x8a\x0a")):  # The first bytes of torch.save's zip and older files.
        return CheckpointError(where, f"it is truncated or damaged: {_first_line(error)}", _FETCH_AGAIN)
    if tarfile.is_tarfile(path):
        return CheckpointError(where, "it is a tar archive", "Unpack it, and give the checkpoint inside")
    return CheckpointError(where, f"it is not a checkpoint: it begins with {head!r}", _ANOTHER_FILE)


def pickled_globals(path: Path) -> list[str]:
    """The names that unpickling the file would import, found by reading opcodes without running any."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                pickles = [name for name in archive.namelist() if name.endswith(".pkl")]
                return _distinct(archive.open, pickles)
        return _distinct(lambda name: open(name, "rb"), [str(path)])
    except Exception:  # Too broken to list: zipfile may raise anything.
        return []


def _distinct(open_: Callable[[str], IO[bytes]], names: list[str]) -> list[str]:
    found: dict[str, None] = {}
    for name in names:
        with open_(name) as stream:
            found.update(dict.fromkeys(_globals(stream)))
    return list(found)


def _globals(stream: IO[bytes]) -> Iterator[str]:
    pushed: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        while True:  # A file of the older format is several pickles in a row.
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    yield ".".join(str(part) for part in pushed[-2:])
                elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                    memo[len(memo) if argument is None else argument] = pushed[-1] if pushed else None
                elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                    pushed.append(memo.get(int(argument or 0)))
                elif opcode.stack_after:
                    pushed.append(argument)
    except (ValueError, UnicodeError, OverflowError, MemoryError):
        return  # The pickles ended, or are not pickles.


def refuse_hollow_tensors(state: StateDict, path: Path) -> None:
    """Raise for tensors that are not what they claim: a view can claim any shape over one number."""
    size = path.stat().st_size
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            reason = f"{key} is not an ordinary dense tensor"
        elif not tensor.numel() * tensor.element_size() <= min(tensor.untyped_storage().nbytes(), size):
            reason = f"{key} claims the shape {tuple(tensor.shape)}, which is more than the file holds"
        else:
            continue
        raise CheckpointError(str(path), reason, "Save plain contiguous tensors with torch.save")


def _describe(payload: Any) -> str:
    if not isinstance(payload, Mapping):
        return f"a {type(payload).__name__}"
    return f"a dict with the entries {listed(map(str, payload))}" if payload else "an empty dict"


def _first_line(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        # PyTorch's message would advise weights_only=False, which is unsafe
        return "its pickle does not make sense"
    return first_line(error)
