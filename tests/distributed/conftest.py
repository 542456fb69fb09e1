"""What tests of workers share: some of them, small files, disks that fill up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from overlap_tool.files.job import Job

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two workers in this process, behind a scheduler."""
    with distributed.LocalCluster(
        n_workers=2, processes=False, threads_per_worker=1, dashboard_address=None
    ) as started:
        yield started.scheduler_address


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    monkeypatch.setattr("overlap_tool.files.formats.outputs.CHUNK", (64, 128))


@dataclass
class Disk:
    """One with room for so many entries of a journal."""

    room: int = 1000
    marked: list[tuple[str, int]] = field(default_factory=list)


@pytest.fixture
def disk(monkeypatch) -> Disk:
    disk, mark = Disk(), Job.mark

    def filling(self, name, rows) -> None:
        if not disk.room:
            raise OSError(28, "No space left on device")
        disk.room -= 1
        mark(self, name, rows)
        disk.marked.append((name, rows))

    monkeypatch.setattr(Job, "mark", filling)
    return disk
