"""No op has a rule without being exact: rules declare whatever PyTorch dispatches for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.errors import ExactnessError, PluginError, RuleError
from overlap_tool.kernels import pieces
from overlap_tool.rules import Call, Operand, Rule, exact_kernels, mode, register_rule, registry
from overlap_tool.rules.assigning import assign
from overlap_tool.rules.exactness import OPS, WITHOUT_A_RULE, composed, moves
from overlap_tool.testing import check_rule

X = torch.linspace(0.1, 2, 64).view(1, 4, 4, 4)
BITS = X > 1
TYPICAL: list[tuple[Any, ...]] = [
    (X,), (X, 1), (X, X), (X, 0.5), (X, 1, 2), (X, X, X), (X, BITS, 0.5), (X, 0, 1, 2), (X, X, 0.5),
    (X, 1, (2, 2)), (X, (1, 4, 4, 4)), (X, torch.rand(4, 4, 3, 3)), (BITS,), (BITS, BITS), (BITS, X, 0.0),
]  # fmt: skip
"""An op is called with the first of these that PyTorch itself takes."""

CALLS: dict[str, tuple[Any, ...]] = {
    "adaptive_avg_pool3d": (X, 1), "avg_pool3d": (X, 2), "max_pool3d": (X, 2), "pad": (X, (1, 1)),
    "batch_norm": (X, torch.zeros(4), torch.ones(4)), "layer_norm": (X, (4,)), "prelu": (X, torch.rand(4)),
    "cat": ([X, X], 1), "concat": ([X, X], 1), "concatenate": ([X, X], 1), "stack": ([X, X],),
    "conv3d": (X[None], torch.rand(4, 1, 3, 3, 3)), "conv_transpose3d": (X[None], torch.rand(1, 4, 3, 3, 3)),
    "bmm": (X[0], X[0]), "einsum": ("nchw,ncvw->nhv", X, X), "linear": (X, torch.rand(3, 4)),
    "fold": (torch.rand(1, 36, 4), (4, 4), 3), "interpolate": (X, None, 2.0), "permute": (X, (0, 2, 3, 1)),
    "flip": (X, (2,)), "getitem": (X, (slice(None), [2, 1])), "t": (X[0, 0],), "type": (X, torch.float64),
    "scaled_dot_product_attention": (X, X, X), "narrow": (X, 1, 0, 2), "new_full": (X, (2, 2), 0.5),
    "conv1d": (X[0], torch.rand(2, 4, 3)), "conv_transpose1d": (X[0], torch.rand(4, 2, 3)),
    "avg_pool1d": (X[0], 2), "max_pool1d": (X[0], 2), "group_norm": (X, 2),
    "adaptive_avg_pool1d": (X[0], 2), "adaptive_max_pool1d": (X[0], 2), "instance_norm": (X,),
}  # fmt: skip
"""Those that are called in a way of their own."""

LAYERS = [
    *(nn.Conv2d(4, 2, 3), nn.ConvTranspose2d(4, 2, 3), nn.Linear(4, 2), nn.LayerNorm(4), nn.BatchNorm2d(4)),
    *(nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(2), nn.PixelShuffle(2)),
    *(nn.PixelUnshuffle(2), nn.ChannelShuffle(2), nn.Unfold(3), nn.Upsample(scale_factor=2), nn.Softmax2d()),
    *(nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.CircularPad2d(1), nn.Flatten()),
    *(nn.CELU(), nn.ELU(), nn.GELU(), nn.Hardshrink(), nn.Hardsigmoid(), nn.Hardswish(), nn.Hardtanh()),
    *(nn.LeakyReLU(), nn.LogSigmoid(), nn.Mish(), nn.PReLU(), nn.ReLU(), nn.ReLU6(), nn.SELU(), nn.SiLU()),
    *(nn.Sigmoid(), nn.Softplus(), nn.Softshrink(), nn.Softsign(), nn.Tanh(), nn.Tanhshrink(), nn.Softmax(1)),
    *(nn.Threshold(0.5, 0.0), nn.Upsample(scale_factor=2, mode="bilinear"), nn.UpsamplingNearest2d((8, 8))),
]

ALSO: list[tuple[Any, ...]] = [
    *((F.pad, X[0], (1, 1), mode) for mode in ("reflect", "replicate")),
    *((F.pad, X, (1, 1, 1, 1), mode) for mode in ("reflect", "replicate")),
    *((F.pad, X[None], (1,) * 6, mode) for mode in ("reflect", "replicate")),
    *((F.interpolate, X[0], None, 2.0, mode) for mode in ("linear", "nearest", "nearest-exact")),
    *((F.interpolate, X[None], None, 2.0, mode) for mode in ("trilinear", "nearest", "nearest-exact")),
    *((F.interpolate, X, None, 2.0, mode) for mode in ("bilinear", "nearest-exact")),
    (torch.baddbmm, X[0], X[0], X[0]), (nn.LSTM(4, 2), X[0]), (torch.native_channel_shuffle, X, 2),
    (torch.repeat_interleave, torch.tensor([1, 2])), (assign, X.clone(), (slice(None), [0, 2]), 0.5),
]  # fmt: skip
"""Calls of these ops and layers that take another way in PyTorch."""

NEVER_SEEN = {
    "cudnn_batch_norm": "on a GPU only",
    "_adaptive_avg_pool3d": "for several parts, which is refused",
    "_native_batch_norm_legit": "in exported programs only",
    "_native_batch_norm_legit_no_training": "in exported programs only",
    "isfinite": "decomposes first",
}
"""Declared ops that no call above need dispatch, and why: versions of PyTorch differ in these."""


def ops_with_a_rule() -> dict[str, Any]:
    """Functions and methods of PyTorch's and Python's; what is of ours is made of these."""
    found = {}
    for target in (*registry._registered, *registry._compositions):
        if isinstance(target, str) and hasattr(Tensor, target):
            found[f"Tensor.{target}"] = getattr(Tensor, target)
        elif not isinstance(target, str | type) and target.__module__.partition(".")[0] != "overlap_tool":
            found[f"{target.__module__}.{target.__name__}"] = target
    refused_or_left_out = ("fft", "dropout")
    return {name: op for name, op in found.items() if not any(part in name for part in refused_or_left_out)}


OPS_WITH_A_RULE = ops_with_a_rule()


def accepted(op: Any) -> tuple[Any, ...]:
    for given in [CALLS[op.__name__]] if op.__name__ in CALLS else TYPICAL:
        try:
            if op(*given) is not NotImplemented:
                return given
        except (TypeError, RuntimeError, IndexError, ValueError):
            continue
    pytest.fail(f"give {op.__name__} arguments of its own, in CALLS")


@pytest.fixture
def looked_up(monkeypatch) -> set[str]:
    """The ops that PyTorch dispatches under the exact engine."""
    names: set[str] = set()

    class Noting(dict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            names.add(name)
            return super().get(name, default)

    monkeypatch.setattr(mode, "OPS", Noting(OPS))
    return names


def is_declared(name: str) -> bool:
    """Views run as they are, and an op that decomposes is computed by others."""

    def is_free(op: Any) -> bool:
        return op.is_view or op._can_decompose()

    packet = getattr(torch.ops.aten, name, None)
    return name in OPS or any(
        is_free(getattr(packet, each)) for each in packet.overloads() if each != "prim_Device"
    )


@pytest.mark.parametrize("name", OPS_WITH_A_RULE)
@torch.no_grad()
def test_an_op_that_has_a_rule_is_exact(name: str, looked_up: set[str]) -> None:
    op = OPS_WITH_A_RULE[name]
    given = accepted(op)
    expected = op(*given)
    with exact_kernels(), pieces():
        found = op(*given)
    if op.__name__ != "new_empty":
        torch.testing.assert_close(found, expected)
    assert all(map(is_declared, looked_up)), looked_up


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@torch.no_grad()
def test_a_layer_that_has_a_rule_is_exact(layer: nn.Module, looked_up: set[str]) -> None:
    layer.eval()
    with exact_kernels(), pieces():
        found = layer(X)
    torch.testing.assert_close(found, layer(X))
    assert all(map(is_declared, looked_up)), looked_up


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@torch.no_grad()
def test_what_rules_declare_is_dispatched(looked_up: set[str]) -> None:
    """No declaration is misspelt, or left behind by a rule that is gone."""
    given = [accepted(op) for op in OPS_WITH_A_RULE.values()]
    with exact_kernels():
        for op, arguments in zip(OPS_WITH_A_RULE.values(), given, strict=True):
            op(*arguments)
        for op, *arguments in ALSO:
            op(*arguments)
    of_pytorch = {name for name in OPS if "::" not in name}  # not what other tests registered
    assert of_pytorch - WITHOUT_A_RULE.keys() - looked_up <= NEVER_SEEN.keys()


def test_an_op_with_a_rule_is_declared_there() -> None:
    """What an op reads and how it is exact are in one place."""
    named = {name.rpartition(".")[2] for name in OPS_WITH_A_RULE}
    assert WITHOUT_A_RULE.keys().isdisjoint(named)


def test_all_kinds_of_layers_are_in_that_list() -> None:
    """But for those of one and of three axes, which are computed as these are, and those that do nothing."""
    listed = {type(layer) for layer in LAYERS}
    known = {target for target in registry._registered if isinstance(target, type)}
    missing = {cls.__name__ for cls in known - listed if cls.__module__.startswith("torch.")}
    others = {"Identity", "LPPool2d", "MultiheadAttention", "Fold", "Unflatten", "UpsamplingBilinear2d"}
    assert {name for name in missing if not name.endswith(("1d", "3d"))} - others == {
        "AlphaDropout", "ConstantPad2d", "Dropout", "Dropout2d", "FeatureAlphaDropout",
    }  # fmt: skip


@pytest.fixture
def own_op(own_rules) -> Any:
    library = torch.library.Library("overlap_tool_rules", "DEF")
    library.define("doubled(Tensor x) -> Tensor")
    library.impl("doubled", lambda x: x * 2.5, "CPU")
    library.impl("doubled", torch.empty_like, "Meta")
    yield torch.ops.overlap_tool_rules.doubled
    OPS.pop("overlap_tool_rules::doubled", None)
    library._destroy()


def doubled_rule(call: Call, x: Operand) -> Rule:
    return Rule(lambda patches, x: torch.ops.overlap_tool_rules.doubled(x))


def test_a_rule_says_how_an_op_of_ones_own_is_exact(own_op) -> None:
    with pytest.raises(ExactnessError, match=r"overlap_tool_rules\.doubled"), exact_kernels(), pieces():
        own_op(X)
    register_rule(own_op.default, exact=lambda x: x * 2)(doubled_rule)
    assert OPS["overlap_tool_rules::doubled"].how == "of ops"
    with exact_kernels(), pieces():
        assert torch.equal(own_op(X), X * 2)
    assert torch.equal(own_op(X), X * 2.5)


def test_what_is_exact_has_to_be_close_to_the_op(own_op) -> None:
    register_rule(own_op.default, exact=lambda x: x * 2)(doubled_rule)
    with pytest.raises(RuleError, match=r"bits: under the exact engine, .* numbers are others"):
        check_rule(own_op.default, torch.rand(1, 3, 17, 22))


def test_what_is_exact_is_a_function(own_op) -> None:
    with pytest.raises(PluginError, match="it is no function"):
        register_rule(own_op.default, exact="conv")(doubled_rule)
    assert own_op.default not in registry._registered


def test_what_is_exact_is_said_once(own_op) -> None:
    register_rule(own_op, exact=lambda x: x * 2)(doubled_rule)
    with pytest.raises(PluginError, match="already registered"):
        register_rule(own_op.default, exact=lambda x: x * 2)(doubled_rule)
    assert own_op.default not in registry._registered


def test_what_the_engine_sees_into_has_no_exactness_of_its_own() -> None:
    with pytest.raises(PluginError, match=r"torch\.ops\.namespace\.op"):
        register_rule(nn.Transformer, exact=lambda x: x)(doubled_rule)
    assert nn.Transformer not in registry._registered


def test_an_op_runs_as_it_is_or_by_a_function() -> None:
    """A name alone would have made PyTorch's own kernel an exact one."""
    with pytest.raises(ValueError, match="composed"):
        composed("lgamma")
    with pytest.raises(ValueError, match="moves"):
        moves(clone=torch.clone)
