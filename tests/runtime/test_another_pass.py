"""What one pass has recorded serves later ones, and nothing that has changed meanwhile goes unseen."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from support.small_models import small_model
from torch import Tensor, nn

import overlap_tool
from overlap_tool.rules import Call, Operand, Rule, register_rule
from overlap_tool.runtime import execute, repeated


@pytest.fixture
def turns(monkeypatch) -> list[int]:
    """One for every tile that was computed op by op, whatever it costs to record one."""
    found: list[int] = []
    by_turns = execute.Execution.by_turns

    def seen(*args) -> None:
        found.append(1)
        by_turns(*args)

    monkeypatch.setattr(execute.Execution, "by_turns", seen)
    monkeypatch.setitem(repeated.WORTH, "cpu", 1)
    return found


def image(seed: int, width: int = 160) -> Tensor:
    return torch.rand(1, 3, 96, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def held_to_its_own(tiled: nn.Module, x: Tensor) -> None:
    found = tiled(x)
    with overlap_tool.exact_kernels():
        assert torch.equal(found, type(tiled).forward(tiled, x))


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_in_the_end_every_tile_is_replayed(architecture: str, schedule: str, turns) -> None:
    model = small_model(architecture)
    tiled = overlap_tool.wrap(model, tile=32, schedule=schedule)
    with torch.no_grad():
        for seed in range(4):
            turns.clear()
            x = image(seed)
            for stage in ("g_a", "g_s"):
                found = getattr(tiled, stage)(x)
                with overlap_tool.exact_kernels():
                    x = getattr(model, stage)(x)
                assert torch.equal(found, x)
    assert turns == []


class Alike(nn.Module):
    """With what a pass may depend on: a number made of weights, a slope, a buffer, tensors that are neither
    parameters nor buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 8, 5, 2, 2), nn.Conv2d(8, 8, 3, 1, 1)
        self.scale, self.act = nn.Parameter(torch.rand(8, 1, 1)), nn.LeakyReLU(0.1)
        self.plain = torch.rand(8, 1, 1)
        del self.last._parameters["bias"]
        self.last.bias = torch.rand(8)
        self.register_buffer("shift", torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x)) * torch.exp(self.scale) * self.plain + self.shift
        return self.last(x)


class Apart(Alike):
    """With a tensor whose numbers do not lie side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.rand(8, 1, 2)[..., :1]


class Small(Alike):
    """And a mean over the map, which is another one for every image."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def other_numbers(tensor: Tensor) -> None:
    tensor.data.copy_(tensor.data.flip(0))


CHANGES: dict[str, Callable[[Alike], None]] = {
    "unseen by PyTorch's count": lambda model: other_numbers(model.first.weight),
    "a weight of its own": lambda model: other_numbers(model.scale),
    "a buffer": lambda model: other_numbers(model.shift),
    "a bias": lambda model: other_numbers(model.first.bias),
    "a plain tensor": lambda model: other_numbers(model.plain),
    "a plain tensor of a layer": lambda model: other_numbers(model.last.bias),
    "loaded": lambda model: model.load_state_dict({k: v.roll(1, 0) for k, v in model.state_dict().items()}),
    "another parameter": lambda model: setattr(model.last, "weight", nn.Parameter(model.last.weight * 2)),
    "an attribute": lambda model: setattr(model.act, "negative_slope", 0.3),
    "a part": lambda model: setattr(model, "act", nn.ReLU()),
    "nothing": lambda model: None,
}


@pytest.mark.parametrize("kind", [Alike, Apart, Small])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_passes_is_seen(kind: type[Alike], change: str, turns) -> None:
    tiled = overlap_tool.wrap(kind().eval(), tile=32)

    def tiles_by_turns(seeds: range) -> list[int]:
        found = []
        for seed in seeds:
            turns.clear()
            held_to_its_own(tiled, image(seed))
            found.append(len(turns))
        return found

    before = tiles_by_turns(range(4))
    with torch.no_grad():
        CHANGES[change](tiled)
    after = tiles_by_turns(range(4, 8))
    if kind is not Small:
        assert before[0] > 0 == before[-1]
        assert bool(after[0]) == (change != "nothing")
        assert after[-1] == 0


@pytest.mark.parametrize("tile", [1, 2, 3, 5, 8, 12])
def test_what_changes_within_the_first_pass_is_seen(tile: int, turns, monkeypatch) -> None:
    """What had been recorded before was taken for that of the numbers that were there in the end."""
    tiled = overlap_tool.wrap(Alike().eval(), tile=32)
    ended: list[int] = []
    compute = execute.Execution.tile

    def changed_after_some(*args) -> None:
        compute(*args)
        ended.append(1)
        if len(ended) == tile:
            other_numbers(tiled.first.weight)

    monkeypatch.setattr(execute.Execution, "tile", changed_after_some)
    with torch.no_grad():
        tiled(image(0))
    assert len(ended) > tile
    for seed in range(1, 5):
        held_to_its_own(tiled, image(seed))


def test_a_pass_of_one_tile_is_replayed_by_a_later_one(turns) -> None:
    tiled = overlap_tool.wrap(Alike().eval(), tile=512)
    found = []
    for seed in range(5):
        turns.clear()
        held_to_its_own(tiled, image(seed))
        found.append(len(turns))
    assert found[0] == 1
    assert found[-1] == 0


@pytest.mark.parametrize(
    "held",
    [
        torch.rand(4).to_sparse(),
        torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.quint8),
        torch.rand(4, dtype=torch.complex64).conj(),
        torch.rand(0),
        torch.rand(4).bool(),
    ],
)
def test_any_tensor_may_be_held_beside(held: Tensor, turns) -> None:
    model = Alike().eval()
    model.beside = held
    tiled = overlap_tool.wrap(model, tile=32)
    for seed in range(3):
        held_to_its_own(tiled, image(seed))


def test_what_is_refused_stays_refused(turns) -> None:
    """Once all tiles were replayed, nothing asked any more whether PyTorch casts."""
    tiled = overlap_tool.wrap(Alike().eval(), tile=32)
    for seed in range(4):
        held_to_its_own(tiled, image(seed))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), pytest.raises(overlap_tool.ExactnessError):
        tiled(image(4))


def test_images_of_other_sizes_types_and_places_in_memory_are_seen(turns) -> None:
    tiled = overlap_tool.wrap(Alike().eval(), tile=32)
    wide = image(9, 320)
    for x in [
        image(1),
        image(1),
        wide,
        wide,
        wide[..., 80:240],
        image(1)[:, :, :64],
        image(1).expand(2, -1, -1, -1),
    ]:
        for _ in range(4):
            turns.clear()
            held_to_its_own(tiled, x)
        assert turns == [], "all are replayed in the end"
    tiled.double()
    tiled.plain, tiled.last.bias = tiled.plain.double(), tiled.last.bias.double()
    held_to_its_own(tiled, image(1).double())


def test_threads_that_share_a_model_do_not_share_what_is_replayed(turns) -> None:
    tiled = overlap_tool.wrap(Small().eval(), tile=32)
    images = [image(seed) for seed in range(4)]
    expected = []
    with torch.no_grad(), overlap_tool.exact_kernels():
        expected = [type(tiled).forward(tiled, x) for x in images]
    wrong: list[int] = []

    def run(which: int) -> None:
        with torch.no_grad():
            for _ in range(6):
                if not torch.equal(tiled(images[which]), expected[which]):
                    wrong.append(which)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_pass_that_ends_in_an_error_leaves_nothing_wrong(turns, monkeypatch) -> None:
    tiled = overlap_tool.wrap(Small().eval(), tile=32)
    for seed in range(3):
        held_to_its_own(tiled, image(seed))
    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(execute.EndlessSink, "write", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            tiled(image(3))
    for seed in range(4, 7):
        held_to_its_own(tiled, image(seed))


def test_what_is_kept_goes_with_the_model(turns) -> None:
    tiled = overlap_tool.wrap(Alike().eval(), tile=32)
    for seed in range(4):
        turns.clear()
        held_to_its_own(tiled, image(seed))
    assert turns == [], "something is kept"
    gone = weakref.ref(tiled.first.weight)
    del tiled
    gc.collect()
    assert gone() is None


def test_a_rule_of_others_is_asked_in_every_pass(turns) -> None:
    """What it hangs on cannot be known."""
    asked: list[int] = []

    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    class Around(nn.Sequential):
        pass

    @overlap_tool.register_rule(Own)
    def _own(call, module, input) -> overlap_tool.Rule:
        def run(patches, module, x: Tensor) -> Tensor:
            asked.append(1)
            return x * 2

        return overlap_tool.Rule(run)

    tiled = overlap_tool.wrap(Around(nn.Conv2d(3, 4, 3, 1, 1), Own()).eval(), tile=32)
    counts = []
    for seed in range(4):
        asked.clear()
        with torch.no_grad():
            tiled(image(seed))
        counts.append(len(asked))
    assert counts[1] == counts[2] == counts[3] > 0, "as many as without what earlier passes recorded"


@pytest.mark.parametrize("pure", [True, False])
def test_a_rule_from_elsewhere_says_whether_recordings_serve_later_calls(pure: bool, turns) -> None:
    """Unless it does, every call records its own."""

    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x

    @register_rule(Doubled)
    def doubled(call: Call, module: Doubled, x: Operand) -> Rule:
        return Rule(lambda patches, module, x: module(x), pure=pure)

    tiled = overlap_tool.wrap(nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), Doubled()).eval(), tile=32)
    for seed in range(4):
        turns.clear()
        held_to_its_own(tiled, image(seed))
    assert (turns == []) == pure
