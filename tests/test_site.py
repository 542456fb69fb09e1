"""The site builds strictly: every link leads somewhere, and every public name is on the page of the API."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import overlap_tool

ROOT = Path(__file__).parent.parent


def _build(root: Path, into: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(into)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)


def test_the_site_builds_and_its_links_hold(tmp_path) -> None:
    done = _build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    assert 'id="overlap_tool.wrapping.wrap"' in api


def test_a_link_that_leads_nowhere_is_noticed(tmp_path) -> None:
    for name in ("docs", "scripts", "overlap_tool"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "action.yml", "mkdocs.yml"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = _build(tmp_path, tmp_path / "site")  # plugins, notebooks and results are not there
    assert done.returncode != 0
    assert "plugins/README.md" in done.stderr


def test_the_page_of_the_api_names_all_that_is_public() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    shown = {name.rpartition(".")[2] for name in re.findall(r"^::: ([\w.]+)$", page, flags=re.M)}
    shown |= {name.removeprefix("overlap_tool.") for name in re.findall(r"`([\w.]+)`", page)}
    assert set(dir(overlap_tool)) <= shown
