"""Installed plugins are found by entry point; a broken one is named."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn

import overlap_tool
from overlap_tool import checkpoint, plugins
from overlap_tool.checkpoint import registry as architectures
from overlap_tool.errors import PluginError


@pytest.fixture
def installed(monkeypatch, tmp_path, own_rules):
    """Pretend that a distribution provides the given module as a plugin."""

    def provide(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        entry = EntryPoint(name, name, plugins.GROUP)
        monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == plugins.GROUP else [])
        plugins.discover.cache_clear()

    monkeypatch.setattr(architectures, "_architectures", dict(architectures._architectures))
    yield provide
    plugins.discover.cache_clear()


def test_an_installed_plugin_is_imported(installed) -> None:
    installed("a_good_plugin", "LOADED = True\n")
    assert plugins.discover() == ("a_good_plugin",)
    assert sys.modules["a_good_plugin"].LOADED


def test_its_zoo_names_are_found_from_python(installed) -> None:
    installed(
        "an_architecture_plugin",
        "from dataclasses import replace\n"
        "from overlap_tool.checkpoint import find, has_key, register_architecture\n"
        "known = find('bmshj2018-factorized')\n"
        "mine = replace(known, name='mine', default=known.small, detect=has_key('nowhere'))\n"
        "register_architecture(mine)\n",
    )
    assert checkpoint.load_checkpoint("zoo:mine").architecture == "mine"


def test_its_rules_are_found_from_python(installed) -> None:
    class Bessel(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j1(x)

    installed(
        "a_rule_plugin",
        "import torch\n"
        "from overlap_tool.rules import Rule, register_rule\n"
        "@register_rule(torch.special.bessel_j1)\n"
        "def bessel(call, input):\n"
        "    return Rule(lambda patches, input: torch.special.bessel_j1(input))\n",
    )
    image = torch.rand(1, 3, 9, 7)
    tiled = overlap_tool.wrap(Bessel().eval(), tile=4, engine="stock")
    torch.testing.assert_close(tiled(image), torch.special.bessel_j1(image))


def test_a_broken_one_is_named(installed) -> None:
    installed("a_broken_plugin", "import nothing_of_that_name\n")
    with pytest.raises(PluginError, match=r"a_broken_plugin.*nothing_of_that_name"):
        plugins.discover()
