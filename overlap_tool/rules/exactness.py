"""How PyTorch's ops are computed exactly: a table in which the exact engine looks up every op.

A rule states what an op reads, and with `exact=` why its bits depend on no shape. Only ops without a rule
stand in this file. `register_exact_op` adds ops of your own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

from overlap_tool.errors import PluginError
from overlap_tool.kernels import compositions

How = Literal[
    "moves", "compares", "rounds", "draws",
    "number by number", "composed", "chained", "of numbers", "of ops", "unknown",
]  # fmt: skip
"""Ops of the first line run as they are: an op

- moves numbers, or makes them of none;
- compares numbers, and selects among them;
- rounds once for each result, as IEEE 754 defines it to the last bit;
- draws random numbers, as many and in the same order whatever becomes of them.

For the others something else runs instead: an op is

- computed number by number, into `out`, which may be an input;
- composed of correctly rounded operations;
- a chain: what the exact engine refuses of these, it refuses on whole maps, too;
- a tensor made of numbers alone;
- a function of other ops, which are looked up in turn.

An op that is not in the table is computed by PyTorch's own kernel, on whole tensors only.
"""

AS_THEY_ARE = "moves", "compares", "rounds", "draws"


class Exactness(NamedTuple):
    how: How
    compute: Callable[..., Any] | None = None
    """The function that computes it in place of PyTorch's kernel."""


def exactly(how: How, *names: str, **computed: Callable[..., Any]) -> dict[str, Exactness]:
    """Ops that run as they are, and ops that a function computes, by the names that PyTorch dispatches.

    These are without namespace, and without the trailing underscore of in-place ops. An op that several rules
    call is declared once, at the rule of the function of its name.
    """
    if computed if how in AS_THEY_ARE else names:
        raise ValueError(
            f"an op that is {how!r}: a name alone runs as it is, and a function computes the others"
        )
    return {name: Exactness(how, computed.get(name)) for name in (*" ".join(names).split(), *computed)}


moves = partial(exactly, "moves")
compares = partial(exactly, "compares")
rounds = partial(exactly, "rounds")
number_by_number = partial(exactly, "number by number")
composed = partial(exactly, "composed")
chained = partial(exactly, "chained")

WITHOUT_A_RULE = {
    **moves("""
        _local_scalar_dense _pin_memory alias as_strided copy diag_embed embedding empty empty_like
        empty_permuted empty_strided equal eye fill full gather index_fill index_select is_nonzero is_pinned
        item lift lift_fresh masked_scatter masked_select new_empty_strided one_hot ones pin_memory
        record_stream resize scalar_tensor scatter select_scatter set slice_scatter split_with_sizes_copy tril
        triu unsafe_split zero zeros
    """),
    **compares("""
        _assert_async all aminmax any argsort bucketize cummax cummin kthvalue median nanmedian nonzero
        searchsorted sort topk unique_consecutive
    """),
    **exactly("draws", "bernoulli normal rand rand_like randint randn randn_like uniform"),
    **exactly("of numbers", linspace=compositions.linspace, arange=compositions.arange),
}
"""Copies, new tensors, random numbers, and what has no geometry, such as sorting."""

OPS: dict[str, Exactness] = dict(WITHOUT_A_RULE)
"""Every op that the exact engine knows; the rules add theirs."""

AnyKernel = TypeVar("AnyKernel", bound=Callable[..., Any])


def declare(ops: Mapping[str, Exactness]) -> None:
    """Add ops to the table: all of them, or none if one is in it."""
    if taken := ops.keys() & OPS.keys():
        raise PluginError(
            ", ".join(sorted(taken)), "an exact function is already registered", "Register each op once"
        )
    OPS.update(ops)


def register_exact_op(op: str) -> Callable[[AnyKernel], AnyKernel]:
    """Register the function that computes an op of your own, `namespace::op`, under the exact engine.

    It is called with the op's arguments, and its own ops are computed exactly in turn. For an op with a rule,
    `register_rule(..., exact=...)` does the same.
    """

    def add(function: AnyKernel) -> AnyKernel:
        declare({op.removeprefix("aten::"): Exactness("of ops", function)})
        return function

    return add
