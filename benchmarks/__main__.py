"""`python -m benchmarks [NAME ...] [--save FOLDER]`: run benchmarks by name, or all of them.

NAME:CASE is one case of a benchmark. With `--device cuda`, those that compare kernels run on a GPU. With
`--save`, each one's tables are written to FOLDER/NAME.md as well, or FOLDER/NAME-GPU.md, with what they were
measured on. With `--quote`, nothing runs: what pages quote of benchmarks/results is brought up to date.
"""

from __future__ import annotations

import argparse
import importlib
import re
from datetime import date
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import machine
from benchmarks.markdown import as_markdown, quoted

ON_A_GPU = ("tiling", "zoo", "zoo:1K", "zoo:2K", "zoo:4K")
NAMES = (
    "command_line",
    *ON_A_GPU,
    "alternatives",
    "blockwise",
    "ablation",
    "kamisli",
    "files",
    "functions",
    "cuda-static",
    "depthwise",
    "peak",
    "photograph",
    "processes",
    "raster",
    "reach",
    "regions",
    "versions",
    "workers",
)
ROOT = Path(__file__).parents[1]
QUOTING = (ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "exactness.md")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--save", type=Path, metavar="FOLDER")
    parser.add_argument("--quote", action="store_true")
    options = parser.parse_args()
    if options.quote:
        for page in QUOTING:
            page.write_text(quoted(page.read_text(), ROOT))
        return
    gpu = options.device == "cuda"
    known = ON_A_GPU if gpu else NAMES
    if gpu and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    modules = {name.partition(":")[0] for name in known}
    if unknown := [name for name in options.names if name.partition(":")[0] not in modules]:
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(known)}")
    measured_on = machine.describe(options.device)
    suffix = "-" + re.sub(r"\W+", "-", torch.cuda.get_device_name().lower()) if gpu else ""
    console = Console(width=140)
    console.print(measured_on)
    for name in options.names or (name for name in known if name != "versions"):  # it needs another checkout
        module, _, case = name.partition(":")
        of_case, on_device = [case] if case else [], {"device": "cuda"} if gpu else {}
        tables = importlib.import_module(f"benchmarks.{module.replace('-', '_')}").main(*of_case, **on_device)
        for table in tables:
            console.print(table)
        if options.save:
            command = f"python -m benchmarks {name}" + (" --device cuda" if gpu else "")
            options.save.mkdir(parents=True, exist_ok=True)
            text = "\n\n".join([f"`{command}`. {measured_on}, {date.today()}.", *map(as_markdown, tables)])
            (options.save / f"{name.replace(':', '-')}{suffix}.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
