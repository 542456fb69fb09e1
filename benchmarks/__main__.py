"""`python -m benchmarks [NAME ...]`: run benchmarks by name, or all of them."""

from __future__ import annotations

import importlib
import sys

NAMES = ("command_line", "tiling")


def main() -> None:
    wanted = sys.argv[1:] or NAMES
    unknown = set(wanted) - set(NAMES)
    if unknown:
        sys.exit(f"no benchmark is called {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    for name in wanted:
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
