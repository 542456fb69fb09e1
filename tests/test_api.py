"""What `import overlap_tool` shows: exactly what is public, each with a docstring, and cheap to import."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.networks import PlainCnn
from support.small_models import small_model
from torch import nn

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.errors import OptionError, OverlapToolError

PACKAGE = Path(overlap_tool.__file__).parent
STUB = ast.parse((PACKAGE / "__init__.pyi").read_text())
PUBLIC = {alias.asname for node in STUB.body if isinstance(node, ast.ImportFrom) for alias in node.names}
EXAMPLES = sorted(path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text())


def test_what_is_listed_is_what_is_public() -> None:
    assert dir(overlap_tool) == sorted(PUBLIC)
    assert set(overlap_tool.__all__) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_explains_itself(name) -> None:
    value = getattr(overlap_tool, name)
    if isinstance(value, ModuleType) or inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value), name
    if inspect.isfunction(value):
        assert inspect.signature(value).return_annotation is not inspect.Signature.empty


def test_every_error_is_public() -> None:
    errors = {
        name
        for name, value in vars(overlap_tool.errors).items()
        if inspect.isclass(value) and issubclass(value, (OverlapToolError, UserWarning))
    }
    assert errors <= PUBLIC


def test_rooms_are_there_after_a_plain_import() -> None:
    told = _printed("overlap_tool.errors.OptionError.__name__, overlap_tool.checkpoint.names()[0]")
    assert told.split() == ["OptionError", checkpoint.names()[0]]


def test_the_package_alone_imports_no_library_that_takes_long() -> None:
    assert (
        _printed("[name for name in ('torch', 'numpy', 'rich', 'networkx') if name in sys.modules]") == "[]"
    )


def _printed(expression: str) -> str:
    """What a new process prints that has only imported the package."""
    code = f"import sys, overlap_tool; print({expression})"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_examples_in_docstrings(path) -> None:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    if "distributed" in name:
        pytest.importorskip("dask")
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert (failed, tried > 0) == (0, True)


class TestSaving:
    def test_a_loaded_model_remembers_what_builds_it(self, tmp_path) -> None:
        torch.save(small_model("mbt2018-mean").state_dict(), tmp_path / "it.pt")
        model = checkpoint.load_checkpoint(tmp_path / "it.pt").model
        assert overlap_tool.analyze(model, size=(64, 64), tiles=(32,)).architecture == "mbt2018-mean"
        overlap_tool.save(overlap_tool.wrap(model, tile=32), tmp_path / "it.tiled.pt")
        again = overlap_tool.load(tmp_path / "it.tiled.pt")
        overlap_tool.save(again, tmp_path / "again.tiled.pt")
        assert checkpoint.load_checkpoint(tmp_path / "again.tiled.pt").architecture == "mbt2018-mean"

    def test_a_name_that_cannot_be_loaded_is_refused(self, tmp_path) -> None:
        tiled = overlap_tool.wrap(PlainCnn().eval(), tile=32)
        with pytest.raises(OptionError, match="no architecture is called 'anything'"):
            overlap_tool.save(tiled, tmp_path / "x.pt", "anything", {})
        with pytest.raises(OptionError, match=r"support\.networks:PlainCnn"):
            overlap_tool.save(tiled, tmp_path / "x.pt")
        assert not (tmp_path / "x.pt").exists()


class TestTiled:
    MODEL = nn.Conv2d(3, 3, 5, padding=2).eval()

    def test_the_model_itself_runs_in_tiles_inside(self) -> None:
        with overlap_tool.tiled(self.MODEL, tile=16) as model:
            assert model is self.MODEL
            assert overlap_tool.settings_of(model).tile == (16, 16)
        assert overlap_tool.settings_of(self.MODEL) is None
        assert "forward" not in vars(self.MODEL)

    def test_it_is_itself_again_after_an_error(self) -> None:
        with pytest.raises(ZeroDivisionError), overlap_tool.tiled(self.MODEL, tile=16):
            raise ZeroDivisionError
        assert "forward" not in vars(self.MODEL)
