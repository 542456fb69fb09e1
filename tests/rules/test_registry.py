"""The registry, and what tracing makes of ops: which rule applies, what is refused, what is in place."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compressai.layers import MaskedConv2d
from support.pieces_of import Functional, run_whole
from torch import Tensor, nn

import overlap_tool
from overlap_tool.errors import (
    DataDependenceError,
    GlobalOpError,
    PluginError,
    TraceError,
    UnknownOpError,
)
from overlap_tool.graph.trace import fitted, trace
from overlap_tool.rules import Rule, SizeArgument, register_rule, registry, rule_for_function, rule_for_module

pytestmark = pytest.mark.usefixtures("own_rules")


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, **options)


class Nested(nn.Module):
    """A module under test two names down, so that messages can be held to its dotted name."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first = conv()
        self.block = nn.Sequential(nn.ReLU(), inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.first(x))


def refusal(inner: nn.Module, kind: type[TraceError]) -> TraceError:
    with pytest.raises(kind) as caught:
        trace(Nested(inner), "g_a", 4)
    assert type(caught.value) is kind
    return caught.value


def agrees(module: nn.Module, channels: int = 4) -> None:
    """The traced network, run op by op, computes what the module does."""
    module.double().eval()
    x = torch.randn(2, channels, 12, 16, dtype=torch.float64)
    with torch.no_grad():
        made = run_whole(trace(module, "stage", channels), x.clone())
        torch.testing.assert_close(made, module(x.clone()), rtol=0, atol=1e-12)


# --- which rule applies ----------------------------------------------------------------------------------


class Plain(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(4, 4, 3, padding=1)


class Shifted(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight, self.bias, 1, 1) + 1


class Inner(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(input, weight * 2, bias, 1, 1)


class Leftward(nn.ReflectionPad2d):
    """Overrides a forward that its registered base itself inherits."""

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, (2, 0, 0, 0))


def test_a_subclass_that_overrides_only_init_keeps_the_rule():
    assert rule_for_module(Plain()) is rule_for_module(conv())
    agrees(nn.Sequential(Plain()))


@pytest.mark.parametrize(
    "module", [Shifted(4, 4, 3), Inner(4, 4, 3), Leftward(1)], ids=lambda module: type(module).__name__
)
def test_a_subclass_that_overrides_what_it_computes_is_traced_through(module):
    assert rule_for_module(module) is None
    agrees(nn.Sequential(module))


def test_a_subclass_that_overrides_call_loses_the_rule():
    class Called(nn.ReLU):
        def __call__(self, *args: Any) -> Any:
            return super().__call__(*args) + 1

    assert rule_for_module(Called()) is None


def test_a_forward_set_on_the_instance_loses_the_rule():
    module = nn.ReLU()
    module.forward = lambda x: x + 1  # type: ignore[method-assign]
    assert rule_for_module(module) is None


def test_a_parametrized_convolution_keeps_the_rule_and_its_computed_weight():
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    module = nn.Sequential(conv())
    nn.utils.parametrize.register_parametrization(module[0], "weight", Doubled())
    agrees(module)


class Mystery(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0(x)


def test_registering_by_qualified_name_or_by_class_or_function_is_the_same():
    rule = Rule(lambda patches, module, x: x)
    register_rule(f"{__name__}.Mystery")(lambda call, module, x: rule)
    found = rule_for_module(Mystery())
    assert found is not None
    assert found.build(None, None, None) is rule
    with pytest.raises(PluginError, match="already registered"):
        register_rule(Mystery)(lambda call, module, x: rule)
    with pytest.raises(PluginError, match="already registered"):
        register_rule("torch.nn.modules.conv.Conv2d")(lambda call, module, x: rule)


def test_overriding_by_name_overrides_the_class_too():
    rule = Rule(lambda patches, module, x: x)
    register_rule("torch.nn.modules.conv.Conv2d", override=True)(lambda call, module, x: rule)
    found = rule_for_module(conv())
    assert found is not None
    assert found.build(None, None, None) is rule


def test_registering_twice_adds_nothing():
    before = dict(registry._registered)
    with pytest.raises(PluginError, match="already registered"):
        register_rule(Mystery, nn.Conv2d)(lambda call, module, x: Rule(lambda *_: None))
    assert registry._registered == before


def test_a_malformed_target_adds_nothing():
    before = dict(registry._registered)
    with pytest.raises(PluginError, match="must be a module class"):
        register_rule(Mystery, 5)(lambda call, module, x: Rule(lambda *_: None))
    assert registry._registered == before


def test_a_function_can_be_registered_by_name():
    rule = Rule(lambda patches, x: torch.special.i0(x))
    name = registry.qualified_name(torch.special.i0)
    register_rule(name)(lambda call, x: rule)
    assert rule_for_function(torch.special.i0) is not None
    agrees(Functional(lambda m, x: torch.special.i0(x)))


def test_only_a_rule_that_accepts_sizes_is_given_them():
    """Any other is given numbers, in a trace that holds for one size."""
    module = Functional(lambda m, x: torch.special.xlogy(x, x.shape[2]))
    given: list[Any] = []

    def rule(call: Any, x: Any, size: Any) -> Rule:
        given.append(size)
        return Rule(lambda patches, x, size: x)

    register_rule(torch.special.xlogy)(rule)
    assert trace(module, "stage", 4).asks
    assert type(given[-1]) is int
    register_rule(torch.special.xlogy, accepts_sizes=True, override=True)(rule)
    assert not trace(module, "stage", 4).asks
    assert type(given[-1]) is SizeArgument


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "where"),
    [
        (nn.LocalResponseNorm(2), "g_a.block.1 (LocalResponseNorm)"),
        (Functional(lambda m, x: torch.special.i0(x)), "g_a.block.1.special_i0 (special_i0)"),
        (Functional(lambda m, x: x.erfinv()), "g_a.block.1.erfinv (erfinv)"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), "g_a.block.1 (Upsample)"),
        (nn.Upsample(scale_factor=0.4, mode="area"), "g_a.block.1 (Upsample)"),
        (Functional(lambda m, x: F.conv2d(x, x.mean(0, keepdim=True))), "g_a.block.1.mean (mean)"),
        (Functional(lambda m, x: torch.roll(x, 1, 0)), "g_a.block.1.roll (roll)"),
        (Functional(lambda m, x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 1))), "g_a.block.1.pad (pad)"),
        (nn.CircularPad2d((-1, 2, 0, 0)), "g_a.block.1 (CircularPad2d)"),
        (Functional(lambda m, x: x[0]), "g_a.block.1.getitem (getitem)"),
        (nn.Sequential(Mystery()), "g_a.block.1.0.special_i0 (special_i0)"),
    ],
)  # fmt: skip
def test_unknown_ops_are_named(module, where):
    assert refusal(module, UnknownOpError).where == where


@pytest.mark.parametrize(
    ("module", "where"),
    [
        (nn.AdaptiveAvgPool2d((None, 1)), "g_a.block.1 (AdaptiveAvgPool2d)"),
        (nn.AdaptiveMaxPool2d((2, None)), "g_a.block.1 (AdaptiveMaxPool2d)"),
        (nn.BatchNorm2d(4, track_running_stats=False), "g_a.block.1 (BatchNorm2d)"),
        (nn.Softmax(-1), "g_a.block.1 (Softmax)"),
        (Functional(lambda m, x: F.batch_norm(x, None, None, None, None, True)),
         "g_a.block.1.batch_norm (batch_norm)"),
        (Functional(lambda m, x: x - x.mean(3, keepdim=True)), "g_a.block.1.mean (mean)"),
        (Functional(lambda m, x: x / x.sum()), "g_a.block.1.sum (sum)"),
        (Functional(lambda m, x: x / torch.norm(x, 3, (2, 3), True)), "g_a.block.1.norm (norm)"),
        (Functional(lambda m, x: torch.softmax(x, dim=3)), "g_a.block.1.softmax (softmax)"),
        (Functional(lambda m, x: torch.cumsum(x, 2)), "g_a.block.1.cumsum (cumsum)"),
        (Functional(lambda m, x: torch.einsum("nchw,nchv->nchw", x, x)), "g_a.block.1.einsum (einsum)"),
        (Functional(lambda m, x: torch.fft.fft2(x).abs()), "g_a.block.1.fft_fft2 (fft_fft2)"),
    ],
)  # fmt: skip
def test_ops_that_need_the_whole_map_are_refused_by_name(module, where):
    assert refusal(module, GlobalOpError).where == where


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, x: x[:, :, 3],
        lambda m, x: torch.cat([x, x], dim=2),
        lambda m, x: x[:, :, : x.shape[2] * 0],
    ],
)
def test_what_depends_on_the_size_is_refused(compute):
    with pytest.raises(TraceError) as caught:
        trace(Nested(Functional(compute)), "g_a", 4)
    assert caught.value.where.startswith("g_a.block.1")
    assert "register" in caught.value.way_out.lower()


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, x: x[:, :, : x.shape[2] // 2],
        lambda m, x: x[:, :, :5],
        lambda m, x: x[..., -5:],
        lambda m, x: x.narrow(2, 0, 5),
        lambda m, x: F.interpolate(x, size=(8, 8)),
        lambda m, x: F.interpolate(x, size=x.shape[2:]),
        lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
        lambda m, x: F.interpolate(x, scale_factor=2, recompute_scale_factor=True),
        lambda m, x: F.pad(x, (0, x.shape[3] % 2)),
        lambda m, x: x * x.shape[2],
        lambda m, x: x if x.shape[2] % 2 else x + 1,
        lambda m, x: x + 1 if x.size(-1) > 100 else x,
        lambda m, x: x + 1 if x.shape[2] == x.shape[3] else x,
        lambda m, x: x * float(x.shape[2]),
        lambda m, x: m.up(x),
    ],
)
def test_what_depends_on_the_size_is_traced_for_each(compute):
    module = Functional(compute, up=nn.UpsamplingBilinear2d(scale_factor=2))
    network = trace(Nested(module).double().eval(), "g_a", 4)
    assert network.asks
    x = torch.randn(2, 4, 12, 16, dtype=torch.float64)
    made = run_whole(fitted(network, *x[:, 0].shape), x.clone())
    torch.testing.assert_close(made, network.root(x.clone()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, x: x + 1 if x.mean() > 0 else x,
        lambda m, x: x + 1 if (x > 0).all() else x,
        lambda m, x: x * int(x[0, 0, 0, 0]),
        lambda m, x: x * x.abs().amax().item(),
    ],
)
def test_what_depends_on_the_data_is_refused(compute):
    assert refusal(Functional(compute), DataDependenceError).where.startswith("g_a.block.1")


def test_channels_are_plain_numbers():
    def compute(m: Any, x: Tensor) -> Tensor:
        _, channels, *_ = x.shape
        half = x.size(1) // 2
        if x.shape[1] % 2 == 0 and channels > 2 and x.dim() == 4 and len(x.shape) == 4:
            return torch.cat([x[:, half:], x[:, : x.shape[1] - half]], dim=1) * channels
        raise AssertionError("never taken")

    agrees(Functional(compute))


def test_a_join_of_different_scales_is_refused():
    module = Functional(lambda m, x: m.deep(x) + m.deep(m.deep(x)), deep=nn.AvgPool2d(3, 2, 1))
    with pytest.raises(TraceError):
        trace(Nested(module), "g_a", 4)


# --- in place --------------------------------------------------------------------------------------------


def test_a_residual_read_after_an_in_place_activation_is_the_activated_one():
    def unit(m: Any, x: Tensor) -> Tensor:
        x = m.head(x)
        y = m.body(m.relu(x))
        return x + y

    module = Functional(unit, head=conv(), body=conv(), relu=nn.ReLU(inplace=True))
    agrees(module)
    agrees(nn.Sequential(conv(), nn.LeakyReLU(0.1, inplace=True), module))


IN_PLACE = {
    "relu_": lambda x: x.relu_(),
    "torch.relu_": lambda x: torch.relu_(x),
    "F.relu_": lambda x: F.relu_(x),
    "F.leaky_relu_": lambda x: F.leaky_relu_(x, 0.3),
    "F.relu": lambda x: F.relu(x, inplace=True),
    "F.relu, by position": lambda x: F.relu(x, True),
    "F.elu, by position": lambda x: F.elu(x, 1.0, True),
    "clamp_": lambda x: x.clamp_(0, 1),
    "add_": lambda x: x.add_(1),
    "mul_, twice": lambda x: x.mul_(2).mul_(3),
    "+=": lambda x: operator.iadd(x, 2),
    "*=": lambda x: operator.imul(x, 2),
    "keyword": lambda x: nn.ReLU(inplace=True).forward(input=x),
}


@pytest.mark.parametrize("change", IN_PLACE)
@pytest.mark.parametrize("result_is_used", [True, False])
def test_whatever_is_read_after_a_change_in_place_is_the_changed_value(change, result_is_used):
    def compute(m: Any, x: Tensor) -> Tensor:
        x = m.head(x)
        before = x * 2
        y = IN_PLACE[change](x)
        return m.tail(y if result_is_used else x) + x + before

    agrees(Functional(compute, head=conv(), tail=conv()))


def test_a_functional_op_whose_last_option_is_true_is_not_in_place():
    agrees(Functional(lambda m, x: F.max_pool2d(m.head(x), 3, 1, 1, 1, True) + m.head(x), head=conv()))

    def compute(m: Any, x: Tensor) -> Tensor:
        x = m.head(x)
        return torch.norm(x, 2, 1, True) + x

    agrees(Functional(compute, head=conv()))


VIEWS = {
    "slice": lambda x: x[:, :2],
    "chunk": lambda x: x.chunk(2, 1)[0],
    "view": lambda x: x.view(x.shape[0], 2, 2, *x.shape[2:]),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "movedim": lambda x: x.unsqueeze(2).movedim(1, 2),
    "detach": lambda x: x.detach(),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_that_is_read_after_its_tensor_changed_is_refused(view):
    def compute(m: Any, x: Tensor) -> Tensor:
        x = m.head(x)
        part = VIEWS[view](x)
        x.relu_()
        return x + part.flatten(1, -3).sum(1, keepdim=True)

    assert "view" in refusal(Functional(compute, head=conv()), TraceError).reason


@pytest.mark.parametrize("same", [nn.Identity(), nn.Dropout(), nn.Sequential(nn.Identity(), nn.Dropout2d())])
def test_a_tensor_passed_through_unchanged_is_the_same_tensor(same):
    """Identity and dropout hand back their input, so that changing it in place changes both names."""

    def compute(m: Any, x: Tensor) -> Tensor:
        x = m.head(x)
        y = m.relu(m.same(x))
        return x + m.tail(y)

    module = Functional(compute, head=conv(), tail=conv(), same=same, relu=nn.ReLU(inplace=True))
    assert "view" in refusal(module, TraceError).reason


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.ReLU(inplace=True), conv()),
        Functional(lambda m, x: x.add_(1)),
        Functional(lambda m, x: operator.iadd(x, 1) * 2),
        nn.ReLU(inplace=True),
    ],
)
def test_changing_the_stages_own_input_is_refused(module):
    with pytest.raises(TraceError, match="own input in place"):
        trace(module, "stage", 4)


def changed_by_item(m: Any, x: Tensor) -> Tensor:
    x = m.head(x)
    x[:, :, ::2] = 0
    return x


def changed_by_function(m: Any, x: Tensor) -> Tensor:
    x = m.head(x)
    torch.clamp_(x, 0, 1)
    return x


def changed_by_out(m: Any, x: Tensor) -> Tensor:
    x = m.head(x)
    torch.add(x * 2, 1, out=x)
    return x


def changed_by_method(m: Any, x: Tensor) -> Tensor:
    x = m.head(x)
    x.zero_()
    return x


def changed_by_copy(m: Any, x: Tensor) -> Tensor:
    x = m.head(x)
    x.copy_(x * 2)
    return x


@pytest.mark.parametrize(
    "compute", [changed_by_item, changed_by_function, changed_by_out, changed_by_method, changed_by_copy]
)
def test_no_change_in_place_is_lost_in_silence(compute):
    """It may be refused or traced, but the result that nobody reads may not simply be dropped."""
    module = Functional(compute, head=conv())
    try:
        agrees(module)
    except TraceError:
        return


# --- weights ---------------------------------------------------------------------------------------------


class Assigning(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(4, 4, 3, padding=1)
        self.register_buffer("mask", torch.ones(4, 4, 3, 3).triu())

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = self.weight.data * self.mask
        return super().forward(x)


class Multiplying(Assigning):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.mul_(self.mask)
        return F.conv2d(x, self.weight, self.bias, 1, 1)


class Augmenting(Assigning):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return F.conv2d(x, self.weight, self.bias, 1, 1)


def test_a_convolution_that_replaces_its_weights_by_what_is_made_of_them_is_followed():
    module = Nested(Assigning())
    tiled, image = overlap_tool.wrap(module.eval(), tile=8), torch.rand(1, 4, 20, 23)
    with torch.no_grad(), overlap_tool.exact_kernels():
        assert torch.equal(tiled(image), module(image))


@pytest.mark.parametrize("kind", [Multiplying, Augmenting])
def test_a_convolution_that_changes_its_weights_is_refused_by_name(kind):
    module = kind()
    before = module.weight.clone()
    assert refusal(module, TraceError).where.startswith("g_a.block.1")
    assert torch.equal(module.weight, before)


def test_weights_that_are_made_in_forward_work():
    module = Functional(
        lambda m, x: F.conv2d(x, m.weight * torch.exp(m.scale), m.bias, padding=1),
        weight=torch.randn(4, 4, 3, 3), scale=torch.randn(4, 1, 1, 1), bias=torch.randn(4),
    )  # fmt: skip
    agrees(module)


@pytest.mark.parametrize(
    "module",
    [MaskedConv2d(4, 4, 5, padding=2), nn.Sequential(conv(), nn.BatchNorm2d(4)), nn.Sequential(nn.PReLU())],
)
def test_tracing_leaves_parameters_buffers_and_mode_as_they_were(module):
    model = nn.Sequential(module, nn.Dropout()).train()
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kept = {key: value.data_ptr() for key, value in model.state_dict().items()}
    trace(model, "stage", 4)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert kept == {key: value.data_ptr() for key, value in after.items()}
    assert model.training
    assert all(m.training for m in module.modules())
    assert not model[1].training


def test_a_module_that_cannot_be_traced_is_left_in_training_mode():
    module = nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False)).train()
    with pytest.raises(GlobalOpError):
        trace(module, "stage", 4)
    assert all(m.training for m in module.modules())


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_hooks_that_change_the_forward_are_refused_by_name(kind):
    module = conv()
    getattr(module, f"register_{kind}_hook")(lambda *_: None)
    error = refusal(module, TraceError)
    assert error.where == "g_a.block.1 (Conv2d)"
    assert "hooks" in error.reason


def add_in_place(module: nn.Module) -> None:
    module.counter += 1


def assign(module: nn.Module) -> None:
    module.counter = module.counter + 1


def add_to_data(module: nn.Module) -> None:
    module.counter.data += 1


@pytest.mark.parametrize("change", [add_in_place, assign, add_to_data])
def test_a_buffer_that_changes_is_refused_by_name_and_left_as_it_was(change):
    def compute(module: Any, x: Tensor) -> Tensor:
        change(module)
        return module.conv(x)

    counting = Functional(compute, conv=conv())
    counting.register_buffer("counter", counter := torch.tensor([1.0, torch.nan]))
    error = refusal(counting, TraceError)
    assert error.where == "g_a.block.1.counter"
    assert counting.counter is counter
    assert counter.nan_to_num(7.0).tolist() == [1.0, 7.0]
