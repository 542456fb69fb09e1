"""Compares with another certificate of the same model and images: did both machines compute the same bits?"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from overlap_tool.errors import OptionError
from overlap_tool.kernels.arithmetic import VERSION
from overlap_tool.verification.certificate import MODEL, Check, Figure, ImageRecord

MOST_BYTES = 64 << 20
"""The largest certificate that is read, in bytes."""


@dataclass(frozen=True)
class Elsewhere:
    """The part of a certificate that another one is compared with: digests by the hash of an image."""

    where: str
    machine: str
    arithmetic: str
    weights_sha256: str
    digests: Mapping[str, Mapping[str, str]]

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Elsewhere:
        where = f"against={os.fspath(path)!r}"
        try:
            if os.path.getsize(path) > MOST_BYTES:
                raise ValueError("it is too large to be one")
            told = json.loads(Path(path).read_text())
            return Elsewhere(
                where,
                _text(told["machine"]["device"]),
                _text(told["arithmetic"]),
                _text(told["weights_sha256"]),
                {
                    _text(image["sha256"]): {_text(key): _text(one) for key, one in image["digests"].items()}
                    for image in told["images"]
                },
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"no digest can be read of it ({type(error).__name__}: {error})"
            raise OptionError(where, reason, "Give the report of a verification") from error

    def refuse_unlike(self, weights_sha256: str, images: Sequence[ImageRecord]) -> None:
        """Raise if it is of another arithmetic, other weights or other images: nothing can be compared."""
        if self.arithmetic != VERSION:
            raise OptionError(
                self.where,
                f"its bits are those of arithmetic {self.arithmetic}, and here they are of {VERSION}",
                f"Verify there by a version of the tool whose arithmetic is {VERSION}",
            )
        if self.weights_sha256 != weights_sha256:
            raise OptionError(
                self.where,
                f"it is of the weights {self.weights_sha256[:12]}, and these are {weights_sha256[:12]}",
                "Verify the same checkpoint on both machines",
            )
        for image in images:
            if image.sha256 not in self.digests:
                raise OptionError(
                    self.where,
                    f"it does not have the image {image.name}",
                    "Give the same `images`, or the same `size` and `tiles`, on both machines",
                )

    def compare(self, image: ImageRecord) -> Check:
        """Whether all digests that both have of an image agree; a stage that only one has is not compared."""
        theirs = self.digests[image.sha256]
        both = [name for name in image.digests if name in theirs]
        differ = [name for name in both if image.digests[name] != theirs[name]]
        blank = Check("same-elsewhere", MODEL, image.name, "passed")
        figures: dict[str, Figure] = {"digests": len(both), "differing": len(differ), "machine": self.machine}
        if not both:
            return replace(blank, status="failed", message="the certificates have nothing in common")
        if differ:
            told = f"other bits than on {self.machine}: {', '.join(differ)}"
            return replace(blank, status="failed", message=told, figures=figures)
        return replace(blank, figures=figures)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value
