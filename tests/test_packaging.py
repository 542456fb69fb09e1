"""What is built installs into an environment without CompressAI, and runs the README's Python there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
NOT_BORROWED = ("overlap_tool", "__editable__", "compressai", "torchvision")
CODEC = """
import overlap_tool
try:
    overlap_tool.load_checkpoint("zoo:mbt2018")
except overlap_tool.MissingExtraError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The Python of a new environment with the wheel in it. Libraries are borrowed: nothing is downloaded."""
    folder = tmp_path_factory.mktemp("empty")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (wheel,) = built.glob("*.whl")
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    for entry in Path(torch.__file__).parents[1].iterdir():
        if not entry.name.startswith(NOT_BORROWED) and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def _run(python: Path, code: str, tmp_path: Path) -> str:
    command = [str(python), "-W", "ignore", "-c", code]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_and_source_hold_what_they_should(built) -> None:
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "overlap_tool/py.typed",
        "overlap_tool/vectors/functions.json",
        "overlap_tool/vectors/operations.json",
        "overlap_tool/vectors/models.json",
        "overlap_tool/__init__.pyi",
        "licenses/LICENSE",
        "entry_points.txt",
    ):
        assert any(name.endswith(wanted) for name in names), wanted
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"overlap_tool"}
    with tarfile.open(source) as archive:
        assert any(name.endswith("/pyproject.toml") for name in archive.getnames())


def test_the_python_of_the_readme_runs_without_compressai(installed, tmp_path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.M | re.S)
    assert any("torch.equal" in block for block in blocks)
    for block in blocks:
        _run(installed, block, tmp_path)


def test_a_codec_without_compressai_says_what_to_install(installed, tmp_path) -> None:
    assert 'pip install "overlap-tool[codecs]"' in _run(installed, CODEC, tmp_path)


@pytest.mark.slow
def test_an_installed_machine_is_held_to_the_published_digests(installed, tmp_path) -> None:
    assert _run(installed, "import overlap_tool; print(overlap_tool.selftest().holds)", tmp_path) == "True\n"


def test_what_is_installed_is_what_runs(installed, tmp_path) -> None:
    where = _run(installed, "import overlap_tool; print(overlap_tool.__file__)", tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parents[1])
