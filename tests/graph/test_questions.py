"""What code asks of a map beside its values, what fits the trials, and whose fault a refusal says it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from torch import Tensor, nn

import overlap_tool
from overlap_tool.errors import GlobalOpError, TraceError
from overlap_tool.graph import values
from overlap_tool.graph.trace import trace

pytestmark = pytest.mark.usefixtures("one_thread")


class Doing(nn.Module):
    def __init__(self, compute: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.relu = nn.ReLU(inplace=True)
        self.compute = compute

    def forward(self, x: Tensor) -> Any:
        return self.compute(self, self.conv(x))


def refusal(compute: Callable[[Any, Tensor], Any]) -> TraceError:
    with pytest.raises(TraceError) as caught:
        trace(Doing(compute).eval(), "stage", 3)
    return caught.value


def assert_tiles_are_right(module: nn.Module, height: int = 40, width: int = 56) -> None:
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    wrapped = overlap_tool.wrap(module.eval(), tile=16)
    with torch.no_grad(), overlap_tool.exact_kernels():
        assert torch.equal(wrapped(image), module(image))


def test_no_larger_map_is_drawn_than_the_module_is_held_to(monkeypatch) -> None:
    """Maps of up to 512x1024 were drawn for every part, though rolls alone are looked at on them: of one with
    many channels these take gigabytes, and a second each."""
    drawn: list[Any] = []
    draw = values._small_maps

    def noted(*args: Any) -> Iterator[Tensor]:
        for x in draw(*args):
            drawn.append(x)
            yield x

    monkeypatch.setattr(values, "_small_maps", noted)
    trace(nn.Conv2d(64, 8, 3, padding=1).eval(), "part", 64)
    assert [tuple(x.shape) for x in drawn] == [(1, 64, 16, 32)]


# --- questions that have one answer ------------------------------------------------------------------------

YES = {
    "is_cuda": lambda x: not x.is_cuda,
    "requires_grad": lambda x: not x.requires_grad,
    "is_contiguous": lambda x: x.is_contiguous(),
    "is_floating_point": lambda x: x.is_floating_point() and torch.is_floating_point(x),
    "device": lambda x: x.device.type == "cpu" and x.device == torch.device("cpu"),
    "ndim": lambda x: x.ndim == x.dim() == len(x.shape) == 4,
    "dtype": lambda x: x.dtype == torch.float32 and x.dtype.is_floating_point,
    "element_size": lambda x: x.element_size() == 4,
    "layout": lambda x: x.layout == torch.strided and not x.is_sparse,
}


@pytest.mark.parametrize("asked", YES)
def test_a_question_with_one_answer_is_answered(asked) -> None:
    """Each was said to be about the size of the input."""
    assert YES[asked](torch.rand(1, 4, 5, 6))
    assert_tiles_are_right(Doing(lambda m, x: x.sigmoid() if YES[asked](x) else x.cumsum(3)))


def test_a_stage_without_weights_may_ask_where_its_map_is() -> None:
    """It was refused with 19,000 characters."""

    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(x, 3, 1, 1) if x.device.type == "cpu" else x

    assert_tiles_are_right(Plain())


# --- the size of the trials --------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3, 5, 7, 10, 11, 14, 24, 64, 128, 256])
def test_a_network_fits_the_trials_whatever_it_downscales_by(factor) -> None:
    """Unshuffling by 7, 11 or 128 was refused, since no trial was a multiple."""

    class Unshuffled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.pixel_shuffle(F.pixel_unshuffle(x, factor).tanh(), factor)

    assert_tiles_are_right(Unshuffled(), factor, 2 * factor)


@pytest.mark.parametrize(("window", "stride"), [(7, 4), (8, 16), (11, 2), (12, 8)])
def test_windows_fit_the_trials(window, stride) -> None:
    def cut(m: Any, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        blocks = x.view(b, c, h // window, window, w // window, window)
        return (blocks - blocks.amax((3, 5), keepdim=True)).reshape(x.shape)

    assert_tiles_are_right(
        Doing(lambda m, x: cut(m, F.avg_pool2d(x, stride))), window * stride, 2 * window * stride
    )


def test_what_compares_all_positions_is_not_said_to_refuse_the_trial() -> None:
    """No tensor may have as many numbers as the larger trials would give it; smaller ones do then."""

    def attend(m: Any, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        return (tokens @ (tokens.transpose(1, 2) @ tokens).softmax(-1)).view(x.shape)

    error = refusal(attend)
    assert (type(error), error.where) == (GlobalOpError, "stage.matmul (matmul)")
    assert "cumsum" in refusal(lambda m, x: x.cumsum(3)).where


# --- the first obstacle, and whose it is -------------------------------------------------------------------


def test_an_op_without_a_rule_comes_before_a_question_behind_it() -> None:
    def asks_later(m: Any, x: Tensor) -> Tensor:
        y = torch.special.bessel_j0(x)
        return y if y.shape[3] > 1000000 else y + 1

    assert refusal(asks_later).where == "stage.special_bessel_j0 (special_bessel_j0)"


class TakesTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        return self.conv(x) * step


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (TakesTwo(), "missing 1 required positional argument: 'step'"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), TakesTwo()), "missing 1 required positional argument: 'step'"),
        (Doing(lambda m, x: m.relu(x, 2, 3)), "takes 2 positional arguments but 4 were given"),
        (Doing(lambda m, x: x + {}["key"]), "KeyError: 'key'"),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv1d(3, 3, 3)), "Conv1d works on maps of 1 axis"),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv3d(3, 3, 3)), "Conv3d works on maps of 3 axes"),
    ],
)
def test_what_the_module_itself_cannot_do_is_not_for_a_rule(module, reason) -> None:
    """The way out was to register a rule, which does not help."""
    with pytest.raises(TraceError) as caught:
        trace(module.eval(), "stage")
    assert reason in caught.value.reason
    assert "register_rule" not in caught.value.way_out


def test_what_only_a_trace_cannot_do_is_shown_in_the_code() -> None:
    def chooses(m: Any, x: Tensor) -> Tensor:
        return [x][not issubclass(type(x), Tensor)]

    error = refusal(chooses)
    assert 'cannot be traced at "return [x][not issubclass(type(x), Tensor)]"' in error.reason
    assert "register_rule" in error.way_out


def test_a_refusal_repeats_no_more_than_a_line_of_a_long_message() -> None:
    def tells(m: Any, x: Tensor) -> Tensor:
        raise ValueError("word " * 5000)

    assert len(str(refusal(tells))) < 1000


def test_a_module_that_is_run_to_see_whether_it_fails_stays_as_it_was() -> None:
    def keeps(m: Any, x: Tensor) -> Tensor:
        m.last = x.shape
        m.last_map = x
        return x["key"]

    module = Doing(keeps).eval()
    before = dict(vars(module))
    with pytest.raises(TraceError):
        trace(module, "stage", 3)
    assert vars(module) == before


def test_a_size_may_be_handed_to_numpy() -> None:
    assert_tiles_are_right(Doing(lambda m, x: F.pad(x, (0, int(np.ceil(x.shape[3] / 7))))))


# --- in place, on what is no map ---------------------------------------------------------------------------


def test_what_is_made_of_weights_may_be_changed_in_place() -> None:
    """It was said to change the weights."""
    module = Doing(lambda m, x: x * m.relu(m.weight * 2))
    before = module.weight.detach().clone()
    assert_tiles_are_right(module)
    assert torch.equal(module.weight, before)
    error = refusal(lambda m, x: x * m.relu(m.weight))
    assert "changes its weights in place" in error.reason


def test_a_value_of_weights_is_what_it_was_before_the_op_in_place() -> None:
    def reads_before_and_after(m: Any, x: Tensor) -> Tensor:
        twice = m.weight * 2
        before = x * twice
        return before + x * m.relu(twice)

    assert_tiles_are_right(Doing(reads_before_and_after))


def test_a_summary_is_what_it_was_before_the_op_in_place() -> None:
    """What a map was multiplied by before came out with the values after."""

    def reads_before_and_after(m: Any, x: Tensor) -> Tensor:
        mean = (x - 1).mean((2, 3), keepdim=True)
        before = x * mean
        return before + x * mean.relu_()

    assert_tiles_are_right(Doing(reads_before_and_after))


# --- what the model's code calls ---------------------------------------------------------------------------


def asserted(x: Tensor) -> None:
    assert x.shape[-1] % 8 == 0, "width"


@pytest.mark.parametrize(
    ("check", "kind"),
    [
        (lambda x: torch._assert(x.shape[-1] % 8 == 0, "width"), AssertionError),
        (lambda x: torch._check(x.shape[-1] % 8 == 0, lambda: "width"), RuntimeError),
        (asserted, AssertionError),
    ],
)
def test_an_assertion_is_not_dropped(check, kind) -> None:
    """The model refused a width of 100, the wrapped one returned an image."""

    def checked(m: Any, x: Tensor) -> Tensor:
        check(x)
        return x.tanh()

    module = Doing(checked).eval()
    assert_tiles_are_right(module)
    with pytest.raises(kind, match="width"):
        overlap_tool.wrap(module, tile=16)(torch.rand(1, 3, 40, 100))


def test_an_assertion_that_no_trial_passes_is_named() -> None:
    error = refusal(lambda m, x: torch._assert(x.shape[-1] > 4000000, "width"))
    assert "fails by itself" in error.reason
    assert "AssertionError: width" in error.reason


def test_an_assertion_that_has_one_answer_is_kept_out_of_the_trace() -> None:
    def checked(m: Any, x: Tensor) -> Tensor:
        torch._assert(x.dim() == 4 and x.shape[1] == 4, "a map of four channels")
        return x.tanh()

    assert_tiles_are_right(Doing(checked))


def test_a_layer_of_einops_is_what_its_function_is() -> None:
    layer = Rearrange("b (n c) h w -> b n c h w", n=2)
    stage = Doing(lambda m, x: layer(x).tanh().sum(2)).eval()
    assert [op.kind for op in trace(stage, "stage", 3).ops[2:]] == [
        "reshape",
        "permute",
        "reshape",
        "tanh",
        "sum",
    ]
    assert_tiles_are_right(stage)


def test_a_module_that_is_made_in_forward_is_followed() -> None:
    def makes(m: Any, x: Tensor) -> Tensor:
        return nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 1, 1))(nn.LeakyReLU(0.2)(x - 0.3))

    stage = Doing(makes).eval()
    own = set(dict(stage.named_modules()))
    assert_tiles_are_right(stage)
    assert set(dict(stage.named_modules())) == own
    kinds = [op.kind for op in trace(stage, "stage", 3).ops[2:]]
    assert kinds == ["sub", "LeakyReLU", "ReLU", "MaxPool2d"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Conv2d(4, 4, 1), "Conv2d with weights that is not one of its own submodules"),
        (lambda: nn.BatchNorm2d(4), "BatchNorm2d with weights"),
        (lambda: nn.Dropout(), "drops at random in eval mode"),
    ],
)
def test_a_module_that_is_made_in_forward_may_not_have_weights_or_drop(make, reason) -> None:
    assert reason in refusal(lambda m, x: make()(x)).reason
