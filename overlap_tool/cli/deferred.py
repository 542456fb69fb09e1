"""Packages that the command line imports without running their `__init__`.

CompressAI imports data sets, point clouds and statistics before it provides a model, which takes seconds and
serves few commands. Here such a package is imported without its `__init__`, which runs, with all that it
registers, when something is asked for that only it has.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

DEFERRED = {
    "compressai.datasets": (),
    "compressai.registry": ("torch",),
    "compressai.transforms": (),
    "scipy.stats": (),
}
"""Package names, and the modules in them that are asked for a name first."""


class _Waiting(ModuleType):
    """A package whose `__init__` has not run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # Python itself asks these of any module
            raise AttributeError(name)
        for part in DEFERRED[self.__name__]:
            if find_spec(f"{self.__name__}.{part}") is not None:  # a fork may lack the submodule
                module = import_module(f"{self.__name__}.{part}")
                if name in vars(module):
                    return vars(module)[name]
        object.__setattr__(self, "__class__", ModuleType)
        spec = self.__spec__
        assert spec is not None
        assert isinstance(spec.loader, _Deferring)
        spec.loader.own.exec_module(self)
        return getattr(self, name)


class _Deferring(Loader):
    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _Waiting


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name not in DEFERRED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None and spec.submodule_search_locations:
            spec.loader = _Deferring(spec.loader)
        return spec


def defer() -> None:
    """From now on, defer these packages in this process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
