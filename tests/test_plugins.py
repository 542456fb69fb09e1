"""Installed plugins are found by entry point; a broken one is named."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from overlap_tool import plugins
from overlap_tool.errors import PluginError


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Pretend that a distribution provides the given module as a plugin."""

    def provide(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        entry = EntryPoint(name, name, plugins.GROUP)
        monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == plugins.GROUP else [])
        plugins.discover.cache_clear()

    yield provide
    plugins.discover.cache_clear()


def test_an_installed_plugin_is_imported(installed) -> None:
    installed("a_good_plugin", "LOADED = True\n")
    assert plugins.discover() == ("a_good_plugin",)
    assert sys.modules["a_good_plugin"].LOADED


def test_a_broken_one_is_named(installed) -> None:
    installed("a_broken_plugin", "import nothing_of_that_name\n")
    with pytest.raises(PluginError, match=r"a_broken_plugin.*nothing_of_that_name"):
        plugins.discover()
