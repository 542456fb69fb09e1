"""Results of a model's `compress`: compared, stored as JSON and strings, and passed to its `decompress`.

Most models return CompressAI's dict of strings and shape. Others return a named tuple, or a dict of their own
with arrays in it, and take that as one argument.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN = (bool, int, float, str, type(None))


def has_strings_and_shape(coded: Any) -> bool:
    """Whether a result is a dict as CompressAI's models return it, perhaps with more entries."""
    return isinstance(coded, Mapping) and {"strings", "shape"} <= coded.keys()


def needed(coded: Any) -> Any:
    """The part of a `compress` result that a decoder needs."""
    return {key: coded[key] for key in ("strings", "shape")} if has_strings_and_shape(coded) else coded


def decompressed(model: Any, coded: Any) -> Any:
    """The result of the model's `decompress`."""
    if has_strings_and_shape(coded):
        return model.decompress(coded["strings"], coded["shape"])
    return model.decompress(coded)


def packed(value: Any, strings: list[bytes]) -> Any:
    """A `compress` result as JSON, with a number in the place of each string; strings are appended to
    `strings`.

    Raises a TypeError that names what JSON cannot hold.
    """
    if isinstance(value, np.generic | Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, bytes):
        return {"string": _added(value, strings)}
    if isinstance(value, torch.Size):
        return {"size": list(value)}
    if isinstance(value, Tensor):
        return {"tensor": packed(value.detach().cpu().numpy(), strings)}
    if isinstance(value, np.ndarray) and value.dtype.kind in "buif":
        told = value.dtype.newbyteorder("<")
        data = np.ascontiguousarray(value, told).tobytes()
        return {"array": told.str, "shape": list(value.shape), "string": _added(data, strings)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = {name: packed(part, strings) for name, part in zip(value._fields, value, strict=True)}
        return {"named": type(value).__name__, "fields": fields}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [packed(part, strings) for part in value]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: packed(part, strings) for key, part in value.items()}}
    raise TypeError(f"a {type(value).__name__}")


def unpacked(told: Any, strings: Sequence[bytes]) -> Any:
    """The inverse of `packed`. A named tuple keeps the field names and order, not its class.

    Raises a ValueError, KeyError or TypeError for input that `packed` does not produce.
    """
    if isinstance(told, PLAIN):
        return told
    if "array" in told:
        kind, shape = np.dtype(told["array"]), tuple(told["shape"])
        data = strings[told["string"]]
        if (
            kind.kind not in "buif"
            or min(shape, default=0) < 0
            or kind.itemsize * math.prod(shape) != len(data)
        ):
            raise ValueError("an array that its string does not fill")
        return np.frombuffer(bytearray(data), kind).reshape(shape)
    if "string" in told:
        return strings[told["string"]]
    if "size" in told:
        return torch.Size(told["size"])
    if "tensor" in told:
        return torch.from_numpy(unpacked(told["tensor"], strings))
    if "named" in told:
        fields = told["fields"]
        return namedtuple(told["named"], fields)(*(unpacked(part, strings) for part in fields.values()))
    if "list" in told:
        return [unpacked(part, strings) for part in told["list"]]
    if "tuple" in told:
        return tuple(unpacked(part, strings) for part in told["tuple"])
    return {key: unpacked(part, strings) for key, part in told["dict"].items()}


def same(first: Any, second: Any) -> bool:
    """Whether a decoder receives the same data. Single real numbers, such as times, are ignored."""
    strings: tuple[list[bytes], list[bytes]] = [], []
    told = [
        _without_real_numbers(packed(needed(one), into))
        for one, into in zip((first, second), strings, strict=True)
    ]
    return told[0] == told[1] and strings[0] == strings[1]


def size_in_bytes(coded: Any) -> int:
    strings: list[bytes] = []
    packed(needed(coded), strings)
    return sum(map(len, strings))


def image_of(decoded: Any) -> Tensor:
    """The image in the result of a model's `decompress`. Raises a TypeError if there is none."""
    if isinstance(decoded, Mapping) and "x_hat" in decoded:
        decoded = decoded["x_hat"]
    if not isinstance(decoded, Tensor):
        raise TypeError(f"its decompress gives a {type(decoded).__name__}, and neither a tensor nor an x_hat")
    return decoded


def _added(string: bytes, strings: list[bytes]) -> int:
    strings.append(string)
    return len(strings) - 1


def _without_real_numbers(told: Any) -> Any:
    if isinstance(told, dict):
        return {key: _without_real_numbers(part) for key, part in told.items()}
    if isinstance(told, list):
        return [_without_real_numbers(part) for part in told]
    return None if isinstance(told, float) else told
