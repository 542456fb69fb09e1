"""A wrapped model that is changed computes what the changed model computes, or says why it cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.exactness import tiled_model
from support.small_models import small_model
from torch import Tensor, nn

import overlap_tool
from overlap_tool import exact_kernels
from overlap_tool.errors import TraceError, TrainingModeError
from overlap_tool.settings import Settings
from overlap_tool.wrapping.retrofit import rewrap, tiled_stages

pytestmark = pytest.mark.usefixtures("one_thread")


class Config:
    """What a model's own code keeps its settings in."""

    def __init__(self) -> None:
        self.gain = 2.0
        self.levels = [1.0, 2.0]


class Block(nn.Module):
    slope = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.body(x), self.slope)


class Rated(nn.Module):
    """Reads attributes of every kind while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 3, padding=1)
        self.block = Block()
        self.tail = nn.ConvTranspose2d(4, 3, 4, 2, 1)
        self.register_buffer("table", torch.tensor([1.0, 2.0, 3.0]))
        self.weights = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.plain = torch.tensor([0.5, 0.25])
        self.figures = np.array([1.0, 2.0])
        self.index = 0
        self.skip = False
        self.sizes = {"rates": [1.0, 2.0]}
        self.config = Config()
        self.space = SimpleNamespace(shift=0.0)
        self.act: Callable[[Tensor], Tensor] = F.relu
        self.order = ["block"]

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for name in self.order:
            x = self.get_submodule(name)(x)
        if not self.skip:
            x = x * self.table[self.index] + self.plain[0]
        x = x * next(value for name, value in self.named_parameters() if name == "weights")[1]
        x = x * self.sizes["rates"][self.index] * self.config.gain * self.config.levels[0]
        return self.act(self.tail(x + self.space.shift) * float(self.figures[1]))


def rated() -> Rated:
    torch.manual_seed(0)
    return Rated().eval()


def replace_inside(m: Any) -> None:
    m.block.body[1] = nn.ReLU()


def replace_a_block(m: Any) -> None:
    m.block = nn.Sequential(nn.Conv2d(4, 4, 5, padding=2), nn.Tanh()).eval()


def replace_the_head(m: Any) -> None:
    m.head = nn.Conv2d(3, 4, 7, padding=3)


def repeat_a_block(m: Any) -> None:
    m.order.append("block")


def fuse(m: Any) -> None:
    """As TinyLIC's fuse_repconv: layers become one, and the forward that used them goes another way."""
    m.block.body = nn.Sequential(m.block.body[0])


def another_class(m: Any) -> None:
    class Doubled(type(m.block)):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x))

    m.block.__class__ = Doubled


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a number": lambda m: setattr(m, "index", 1),
    "a flag": lambda m: setattr(m, "skip", True),
    "a list in a dict": lambda m: m.sizes["rates"].__setitem__(0, 5.0),
    "another dict": lambda m: setattr(m, "sizes", {"rates": [4.0, 2.0]}),
    "an object": lambda m: setattr(m.config, "gain", 3.0),
    "a list in an object": lambda m: m.config.levels.insert(0, 7.0),
    "a namespace": lambda m: setattr(m.space, "shift", 1.0),
    "a function": lambda m: setattr(m, "act", torch.tanh),
    "a buffer in place": lambda m: m.table.mul_(3),
    "another buffer": lambda m: setattr(m, "table", torch.tensor([9.0, 2.0, 3.0])),
    "the numbers of a buffer": lambda m: setattr(m.table, "data", torch.tensor([9.0, 2.0, 3.0])),
    "a tensor in place": lambda m: m.plain.add_(1),
    "a weight as a number": lambda m: m.load_state_dict(
        {**m.state_dict(), "weights": torch.tensor([1.0, 5.0])}
    ),
    "an array in place": lambda m: m.figures.__setitem__(1, 4.0),
    "a class attribute of the instance": lambda m: setattr(m.block, "slope", 0.9),
    "a part inside": replace_inside,
    "a part": replace_a_block,
    "the first part": replace_the_head,
    "a part twice": repeat_a_block,
    "parts fused": fuse,
    "the class of a part": another_class,
    "double precision": lambda m: m.double(),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_changed_after_wrapping_counts(change) -> None:
    model, x = rated(), torch.rand(1, 3, 30, 41)
    tiled = overlap_tool.wrap(model, tile=(11, 8))
    with torch.no_grad():
        before = tiled(x)
        for each in (model, tiled):
            torch.manual_seed(1)
            change(each)
        x = x.to(next(model.parameters()).dtype)
        found, again = tiled(x), tiled(x)
        with exact_kernels():
            expected = model(x)
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)
    assert not torch.equal(found, before), "the change makes no difference, so nothing was tested"


def test_a_class_that_is_changed_counts(monkeypatch) -> None:
    model, x = rated(), torch.rand(1, 3, 30, 41)
    tiled = overlap_tool.wrap(model, tile=(11, 8))
    tiled(x)
    monkeypatch.setattr(Block, "slope", 0.9)
    with torch.no_grad(), exact_kernels():
        assert torch.equal(tiled(x), model(x))


def test_a_plan_is_of_the_model_as_it_is() -> None:
    tiled = overlap_tool.wrap(rated(), tile=(11, 8))
    (before,) = overlap_tool.plans(tiled, (64, 64)).values()
    replace_the_head(tiled)
    (after,) = overlap_tool.plans(tiled, (64, 64)).values()
    assert after.macs > before.macs


def test_a_head_that_takes_other_channels() -> None:
    model = rated()
    tiled = overlap_tool.wrap(model, tile=(11, 8))
    for each in (model, tiled):
        torch.manual_seed(1)
        each.head = nn.Conv2d(5, 4, 3, padding=1)
    x = torch.rand(1, 5, 30, 41)
    with torch.no_grad(), exact_kernels():
        assert torch.equal(tiled(x), model(x))


def test_nothing_is_traced_again_while_nothing_is_changed(architecture) -> None:
    """Nor does a model's own code change anything of itself, whatever of it is called."""
    tiled = tiled_model(architecture)
    rewrap(tiled, Settings(tile=(32, 32)))
    networks = {name: stage.network for name, stage in tiled_stages(tiled).items()}
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        tiled(x)
        tiled.decompress(**tiled.compress(x))
        tiled(x)
    tiled.eval()
    assert all(stage.network is networks[name] for name, stage in tiled_stages(tiled).items())


def test_equal_numbers_are_no_change() -> None:
    tiled = overlap_tool.wrap(rated(), tile=(11, 8))
    (stage,) = tiled_stages(tiled).values()
    network = stage.network
    tiled.config.gain = float("2.0")
    tiled.index = int("0")
    assert stage.network is network
    tiled.skip = 0
    assert stage.network is not network, "equal, and not the same"


def test_a_part_of_a_codec() -> None:
    model, x = copy.deepcopy(small_model("mbt2018-mean")), torch.rand(1, 3, 64, 64)
    tiled = overlap_tool.wrap(model, tile=32)
    with torch.no_grad():
        tiled(x)
        for each in (model, tiled):
            each.h_s[1] = nn.GELU()
        with exact_kernels():
            expected = model(x)
        assert torch.equal(tiled(x)["x_hat"], expected["x_hat"])


@pytest.mark.parametrize("engine", ["exact", "stock"])
def test_a_module_in_the_place_of_a_whole_stage_is_tiled(engine) -> None:
    """It was computed whole, whatever its size."""
    model, x = copy.deepcopy(small_model("mbt2018-mean")), torch.rand(1, 3, 64, 64)
    tiled = overlap_tool.wrap(model, tile=32, engine=engine)
    other = copy.deepcopy(model.g_s)
    other[1] = nn.ReLU()
    own = tiled.g_s
    with torch.no_grad():
        before = tiled(x)["x_hat"]
        model.g_s, tiled.g_s = copy.deepcopy(other), copy.deepcopy(other)
        found = tiled(x)["x_hat"]
        if engine == "exact":
            with exact_kernels():
                assert torch.equal(found, model(x)["x_hat"])
        stage = tiled_stages(tiled)["g_s"]
        assert stage.module is tiled.g_s
        assert overlap_tool.plans(tiled, (64, 64))["g_s"].tiles > 1
        tiled.g_s = own
        assert torch.equal(tiled(x)["x_hat"], before)
    assert not tiled_stages(overlap_tool.unwrap(tiled))


def test_a_module_that_cannot_be_tiled_is_refused_at_the_next_call() -> None:
    tiled = overlap_tool.wrap(copy.deepcopy(small_model("mbt2018-mean")), tile=32)
    tiled.g_s = nn.Sequential(*tiled.g_s, nn.Flatten()).eval()
    for _ in range(2):
        with torch.no_grad(), pytest.raises(TraceError, match="g_s"):
            tiled(torch.rand(1, 3, 64, 64))


def test_hooks_inside_are_refused_and_hooks_of_the_whole_run() -> None:
    tiled, x = overlap_tool.wrap(rated(), tile=(11, 8)), torch.rand(1, 3, 30, 41)
    with torch.no_grad():
        before = tiled(x)
        whole = tiled.register_forward_hook(lambda module, args, output: output + 1)
        assert torch.equal(tiled(x), before + 1)
        whole.remove()
        inside = tiled.head.register_forward_hook(lambda module, args, output: output + 1)
        for _ in range(2):
            with pytest.raises(TraceError, match="hooks"):
                tiled(x)
        inside.remove()
        assert torch.equal(tiled(x), before)


def test_a_part_in_training_mode_is_refused_if_it_computes_otherwise_there() -> None:
    """Tiles computed what it does in eval mode."""
    tiled = overlap_tool.wrap(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU()).eval(), tile=16)
    x = torch.rand(1, 3, 30, 41)
    with torch.no_grad():
        before = tiled(x)
        tiled[2].train()
        assert torch.equal(tiled(x), before)
        tiled[1].train()
        with pytest.raises(TrainingModeError):
            tiled(x)
        tiled.eval()
        assert torch.equal(tiled(x), before)


def test_a_model_that_was_wrapped_in_training_mode_is_not_traced_again() -> None:
    tiled = overlap_tool.wrap(Rated(), tile=(11, 8))
    (stage,) = tiled_stages(tiled).values()
    network = stage.network
    tiled.eval()
    assert stage.network is network


def test_a_copy_of_a_model_with_a_masked_convolution_runs() -> None:
    """Its stage is one layer with a tiled forward of its own, which no rule knew when it was traced anew."""
    tiled = overlap_tool.wrap(small_model("mbt2018"), tile=32)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(tiled)(x)["x_hat"], tiled(x)["x_hat"])
