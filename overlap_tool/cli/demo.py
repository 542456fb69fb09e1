"""Writes a seeded mbt2018 checkpoint, for a first try without a network."""

from __future__ import annotations

import sys
from pathlib import Path

from overlap_tool import checkpoint


def write_demo_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mbt2018.pt"
    checkpoint.save_atomically(checkpoint.load_checkpoint("zoo:mbt2018").model.state_dict(), path)
    return path


if __name__ == "__main__":
    print(f"wrote {write_demo_checkpoint(Path(sys.argv[1]))}")
