"""What a run tells of itself."""

from __future__ import annotations

import subprocess
import sys

import overlap_tool.files.summary

OF_A_CHILD = """
import subprocess, sys
ballast = bytearray(b"x") * (256 << 20)
ask = "import runpy; print(runpy.run_path(sys.argv[1])['peak_memory_bytes']())"
asked = [sys.executable, "-c", "import sys; " + ask, sys.argv[1]]
print(subprocess.run(asked, capture_output=True).stdout.decode())
"""


def test_the_peak_is_that_of_the_process_itself() -> None:
    """And not that of the one that started it."""
    module = overlap_tool.files.summary.__file__
    told = subprocess.run([sys.executable, "-c", OF_A_CHILD, module], capture_output=True, check=True)
    assert 1 << 20 < int(told.stdout) < 128 << 20
