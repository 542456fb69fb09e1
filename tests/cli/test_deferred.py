"""Packages whose `__init__` waits: they have all that they have, and take no time before it is asked for."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from overlap_tool.cli import deferred


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One whose `data` waits, and has `light` and `names` in it."""
    name = "deferred_package"
    data = tmp_path / name / "data"
    data.mkdir(parents=True)
    (tmp_path / name / "__init__.py").write_text(f"from {name} import data\n")
    (data / "__init__.py").write_text("from .names import name\nran = [1]\nheavy = 'all of it'\n")
    (data / "names.py").write_text("name = 'of a part'\n")
    (data / "light.py").write_text("number = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(deferred, "DEFERRED", {f"{name}.data": ("absent", "names")})
    deferred.defer()
    yield name
    for module in [one for one in sys.modules if one.partition(".")[0] == name]:
        del sys.modules[module]


def test_a_package_waits_until_it_is_asked_for_what_only_it_has(package: str) -> None:
    data = importlib.import_module(package).data
    assert importlib.import_module(f"{package}.data.light").number == 3
    assert data.name == "of a part"
    assert "ran" not in vars(data)
    assert not hasattr(data, "__wrapped__")
    assert "ran" not in vars(data)
    assert data.heavy == "all of it"
    assert data.ran == [1]
    assert type(data) is ModuleType
    with pytest.raises(AttributeError):
        data.nothing  # noqa: B018


def test_names_are_imported_from_it_as_from_any_other(package: str) -> None:
    found: dict[str, object] = {}
    exec(f"from {package}.data import *\nfrom {package}.data import heavy, light", found)
    assert found["heavy"] == "all of it"
    assert found["name"] == "of a part"
    assert isinstance(found["light"], ModuleType)


@pytest.mark.slow
def test_compressai_is_all_there_once_somebody_asks() -> None:
    program = """
import sys
from overlap_tool.cli.deferred import defer
defer()
import compressai.models, compressai
from compressai.registry import MODELS
assert "mbt2018" in MODELS
assert "torch_geometric" not in sys.modules and "pandas" not in sys.modules
from compressai.datasets import ImageFolder
from compressai.registry import DATASETS, TRANSFORMS
import compressai.transforms, scipy.stats
assert "ImageFolder" in DATASETS and "Compose" in TRANSFORMS and "NormalizeScale" in TRANSFORMS
assert compressai.transforms.RGB2YCbCr and abs(scipy.stats.norm.ppf(0.5)) < 1e-9
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
