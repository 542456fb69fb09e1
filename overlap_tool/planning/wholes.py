"""Parts that are kept whole: how the model's own code runs them on a map, and how much memory that takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from overlap_tool.graph.copying import twin
from overlap_tool.graph.network import Network, Op, operands, substituted
from overlap_tool.kernels import in_blocks, settled
from overlap_tool.planning.live_bytes import LiveBytes
from overlap_tool.rules import Operand, rehearsal
from overlap_tool.rules.pieces import as_kept, as_laid_out
from overlap_tool.settings import Size


def run_whole(
    op: Op, whole: Tensor, values: Mapping[str, Any], size: Size, compute: Callable[..., Tensor] | None = None
) -> Tensor:
    """Run the model's own code, or `compute`, on a whole map; attention takes its queries in blocks."""

    def value(operand: Operand) -> Any:
        return as_laid_out(whole, operand.layout) if operand.spatial else values[operand.id]

    args, kwargs = substituted((op.args, op.kwargs), Operand, value)
    compute = compute or (op.target if op.module is None else op.module)
    assert compute is not None
    with in_blocks():
        result = settled(compute(*args, **kwargs))
    return as_kept(result, op.layout, size.height, size.width)


def bytes_of_parts(network: Network, images: int, size: Size, exact: bool) -> dict[str, int]:
    """For each part that is kept whole, what `bytes_within` returns, for stage inputs of this size."""
    if not network.wholes:
        return {}
    heights, widths = network.rows.sizes(size.height), network.columns.sizes(size.width)
    sizes = {id: Size(widths[place], heights[place]) for id, place in network.index.items()}
    return {
        # an op that is not a part of the model, such as the step of an LSTM, holds only a few samples at once
        op.id: 0 if op.module is None else bytes_within(op, images, sizes[op.id], exact)
        for op in network.wholes
    }


def bytes_within(op: Op, images: int, size: Size, exact: bool) -> int:
    """The peak memory of a part's code on a map of this size, beside that map.

    It includes the result and the copies of weights that the exact engine makes, and is counted on fake
    tensors, which have no memory. Where the exact engine's steps need real numbers, PyTorch's own ops are
    counted instead.
    """
    try:
        return _counted(op, images, size, rehearsal() if exact else nullcontext())
    except Exception:  # the model's code, or a registered function, may raise anything on fake tensors
        return _counted(op, images, size, nullcontext())


def _counted(op: Op, images: int, size: Size, engine: AbstractContextManager[None]) -> int:
    assert op.module is not None
    (input,) = operands((op.args, op.kwargs))
    weights = {**dict(op.module.named_parameters()), **dict(op.module.named_buffers())}
    like = next((w for w in weights.values() if w.is_floating_point()), torch.empty(0))
    with _disable_current_modes(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        shape = input.layout.shape((images, size.height, size.width))
        given = torch.empty(shape, dtype=like.dtype, device=like.device)
        whole = as_kept(given, input.layout, size.height, size.width).contiguous()
        stand_ins: dict[str, Tensor] = {name: fake.from_tensor(weight) for name, weight in weights.items()}
        compute = partial(torch.func.functional_call, twin(op.module), stand_ins)
        with LiveBytes(whole, *stand_ins.values()) as live, engine:
            run_whole(op, whole, {}, size, lambda *args, **kwargs: compute(args, kwargs))
    return live.peak
