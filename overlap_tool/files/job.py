"""A long run that can be killed at any moment and resumed: a folder beside the output, and a journal.

The journal records how many rows of each map are on disk, after they were written. A lock in the folder,
which ends with the process, excludes other processes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from overlap_tool.errors import CodingError, ImageFileError, OptionError
from overlap_tool.files.formats.addresses import Address, put_in_place, remove, staging

FORMAT = "overlap-tool/job"
LOCK = "lock"
ABOUT = "about.json"
PASSING = "passing-"
"""What the names of files and folders begin with that only the process that made them reads."""


class Job:
    """The folder in which `target` is made; used as `with Job(...) as job`.

    `identity` is what the result depends on. With `resume`, a run continues what an earlier run of the same
    identity left; otherwise that is deleted. The folder is removed when the job is finished, and kept with
    all progress when it is stopped.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any], resume: bool) -> None:
        self.target = target
        beside = Path(target.name) if isinstance(target, Address) else target
        self.folder = beside.with_name(f".{target.name}.job")
        self.identity = json.loads(json.dumps({"format": FORMAT, **identity}))
        """The identity after a round trip through JSON, so that it equals one that was read."""
        self.resume = resume
        self.done: dict[str, int] = {}
        self.resumed = False

    def __enter__(self) -> Job:
        try:
            self._lock = self._locked()
            try:
                self._begin()
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise self._unwritten(error) from error
        return self

    def _begin(self) -> None:
        earlier = _read(self.folder / ABOUT)
        if earlier.get("format") != FORMAT and {path.name for path in self.folder.iterdir()} - {LOCK, ABOUT}:
            raise self._not_ours()
        if self.resume and earlier == self.identity:
            self._clear(PASSING)  # a process that was killed left them
            self.done = self._journal()
            self.resumed = bool(self.done)
            return
        if self.resume and earlier:
            changed = sorted(key for key in self.identity if earlier.get(key) != self.identity[key])
            raise OptionError(
                "resume=True",
                f"what was begun of {self.target} differs in its {', '.join(changed)}",
                "Leave `resume` out to begin anew",
            )
        self._clear()
        try:
            (self.folder / ABOUT).write_text(json.dumps(self.identity))
        except OSError:
            self._remove()
            raise

    def _locked(self) -> int:
        """The lock of the folder, which is created if necessary."""
        while True:
            try:
                self.folder.mkdir(exist_ok=True)
            except FileExistsError as error:
                raise self._not_ours() from error
            if self.folder.is_symlink():
                raise self._not_ours()
            try:
                lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:  # another process has just finished and removed the folder
                continue
            if not _take(lock):
                os.close(lock)
                raise OptionError(
                    f"output={str(self.target)!r}",
                    "another process is making it",
                    "Wait for that one, or name another file",
                )
            if _is_at(lock, self.folder / LOCK):
                return lock
            os.close(lock)  # the folder was removed meanwhile

    def mark(self, name: str, rows: int) -> None:
        """Record that the first `rows` rows of this map are on disk."""
        with (self.folder / "journal").open("a") as file:
            file.write(f"{json.dumps([name, rows])}\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[name] = rows

    def keep(self, name: str, data: bytes) -> None:
        """Store some bytes; they are on disk when this returns."""
        with (self.folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def kept(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def finish(self, made: Path) -> None:
        """Move the finished output to its place."""
        if isinstance(made, Address) and isinstance(self.target, Address):
            put_in_place(made, self.target)
        else:
            os.replace(made, self.target)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        begun = any(self.done.values())
        if error is None or not begun or isinstance(error, CodingError):  # which would occur again
            self._remove()
        os.close(self._lock)
        if isinstance(
            error, OSError
        ):  # errors of inputs are reported where they are read: this one is of the output
            raise self._unwritten(error) from error

    def _journal(self) -> dict[str, int]:
        """The recorded entries, without a last line that was only half written."""
        done: dict[str, int] = {}
        try:
            told = (self.folder / "journal").read_bytes()
        except OSError:
            return done
        whole = 0
        for line in told.splitlines(keepends=True):
            try:
                name, rows = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            done[name], whole = rows, whole + len(line)
        os.truncate(self.folder / "journal", whole)
        return done

    def _clear(self, begin: str = "") -> None:
        for path in self.folder.iterdir():
            if path.name != LOCK and path.name.startswith(begin):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _remove(self) -> None:
        """Delete the folder, the lock last: from then on, another process may create it anew."""
        if isinstance(self.target, Address):
            with suppress(ImageFileError):
                remove(staging(self.target))
        with suppress(OSError):
            self._clear()
            (self.folder / LOCK).unlink()
            self.folder.rmdir()

    def _unwritten(self, error: OSError) -> ImageFileError:
        return ImageFileError(
            str(self.target),
            f"it cannot be written ({error.strerror or error})",
            f"Make room, and {'go on with `resume=True`' if self.done else 'run it again'}",
        )

    def _not_ours(self) -> OptionError:
        return OptionError(str(self.folder), "is not a folder of this tool's", "Move it away")


def _take(lock: int) -> bool:
    """Whether the lock was acquired; it is released when the file is closed, or with the process."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _read(about: Path) -> dict[str, Any]:
    try:
        found = json.loads(about.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def stamp(path: Path) -> list[Any]:
    """The path, size and time of a file or folder, which differ once it is changed; an address as it is."""
    if isinstance(path, Address):
        return [str(path)]
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    states = [file.stat() for file in files]
    return [
        str(path.resolve()),
        sum(s.st_size for s in states),
        max((s.st_mtime_ns for s in states), default=0),
    ]
