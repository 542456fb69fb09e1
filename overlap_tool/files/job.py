"""A long run that can be killed at any moment and gone on with: a folder beside the output, and a journal.

The journal says how many rows of which map are on the disk. A row is told after it is there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from overlap_tool.errors import CodingError, OptionError

FORMAT = "overlap-tool/job"


class Job:
    """The folder in which `target` is made; used as `with Job(...) as job`.

    `identity` is what the result depends on. With `resume`, what an earlier run of the same identity has left
    is gone on with; without, it is thrown away. The folder goes when the job is finished, and stays with what
    was done when it is stopped.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any], resume: bool) -> None:
        self.target = target
        self.folder = target.with_name(f".{target.name}.job")
        self.identity = json.loads(json.dumps({"format": FORMAT, **identity}))
        """As it comes back from a file."""
        self.resume = resume
        self.done: dict[str, int] = {}
        self.resumed = False

    def __enter__(self) -> Job:
        about = self.folder / "about.json"
        if self.folder.exists():
            earlier = _read(about)
            if earlier.get("format") != FORMAT and any(self.folder.iterdir()):
                raise OptionError(str(self.folder), "is not a folder of this tool's", "Move it away")
            if self.resume and earlier == self.identity:
                self.done = self._journal()
                self.resumed = bool(self.done)
                return self
            if self.resume:
                changed = sorted(key for key in self.identity if earlier.get(key) != self.identity[key])
                raise OptionError(
                    "--resume",
                    f"what was begun of {self.target} differs in its {', '.join(changed)}",
                    "Leave --resume out to begin anew",
                )
            shutil.rmtree(self.folder)
        self.folder.mkdir()
        about.write_text(json.dumps(self.identity))
        return self

    def mark(self, name: str, rows: int) -> None:
        """Note that the first `rows` rows of this map are on the disk."""
        self.done[name] = rows
        with (self.folder / "journal").open("a") as file:
            file.write(f"{json.dumps([name, rows])}\n")
            file.flush()
            os.fsync(file.fileno())

    def keep(self, name: str, data: bytes) -> None:
        """Some bytes, on the disk when this returns."""
        with (self.folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def kept(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def finish(self, made: Path) -> None:
        """Put what was made in its place."""
        os.replace(made, self.target)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self.done or isinstance(error, CodingError):  # which would come again
            shutil.rmtree(self.folder, ignore_errors=True)

    def _journal(self) -> dict[str, int]:
        done: dict[str, int] = {}
        try:
            lines = (self.folder / "journal").read_text().splitlines()
        except OSError:
            return done
        for line in lines:
            try:
                name, rows = json.loads(line)
            except ValueError:  # the line that was being written
                break
            done[name] = rows
        return done


def _read(about: Path) -> dict[str, Any]:
    try:
        found = json.loads(about.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def stamp(path: Path) -> list[Any]:
    """Of a file or a folder: what changes when it is changed."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    states = [file.stat() for file in files]
    return [
        str(path.resolve()),
        sum(s.st_size for s in states),
        max((s.st_mtime_ns for s in states), default=0),
    ]
