"""Imports run one way, in the order that docs/architecture.md describes."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "overlap_tool"

LAYERS = (
    ("legible",),
    ("errors",),
    ("settings",),
    ("bounds",),
    ("plugins",),
    ("kernels",),
    ("geometry",),
    ("rules",),
    ("graph",),
    ("models",),
    ("checkpoint",),
    ("planning",),
    ("runtime",),
    ("wrapping",),
    ("testing",),
    ("verification",),
    ("files",),
    ("distributed",),
    ("report",),
    ("cli",),
    ("__main__",),
)
"""From the bottom up: a module imports from layers below its own, and a package from itself as well."""

FACADES = {""}
"""The package itself, which imports only when something of it is first used."""

INTEGERS_ONLY = {
    "geometry",
    "geometry.ops",
    "geometry.axis",
    "geometry.listed",
    "geometry.plan",
    "geometry.walk",
}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """The full names of the modules that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner.removeprefix(f"{PACKAGE}.") in FILES else str(node.module))
    return names


def ours(path: Path) -> set[str]:
    """The same for our own modules, without the name of the package."""
    return {
        name.removeprefix(PACKAGE).removeprefix(".")
        for name in imported(path)
        if name.partition(".")[0] == PACKAGE
    }


def layer_of(name: str) -> int | None:
    for number, members in enumerate(LAYERS):
        if any(name == member or name.startswith(f"{member}.") for member in members):
            return number
    return None


def member_of(name: str) -> str:
    """The entry of its layer that a module belongs to: `rules` for `rules.pooling`."""
    number = layer_of(name)
    assert number is not None
    return next(m for m in LAYERS[number] if name == m or name.startswith(f"{m}."))


@pytest.mark.parametrize("name", sorted(FILES.keys() - FACADES))
def test_a_module_imports_from_below_only(name: str) -> None:
    own = layer_of(name)
    assert own is not None, f"give {name} a place in LAYERS, and in docs/architecture.md"
    for other in ours(FILES[name]) - FACADES:
        below = layer_of(other)
        assert below is not None, other
        assert below < own or member_of(other) == member_of(name), f"{name} imports {other}"


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: ours(path) - FACADES for name, path in FILES.items() if name not in FACADES}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == FILES.keys() - FACADES


@pytest.mark.parametrize("name", sorted(FILES))
def test_compressai_is_imported_only_where_it_is_used(name: str) -> None:
    """Not at the top: a user's own class may come with a fork of it, under the same name."""
    statements = ast.parse(FILES[name].read_text()).body
    top = [ast.unparse(node) for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any(statement.split()[1].partition(".")[0] == "compressai" for statement in top)


def test_few_rooms_stand_side_by_side() -> None:
    """Modules and packages at the root: who looks for something reads their names first."""
    assert len({name.partition(".")[0] for name in FILES} - FACADES) <= 21


def test_every_layer_exists() -> None:
    for members in LAYERS:
        for member in members:
            assert member in FILES


def test_the_geometry_imports_nothing_of_ours() -> None:
    assert ours(FILES["geometry.ops"]) == set()


@pytest.mark.parametrize("name", sorted(INTEGERS_ONLY))
def test_the_pure_integers_know_no_torch(name: str) -> None:
    assert ours(FILES[name]) <= INTEGERS_ONLY
    assert not any(
        module.partition(".")[0] in ("torch", "networkx", "numpy") for module in imported(FILES[name])
    )


def test_the_architecture_page_names_only_files_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    hops = re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", page)
    assert len(hops) > 100
    assert [hop for hop in hops if not (ROOT / PACKAGE / hop).exists() and not (ROOT / hop).exists()] == []


def test_the_architecture_page_names_every_file() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for path in FILES.values():
        if path.name not in ("__init__.py", "__main__.py") and path.parent.name != "architectures":
            shown = path.relative_to(ROOT / PACKAGE).as_posix()
            assert f"`{shown}`" in page, f"docs/architecture.md does not say what {shown} is for"


SHARED = {
    "the command is named after the function that it calls": (
        "analyze compress decompress run selftest update verify wrap"
    ),
    "a rule is named after its op, and so is what the exact engine composes": (
        "adaptive_avg_pool2d adaptive_avg_pool3d batch_norm group_norm layer_norm norm"
    ),
    "every engine has the same functions": "Packed convolve filled pack run",
    "an analysis and a certificate are shown by the same parts": "headline plan_table tables",
    "a file or an image is read": "read",
    "an axis in tiles, a stage in segments": "cut",
    "a model's own coding, checked and in files": "compress decompress",
    "rows are handed on in bands": "pour",
    "what is wrong, in words": "fault",
    "a function of the arithmetic, and the op of PyTorch's that is computed by it": (
        "elu gelu log_sigmoid power relu softplus"
    ),
    "any model": "Model",
}
"""Names that several modules have for one meaning."""


def test_no_name_has_two_meanings() -> None:
    """Types and functions; constants belong to their module."""
    homes: dict[str, list[str]] = {}
    for name, path in FILES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                homes.setdefault(node.name, []).append(name)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                homes.setdefault(node.targets[0].id, []).append(name)
    twice = {name for name, modules in homes.items() if len(modules) > 1}
    one_meaning = {name for names in SHARED.values() for name in names.split()}
    assert {name for name in twice if not (name.startswith("_") or name.isupper())} <= one_meaning
    assert one_meaning <= twice
