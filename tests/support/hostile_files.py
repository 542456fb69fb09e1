"""Files that are right on the outside and wrong inside: made from good ones, with checksums that fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from overlap_tool.files.formats import container
from overlap_tool.files.formats.frame import padding

ODD: tuple[Any, ...] = (
    *(0, 1, -1, 2, 63, 64, 65, 255, 4096, 2**16, 2**31 - 1, 2**31, 2**63, 2**64, 10**40),
    *(None, True, False, 0.5, 1e308, "", "0", "\udc80", "\x1b[2J", "a" * 5000),
    *([], {}, [0], [[0]], [[[[[0]]]]], {"": 0}, [-1, -1], [2**40, 2**40], [1, 1, 1]),
)
"""In the place of anything."""


def sealed(head: dict[str, Any], payload: bytes) -> bytes:
    """A `.lic` file with this head and these strings, and lengths and a checksum that are right for them."""
    inside = json.dumps(head).encode()
    outside = container.OUTSIDE.pack(container.MAGIC, container.VERSION, len(inside), len(payload))
    made = outside + inside + payload
    return made + hashlib.sha256(made).digest()


def opened(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Head and strings of a good one."""
    length = container.OUTSIDE.unpack(data[: container.OUTSIDE.size])[2]
    inside = data[container.OUTSIDE.size :][:length]
    return json.loads(inside), data[container.OUTSIDE.size + length : -container.CHECKSUM]


def hostile_container(data: bytes, multiple: int, chance: Random) -> bytes:
    """One field or several are others; the image has another size; the strings are others."""
    head, payload = opened(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        kind = chance.randrange(4)
        if kind == 0:
            _replace(head, chance)
        elif kind == 1:
            _resize(head, multiple, chance)
        else:
            payload = _other_strings(head, payload, chance)
    return sealed(head, payload)


def _replace(head: dict[str, Any], chance: Random) -> None:
    """Anything in the head, at any depth, by something odd; or it goes, or comes twice."""
    place: Any = head
    key: Any = chance.choice(list(head))
    while isinstance(place[key], list | dict) and place[key] and chance.random() < 0.7:
        place = place[key]
        key = chance.choice(list(place)) if isinstance(place, dict) else chance.randrange(len(place))
    kind = chance.randrange(6)
    if kind == 0:
        del place[key]
    elif kind == 1 and isinstance(place, list):
        place.append(place[key])
    elif kind == 2 and isinstance(place[key], int):
        place[key] += chance.choice((-64, -1, 1, 64))
    else:
        place[key] = chance.choice(ODD)


def _resize(head: dict[str, Any], multiple: int, chance: Random) -> None:
    """A lie that fits: another size, with the padding, the shape and the bands that it would have."""
    if not isinstance(head.get("width"), int) or not isinstance(head.get("height"), int):
        return
    before = max(1, -(-head["height"] // multiple)), max(1, -(-head["width"] // multiple))
    after = chance.choice(((1, 1), (1, 2), (3, 1), (2, 2), (4, 4)))
    head["height"], head["width"] = after[0] * multiple, after[1] * multiple
    head["padding"] = padding(head["height"], head["width"], multiple)
    head["shape"] = _scaled(head.get("shape"), before, after)
    bands = head.get("bands")
    if isinstance(bands, list) and all(isinstance(one, list) for one in bands):
        head["bands"] = [
            [[0, sum(b[1] for b in one if isinstance(b, list) and len(b) > 1 and isinstance(b[1], int)), ""]]
            for one in bands
        ]


def _scaled(shape: Any, before: tuple[int, int], after: tuple[int, int]) -> Any:
    if isinstance(shape, dict):
        return {key: _scaled(value, before, after) for key, value in shape.items()}
    if not isinstance(shape, list):
        return shape
    if len(shape) >= 2 and all(isinstance(one, int) for one in shape):
        sides = [one * new // old for one, old, new in zip(shape[-2:], before, after, strict=True)]
        return [*shape[:-2], *sides]
    return [_scaled(one, before, after) for one in shape]


def _other_strings(head: dict[str, Any], payload: bytes, chance: Random) -> bytes:
    """Of other bytes or lengths; hashes of symbols are forgotten, so that decoding goes to its end."""
    bands = head.get("bands")
    if not isinstance(bands, list) or not bands:
        return payload
    parts = []
    for one in bands:
        try:
            length = sum(band[1] for band in one)
            rows = sum(band[0] for band in one)
        except (TypeError, IndexError, KeyError):
            return payload
        if not 0 <= length <= 1 << 16:
            return payload
        kind = chance.randrange(5)
        wanted = chance.choice((0, 1, 4, 8, length, length, 2 * length))
        part = bytes(wanted) if kind == 0 else b"\xff" * wanted if kind == 1 else chance.randbytes(wanted)
        parts.append(payload[:length] if kind == 4 else part)
        one[:] = [[rows, len(parts[-1]), ""]]
        payload = payload[length:]
    return b"".join(parts)


def _filled(value: float) -> Callable[[Tensor, Random], Tensor]:
    return lambda tensor, chance: torch.full_like(tensor, value)


def _times(value: float) -> Callable[[Tensor, Random], Tensor]:
    return lambda tensor, chance: tensor * value


def _as(dtype: torch.dtype) -> Callable[[Tensor, Random], Tensor]:
    return lambda tensor, chance: tensor.to(dtype)


def _one(tensor: Tensor, chance: Random) -> Tensor:
    """A single number, which may be one that nobody looks up."""
    made = tensor.clone().reshape(-1)
    if len(made):
        at, odd = (
            chance.randrange(len(made)),
            chance.choice((0, 1, -1, 65535, 65536, 65537, 2**31 - 1, -(2**31))),
        )
        made[at] = odd
    return made.reshape(tensor.shape)


def _noise(tensor: Tensor, chance: Random) -> Tensor:
    generator = torch.Generator().manual_seed(chance.randrange(1 << 30))
    if tensor.is_floating_point():
        return torch.randn(tensor.shape, generator=generator) * 10.0 ** chance.randrange(-3, 30)
    return torch.randint(-(2**31), 2**31 - 1, tensor.shape, generator=generator).to(tensor.dtype)


CHANGES: tuple[Callable[[Tensor, Random], Tensor], ...] = (
    *(_filled(0), _filled(1), _filled(65536), _filled(-1), _filled(2**31 - 1)),
    *(_times(0.5), _times(2), _times(-1)),
    *(_as(torch.int64), _as(torch.float32), _as(torch.float16), _as(torch.uint8), _as(torch.complex64)),
    *(_as(torch.uint64), _as(torch.float8_e4m3fn), _as(torch.bool)),
    *(_one, _one, _one, _noise),
    lambda tensor, chance: tensor.flip(-1) if tensor.ndim else tensor,
    lambda tensor, chance: tensor[:-1],
    lambda tensor, chance: torch.cat([tensor, tensor[-1:]]),
    lambda tensor, chance: tensor[..., :-1],
    lambda tensor, chance: tensor[:0],
    lambda tensor, chance: tensor[None],
    lambda tensor, chance: tensor.reshape(-1)[:1].reshape(()),
    lambda tensor, chance: tensor.float() * float("nan"),
    lambda tensor, chance: tensor.float() * 1e30,
    lambda tensor, chance: tensor.float() * float("inf"),
    lambda tensor, chance: torch.linspace(0.1, 9, 10**6),
)
"""What becomes of a tensor."""


def hostile_tables(state: dict[str, Tensor], chance: Random) -> dict[str, Tensor]:
    """A state dict in which tables, quantiles or weights are others."""
    made = dict(state)
    tables = [key for key in state if key.rpartition(".")[2] in TABLES]
    for _ in range(chance.choice((1, 1, 2, 3))):
        key = chance.choice(tables if chance.random() < 0.8 else list(state))
        change = chance.choice(CHANGES)
        try:
            made[key] = change(made[key], chance)
        except (RuntimeError, IndexError, NotImplementedError):
            continue  # not of this tensor
    if chance.random() < 0.2:  # so that they are computed anew, from other quantiles
        made = {key: tensor for key, tensor in made.items() if key.rpartition(".")[2] not in TABLES[:3]}
    return made


TABLES = ("_quantized_cdf", "_offset", "_cdf_length", "scale_table", "quantiles")
