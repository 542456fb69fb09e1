"""Where the time of `compress` goes: a photograph of 24 megapixels, a JPEG file, and mbt2018-mean.

The photograph is made of one of scikit-image's, mirrored side by side. Seconds of a part are without those of
the parts that it calls: a stage reads the picture as it goes. The kernels are compiled and tried meanwhile,
as in any new process.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import skimage.data
import torch
from PIL import Image
from rich.table import Table

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.files import Codec, compress, compressing, running
from overlap_tool.files.coding import entropy
from overlap_tool.files.formats.pixels import PictureNumbers

MODEL = "mbt2018-mean"
WIDTH, HEIGHT = 6000, 4000
LIMIT = 0.15
"""Of the whole, for reading and entropy coding together."""

READING, CODING = "reading the picture", "entropy coding"
REST = "all else: hashes, the file, the model's own code"


def write_photograph(path: Path) -> None:
    small = skimage.data.coffee()
    tile = np.concatenate([small, small[:, ::-1]], 1)
    tile = np.concatenate([tile, tile[::-1]])
    down, across, _ = tile.shape
    pixels = np.tile(tile, (-(-HEIGHT // down), -(-WIDTH // across), 1))[:HEIGHT, :WIDTH]
    Image.fromarray(pixels).save(path, quality=95)


PARTS: tuple[tuple[Any, str, Callable[..., str]], ...] = (
    (compressing, "open_picture", lambda *_: READING),
    (PictureNumbers, "read", lambda *_: READING),
    (entropy._Coder, "compress", lambda *_: CODING),
    (entropy._Coder, "build_indexes", lambda *_: CODING),
    (running.StageNumbers, "pour", lambda numbers, *_: numbers.stage.name),
    (running.StageNumbers, "read", lambda numbers, *_: numbers.stage.name),
)
"""Functions, and what their calls are part of."""


class Clock:
    """Seconds of parts that call each other, each without those that it calls."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside = [REST]
        self._since = time.perf_counter()

    def _now(self) -> None:
        now = time.perf_counter()
        self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        self._now()
        self._inside.append(part)
        try:
            yield
        finally:
            self._now()
            self._inside.pop()

    def timed(self, where: Any, name: str, part: Callable[..., str]) -> Any:
        """A patch that times a function; `part` says of its arguments what it is part of."""
        own = getattr(where, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.during(part(*args)):
                return own(*args, **kwargs)

        return patch.object(where, name, call)


@torch.no_grad()
def main() -> list[Table]:
    loaded = checkpoint.load_checkpoint(f"zoo:{MODEL}")
    codec = Codec(overlap_tool.wrap(loaded.model, tile=256), loaded.architecture, "", MODEL)
    with tempfile.TemporaryDirectory() as made, ExitStack() as patches:
        folder, clock = Path(made), Clock()
        write_photograph(folder / "photograph.jpg")
        for where, function, part in PARTS:
            patches.enter_context(clock.timed(where, function, part))
        with clock.during(REST):
            done = compress(codec, folder / "photograph.jpg", folder / "photograph.lic")
    whole = sum(clock.seconds.values())
    table = Table(
        "part",
        "seconds",
        "of the whole",
        title=f"compress of {WIDTH}x{HEIGHT} pixels (JPEG) with {MODEL}, seeded weights, tile 256, "
        f"{torch.get_num_threads()} threads: {whole:.1f} s, {(done.bytes or 0) / 1e6:.2f} MB",
    )
    for name, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{seconds:.2f}", f"{seconds / whole:.1%}")
    both = (clock.seconds[READING] + clock.seconds[CODING]) / whole
    holds = "holds" if both <= LIMIT else "does NOT hold"
    table.add_row("reading and entropy coding", "", f"{both:.1%}, at most {LIMIT:.0%}: {holds}")
    return [table]
