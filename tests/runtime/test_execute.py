"""The executor against the original modules: every zoo stage, memory, layouts, and rules that are wrong."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import ceil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.networks import PlainCnn
from support.one_pass import execute
from support.small_models import small_survey
from support.ways import Planner, in_tiles, plans, stream, tiles
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from overlap_tool import exact_kernels
from overlap_tool.errors import RuleError
from overlap_tool.geometry import Span
from overlap_tool.geometry.plan import whole
from overlap_tool.graph.network import Network, Op
from overlap_tool.graph.trace import trace
from overlap_tool.models.stages import Stage
from overlap_tool.runtime.stores import TensorSink, TensorSource

pytestmark = pytest.mark.usefixtures("one_thread")

both_schedules = pytest.mark.parametrize("planner", [tiles, stream])


def equals_module(
    module: nn.Module, network: Network, x: Tensor, planner: Planner, tile: tuple[int, int], batch: int = 1
) -> None:
    """Tiles give the module's own forward, but for the last bits that library convolutions vary by shape."""
    before = x.clone()
    with torch.no_grad():
        full = module(x.clone())
    made = in_tiles(network, x, tile, planner, batch)
    assert torch.equal(x, before), "the executor changed its input"
    assert made.dtype == full.dtype
    assert full.abs().max() > 0
    torch.testing.assert_close(made, full, rtol=1e-12, atol=1e-12 * float(full.abs().max()))


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_what_a_source_computes_is_computed_exactly() -> None:
    """The executor's own moves go past the exact engine, and code of others does not."""

    class ExponentialSource(TensorSource):
        def read(self, rows: Span, columns: Span) -> Tensor:
            return super().read(rows, columns).exp()

    class ExponentialSink(TensorSink):
        def write(self, rows: Span, columns: Span, values: Tensor) -> None:
            super().write(rows, columns, values.exp())

    x = seeded(1, 2, 40, 37).float()
    network = trace(nn.MaxPool2d(3, 1, 1).eval(), "pool", 2)
    plan = stream(network.rows, 40, 16), stream(network.columns, 37, 16)
    sink = ExponentialSink(40, 37)
    with torch.no_grad(), exact_kernels():
        execute(network, *plan, ExponentialSource(x, x.device), sink)
        expected = F.max_pool2d(x.exp(), 3, 1, 1).exp()
    assert not torch.equal(F.max_pool2d(x.exp(), 3, 1, 1).exp(), expected), "this would say nothing"
    assert torch.equal(sink.result(), expected)


# --- every stage of the zoo -------------------------------------------------------------------------------


@cache
def double_stages(architecture: str) -> tuple[tuple[Stage, nn.Module], ...]:
    """The stages of a small model in float64, each with an untouched copy of its module."""
    stages = []
    for stage in small_survey(architecture).stages:
        module = copy.deepcopy(stage.module).double().eval()
        network = trace(copy.deepcopy(module), stage.name)
        stages.append((replace(stage, network=network), module))
    return tuple(stages)


ZOO_CASES = {
    "odd, not square": (1, (33, 49), (0.4, 0.7)),
    "two images, tiles larger than one axis": (2, (18, 48), (1.5, 0.6)),
    "smaller than a tile": (1, (18, 21), (3.0, 3.0)),
}
"""Images, the size of the larger of input and output, and tiles as a part of the output."""


@both_schedules
@pytest.mark.parametrize("case", ZOO_CASES)
def test_every_stage_of_the_zoo_in_tiles(architecture, case, planner):
    images, size, parts = ZOO_CASES[case]
    for stage, module in double_stages(architecture):
        network = stage.network
        larger = max(1, network.rows.reaches()[-1].scale)
        height, width = (ceil(n / larger) for n in size)
        x = seeded(images, network.ops[0].channels, height, width)
        output = network.rows.sizes(height)[-1], network.columns.sizes(width)[-1]
        tile = tuple(ceil(n * part) for n, part in zip(output, parts, strict=True))
        equals_module(module, network, x, planner, tile)


@both_schedules
@pytest.mark.parametrize("name", ["mbt2018", "cheng2020-anchor"])
def test_tiles_of_one_sample(name, planner):
    for stage, module in double_stages(name):
        network = stage.network
        down = network.rows.reaches()[-1].scale
        height, width = (3, 2) if down < 1 else (2, 1)
        n = height * int(1 / down) - 1 if down < 1 else height
        m = width * int(1 / down) if down < 1 else width
        x = seeded(1, network.ops[0].channels, n, m)
        output = network.rows.sizes(n)[-1], network.columns.sizes(m)[-1]
        # a tile of one sample on the shorter side, of a few on the other where the output is large
        equals_module(module, network, x, planner, (1 if output[0] <= 8 else 5, 1 if output[1] <= 8 else 3))


# --- layouts, batches -------------------------------------------------------------------------------------


@pytest.fixture
def plain() -> tuple[nn.Module, Network]:
    torch.manual_seed(0)
    module = PlainCnn().double().eval()
    return module, trace(copy.deepcopy(module), "net", 1)


def strided(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second column": strided,
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "one image expanded": lambda x: x[:1].expand(2, -1, -1, -1),
}


@both_schedules
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_that_are_not_contiguous(plain, layout, planner):
    module, network = plain
    x = LAYOUTS[layout](seeded(2, 1, 18, 22))
    equals_module(module, network, x, planner, (5, 7))


@pytest.mark.parametrize("batch", [2, 3, 100])
def test_tiles_in_batches(plain, batch):
    module, network = plain
    equals_module(module, network, seeded(2, 1, 18, 46), tiles, (5, 4), batch)


def test_tiles_that_padding_alone_feeds_in_batches():
    """Rows of zeros above and below: there is no piece that would show how many images there are."""
    module = nn.Conv2d(1, 2, 1, padding=(4, 0)).double()
    equals_module(module, trace(copy.deepcopy(module), "net", 1), seeded(2, 1, 3, 12), tiles, (2, 4), batch=3)


@both_schedules
@pytest.mark.parametrize("counted", [True, False])
def test_windows_of_a_pool_that_hang_over_the_end(planner, counted):
    module = nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=counted).double()
    equals_module(module, trace(module, "net", 1), seeded(1, 1, 10, 14), planner, (2, 3))


def test_the_whole_in_one_step(plain):
    module, network = plain
    x = seeded(1, 1, 12, 14)
    sink = TensorSink(12, 14)
    execute(network, whole(network.rows, 12), whole(network.columns, 14), TensorSource(x, x.device), sink)
    torch.testing.assert_close(sink.result(), module(x).detach(), rtol=1e-12, atol=1e-12)


def test_tiles_of_rows_in_streams_of_columns(plain):
    module, network = plain
    x = seeded(1, 1, 12, 14)
    rows, columns = tiles(network.rows, 12, 5), stream(network.columns, 14, 3)
    sink = TensorSink(12, 14)
    execute(network, rows, columns, TensorSource(x, x.device), sink)
    torch.testing.assert_close(sink.result(), module(x).detach(), rtol=1e-12, atol=1e-12)


def test_plans_that_cannot_go_together_are_refused(plain):
    """Where columns overlap, rows that are kept would be written over before they are read."""
    _, network = plain
    x = seeded(1, 1, 12, 14)
    source, sink = TensorSource(x, x.device), TensorSink(12, 14)
    rows, columns = stream(network.rows, 12, 5), tiles(network.columns, 14, 3)
    with pytest.raises(ValueError, match="kept twice"):
        execute(network, rows, columns, source, sink)
    with pytest.raises(ValueError, match="batches"):
        execute(network, rows, stream(network.columns, 14, 3), source, sink, batch=2)


# --- parts that compute nothing in some steps -------------------------------------------------------------


class Upsampled(nn.Module):
    """Several tiles of the output lie within one sample of the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 5, 4, 1, 1)
        self.last = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.interpolate(self.up(self.first(x)), scale_factor=2.0))


class Cropped(nn.Module):
    """Whole tiles of the middle are left out, and what is left is padded by more than a tile."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 5, padding=2)
        self.last = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.pad(self.first(x)[..., 9:-2, 3:-8], (7, 9, 8, 6), value=2.0))


class Sparse(nn.Module):
    """Reads one sample in five, and leaves gaps between the outputs that it feeds."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 1, 5)
        self.up = nn.ConvTranspose2d(4, 2, 1, 5, output_padding=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class Summary(nn.Module):
    """An output of a few samples, from a large input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 3, 1), nn.Conv2d(4, 2, 2, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@both_schedules
@pytest.mark.parametrize("tile", [(1, 1), (1, 4), (3, 2), (40, 40)], ids=str)
@pytest.mark.parametrize("kind", [Upsampled, Cropped, Sparse, Summary])
def test_parts_that_compute_nothing_in_some_steps(kind, tile, planner):
    torch.manual_seed(0)
    module = kind().double().eval()
    network = trace(copy.deepcopy(module), "net", 2)
    size = (3, 2) if kind is Upsampled else (17, 14)
    x = seeded(2, 2, *size)
    rows, columns = plans(network, x, tile, planner)
    if tile == (1, 1):
        steps = [*rows.steps, *columns.steps]
        idle = any(span.empty for step in steps for span in step.compute)
        padding_only = any(p is not None and p.have.empty for step in steps for p in step.patches)
        repeated = planner is stream or kind is not Upsampled
        assert (idle or padding_only) == (repeated and kind is not Summary), "the case has lost its point"
    equals_module(module, network, x, planner, tile)


# --- memory -----------------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Keeps a weak hold of everything that is made, to see what of it is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.made.append(weakref.ref(value))
        return result

    def live_bytes(self, but: Tensor | None) -> int:
        """Of distinct memory, aside from that of one tensor."""
        alive = [tensor for ref in self.made if (tensor := ref()) is not None]
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive
        }
        if but is not None:
            storages.pop(but.untyped_storage().data_ptr(), None)
        return sum(storages.values())


class Outside:
    """An input that the watch does not see."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def read(self, rows: Span, columns: Span) -> Tensor:
        return self.x[..., rows.start : rows.stop, columns.start : columns.stop].clone()

    def expect(self, rows: Span, columns: Span) -> None:
        pass


@both_schedules
def test_between_tiles_nothing_lives_but_what_the_plan_keeps(planner):
    """To the byte, and without waiting for the garbage collector."""
    torch.manual_seed(0)
    module = PlainCnn().double().eval()
    network = trace(module, "net", 1)
    x = seeded(1, 1, 40, 48)
    rows, columns = plans(network, x, (8, 8), planner)
    sink = TensorSink(40, 48)
    order = [(row, column) for row in rows.steps for column in columns.steps]
    channels = [op.channels for op in network.ops]
    carried = range(1, len(channels) - 1)
    alive: list[int] = []
    gc.collect()
    gc.disable()
    try:
        with Watch() as watch:
            execute(
                network,
                rows,
                columns,
                Outside(x),
                sink,
                1,
                lambda: alive.append(watch.live_bytes(sink.whole)),
            )
            after = watch.live_bytes(sink.whole)
    finally:
        gc.enable()
    corner = x.element_size()
    aboves: set[int] = set()
    for (row, column), bytes_alive in zip(order, alive, strict=True):
        aboves |= {i for i in carried if not (row.keep[i].empty or column.compute[i].empty)}
        above = sum(channels[i] * rows.kept[i] * columns.sizes[i] for i in aboves)
        left = sum(
            channels[i] * row.hold[i].length * column.keep[i].length for i in carried if not row.hold[i].empty
        )
        assert bytes_alive == x.element_size() * (above + left) + corner
    assert after == 0
    assert (max(alive) == corner) == (planner is tiles)


def test_a_map_is_dropped_when_its_last_reader_has_run():
    """A chain of ten convolutions in one tile: never more than three maps at once."""
    module = nn.Sequential(*[nn.Conv2d(4, 4, 1) for _ in range(10)]).double()
    network = trace(module, "net", 4)
    x = seeded(1, 4, 32, 32)
    most = 0

    class Peak(Watch):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal most
            result = super().__torch_dispatch__(func, types, args, kwargs)
            most = max(most, self.live_bytes(None))
            return result

    sink = TensorSink(32, 32)
    with Peak():
        execute(network, *plans(network, x, (32, 32), tiles), Outside(x), sink)
    one = x.nelement() * x.element_size()
    assert 2 * one <= most <= 3 * one + x.element_size()


# --- rules that are wrong ---------------------------------------------------------------------------------


def with_rule(network: Network, place: int, **changes: Any) -> Network:
    """The network with another rule for one op."""
    graph = network.graph.copy()
    op = network.ops[place]
    assert isinstance(op, Op)
    graph.nodes[op.id]["op"] = replace(op, rule=replace(op.rule, **changes))
    return Network(network.name, graph, network.output, network.root)


@both_schedules
@pytest.mark.parametrize("place", [1, 3, -1])
def test_a_rule_that_gives_another_shape_is_named(plain, planner, place):
    _, network = plain
    op = network.ops[place]
    assert isinstance(op, Op)

    def too_few(patches: Any, *args: Any, **kwargs: Any) -> Tensor:
        return op.rule.run(patches, *args, **kwargs)[..., 1:, :]

    broken = with_rule(network, place, run=too_few)
    with pytest.raises(RuleError) as caught:
        in_tiles(broken, seeded(1, 1, 12, 14), (5, 6), planner)
    assert caught.value.where == f"{op.name} ({op.kind})"
    assert "outputs of a piece where" in caught.value.reason
