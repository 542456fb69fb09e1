"""Zarr arrays at remote addresses, by fsspec: s3://, gs://, http:// and others; memory:// within a process.

Only what is read is downloaded: an array's description, and chunks. Output is written beside its place, and
moved there when it is complete, the description last: a partial copy is not an array.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from overlap_tool.errors import ImageFileError

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.+)", re.DOTALL)
DESCRIPTIONS = (".zarray", "zarr.json")


class Address(type(Path())):  # type: ignore[misc]
    """An address as a path object, keeping the slashes after the scheme that a path would drop."""

    def __str__(self) -> str:
        return SCHEME.sub(r"\1://\2", super().__str__(), count=1)

    def __fspath__(self) -> str:
        return str(self)

    def absolute(self) -> Address:
        return self

    def is_dir(self, **_: Any) -> bool:
        """Whether anything exists there."""
        return self.exists()

    def exists(self, **_: Any) -> bool:
        with _files(self) as (files, path):
            return bool(files.exists(path))


def located(path: str | os.PathLike[str]) -> Path:
    """An address, or a local path, which `file://` is, too."""
    text = os.fspath(path)
    found = SCHEME.fullmatch(text)
    if found is None or os.path.exists(text):
        return Path(path)
    if found[1].lower() == "file":
        return Path("/", found[2])
    return Address(text)


def staging(target: Address) -> Address:
    """Where an array is written until it is complete."""
    beside: Address = target.with_name(f"{target.name}.partial")
    return beside


def put_in_place(made: Address, target: Address) -> None:
    """Move an array chunk by chunk, its description last."""
    with _files(made) as (files, path), _files(target) as (_, place):
        names = [name[len(path) :] for name in files.find(path)]
        for name in sorted(names, key=lambda name: name.rpartition("/")[2] in DESCRIPTIONS):
            files.mv(path + name, place + name)


def remove(address: Address) -> None:
    """Delete what exists at an address, if anything does."""
    with _files(address) as (files, path):
        if files.exists(path):
            files.rm(path, recursive=True)


@contextmanager
def _files(address: Address) -> Iterator[tuple[Any, str]]:
    """The file system of an address, and the path in it; failures become errors."""
    where = str(address)
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ImageFileError(
            where,
            f"fsspec is needed for addresses, and cannot be imported ({error})",
            "Run pip install fsspec",
        ) from error
    try:
        yield url_to_fs(where)
    except Exception as error:  # services raise errors of many kinds
        raise ImageFileError(
            where, f"it cannot be reached ({str(error) or type(error).__name__})", "Check the address"
        ) from error
