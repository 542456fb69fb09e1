"""`python -m benchmarks [NAME ...] [--save FOLDER]`: run benchmarks by name, or all of them.

Of a benchmark of several cases, NAME:CASE runs one alone.
With `--save`, each one's tables are written to FOLDER/NAME.md as well, with what they were measured on. With
`--quote`, nothing runs: what pages quote of benchmarks/results is brought up to date.
"""

from __future__ import annotations

import argparse
import importlib
from datetime import date
from pathlib import Path

from rich.console import Console

from benchmarks import machine
from benchmarks.markdown import as_markdown, quoted

NAMES = ("command_line", "tiling", "zoo", "alternatives", "blockwise", "ablation", "kamisli", "files")
ROOT = Path(__file__).parents[1]
QUOTING = (ROOT / "README.md", ROOT / "docs" / "exactness.md")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--save", type=Path, metavar="FOLDER")
    parser.add_argument("--quote", action="store_true")
    options = parser.parse_args()
    if options.quote:
        for page in QUOTING:
            page.write_text(quoted(page.read_text(), ROOT))
        return
    if unknown := [name for name in options.names if name.partition(":")[0] not in NAMES]:
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(NAMES)}")
    console = Console(width=140)
    console.print(machine.describe())
    for name in options.names or NAMES:
        module, _, case = name.partition(":")
        tables = importlib.import_module(f"benchmarks.{module}").main(*([case] if case else []))
        for table in tables:
            console.print(table)
        if options.save:
            head = f"`python -m benchmarks {name}`. {machine.describe()}, {date.today()}."
            options.save.mkdir(parents=True, exist_ok=True)
            text = "\n\n".join([head, *map(as_markdown, tables)])
            (options.save / f"{name.replace(':', '-')}.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
