"""Writes the digests that other machines are held to: of operations, of models, or of both.

    PYTHONPATH=tests python -m support.publish operations models

A change of these files is a change of the arithmetic, or of what is computed by it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from overlap_tool import checkpoint, plugins
from overlap_tool.kernels.arithmetic.vectors import PUBLISHED
from overlap_tool.verification import operations, witnesses


def models() -> dict[str, Any]:
    plugins.discover()
    picture = witnesses.image()
    return {
        name: witnesses.model_digests(witnesses.narrow_model(checkpoint.find(name)), picture)
        for name in checkpoint.names()
    }


def main(wanted: list[str]) -> None:
    for name, digests in (("operations", operations.digests), ("models", models)):
        if name in wanted:
            (PUBLISHED / f"{name}.json").write_text(json.dumps(digests(), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
