"""For mkdocs: pages that lie outside docs/, such as the README and the plugins', are pages of the site, too.

Links in all of them are written for the repository, where they can be followed as well. Here each is resolved
there, and written anew for the site, in which what is in docs/ lies at the top.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = ("README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "action.yml", "plugins/**/README.md",
           "notebooks/*", "benchmarks/results/*.md")  # fmt: skip
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    here = page.file.src_uri
    folder = posixpath.dirname(here if (ROOT / here).exists() else f"docs/{here}")

    def moved(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[1]))
        return posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(here) or ".")

    return LINK.sub(moved, markdown)
