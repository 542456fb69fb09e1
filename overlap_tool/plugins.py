"""Plugins: distributions found by entry point, and single files given on the command line.

A plugin is a module that registers rules (`overlap_tool.register_rule`) and architectures
(`overlap_tool.register_architecture`) when it is imported.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from overlap_tool.errors import OverlapToolError, PluginError, why_absent

GROUP = "overlap_tool.plugins"


@contextmanager
def importing() -> Iterator[None]:
    """Inside, garbage collection is paused for the import of large libraries, which would spend a quarter of
    the time on it and free nothing."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@cache
def discover() -> tuple[str, ...]:
    """Import every installed plugin, once, and return their names."""
    found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    for entry in found:
        try:
            entry.load()
        except OverlapToolError:
            raise
        except Exception as error:
            raise PluginError(
                f"plugin {entry.name} ({entry.value})",
                f"cannot be imported ({type(error).__name__}: {error})",
                "Update or uninstall the distribution that provides it",
            ) from error
    return tuple(entry.name for entry in found)


def load_file(path: Path) -> None:
    """Import a plugin from a file. It is code, and its top level runs."""
    if absent := why_absent(path) or ("" if path.is_file() else "it is no file"):
        raise PluginError(str(path), absent, "Give the path of a Python file")
    name = f"overlap_tool_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(str(path), "is not a Python file", "Give the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except OverlapToolError:
        raise
    except Exception as error:
        del sys.modules[name]
        raise PluginError(
            str(path), f"cannot be imported ({type(error).__name__}: {error})", "Correct the plugin"
        ) from error
