"""Work in a process of its own, within limits of memory and time: whatever it does, the test goes on."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch


class Ended(NamedTuple):
    code: int
    """What it exited with; negative where a signal ended it, 70 after an exception."""
    told: str
    """What it printed."""
    megabytes: int
    """The most that was resident, what this process had brought along included."""


def confined(work: Callable[[], object], megabytes: int = 500, seconds: int = 60) -> Ended:
    """Forked from this process, so that nothing has to be imported again.

    Memory is counted above what this process has, and time is that of the processor: a busy machine changes
    nothing.
    """
    with tempfile.TemporaryFile() as out:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
                torch.set_num_threads(1)
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                most = pages * resource.getpagesize() + (megabytes << 20)
                resource.setrlimit(resource.RLIMIT_AS, (most, most))
                resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                work()
                code = 0
            except SystemExit as exit:
                code = int(exit.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status, used = os.wait4(child, 0)
        out.seek(0)
        told = out.read().decode(errors="replace")
        return Ended(os.waitstatus_to_exitcode(status), told, used.ru_maxrss >> 10)


def command(*arguments: object) -> Callable[[], None]:
    """The command line as work."""

    def work() -> None:
        from overlap_tool import cli

        sys.argv = ["overlap-tool", *map(str, arguments)]
        cli.main()

    return work
