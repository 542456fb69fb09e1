"""Runs a model's own `compress` and `decompress`; their exceptions become errors that name the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from overlap_tool.errors import CodingError, OverlapToolError
from overlap_tool.files.codec import Codec
from overlap_tool.models import coded

FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What code raises for input that it does not support, as opposed to memory, disk and interrupt errors."""


def compress(codec: Codec, image: Tensor, found: list[bytes]) -> tuple[Any, Any]:
    """The result of the model's `compress`, and the same as a file holds it; strings are added to `found`."""
    with _failing(codec, lambda said: _refused(codec, f"its compress fails ({said})", TAKES_AN_IMAGE)):
        given = codec.model.compress(image)
    try:
        return given, coded.packed(coded.needed(given), found)
    except TypeError as error:
        reason = f"its compress gives {error}, which a .lic file cannot hold"
        raise _refused(
            codec, reason, "Give strings, arrays and numbers, in lists, tuples or dicts"
        ) from error


def decompress(codec: Codec, given: Any, refuse: Callable[[str], OverlapToolError]) -> Tensor:
    """The image that the model decodes from the result of its `compress`."""
    with _failing(codec, refuse):
        return coded.image_of(coded.decompressed(codec.model, given))


TAKES_AN_IMAGE = "Wrap a class whose compress takes an image and no more; try it on the untouched model first"


def _refused(codec: Codec, reason: str, way_out: str) -> CodingError:
    return CodingError(f"{codec.architecture} ({codec.where})", reason, way_out)


@contextmanager
def _failing(codec: Codec, refuse: Callable[[str], OverlapToolError]) -> Iterator[None]:
    try:
        yield
    except OverlapToolError:
        raise
    except FAILURES as error:
        first = next(iter(str(error).strip().splitlines()), "")
        said = f"{type(error).__name__}: {first}"
        if codec.device.type == "cpu" and ("CUDA" in first or "NVIDIA" in first):
            raise _refused(
                codec,
                f"its own code asks for a GPU ({said})",
                'Give `device="cuda"`, on a machine that has one, or wrap a class without such calls',
            ) from error
        raise refuse(said) from error
