"""The conditions under which recordings of one pass are valid for the next.

They are everything that a pass depends on except the values in its maps: sizes and memory layouts of maps,
weights and everything else that modules hold, and tensors computed from weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from xxhash import xxh3_128

from overlap_tool.geometry.plan import AxisPlan
from overlap_tool.graph.network import Network, Op, operands
from overlap_tool.graph.snapshot import Snapshot
from overlap_tool.rules import Rule


class Conditions:
    """The conditions of one pass that reads and writes the maps of these names."""

    def __init__(
        self,
        network: Network,
        rows: AxisPlan,
        columns: AxisPlan,
        maps: tuple[str, ...],
        corner: Tensor,
        values: Mapping[str, Any],
    ) -> None:
        plans = tuple((plan.sizes, plan.extents, plan.kept) for plan in (rows, columns))
        autocast = torch.is_autocast_enabled("cpu")
        self._form = plans, maps, corner.shape[:-2], corner.stride(), corner.dtype, autocast, corner.device
        self._network = network
        self._ops = [op for op in network.ops if isinstance(op, Op)]
        self._values = dict(values)
        self._snapshots: list[Snapshot] = []
        self._digest = b""

    def note(self) -> None:
        """Record them all at the start of the pass, if a later pass can be compared with them."""
        if self._form[-1].type != "cpu" or not all(op.rule.pure or is_ours(op.rule) for op in self._ops):
            return
        whole = Snapshot(self._network.root)
        parts = {None, *whole.parts}
        apart = dict.fromkeys(op.module for op in self._ops if op.module not in parts)
        self._snapshots = [whole, *(Snapshot(module) for module in apart if module is not None)]
        self._digest = self._numbers(self._snapshots)
        self._values.clear()

    @property
    def are_noted(self) -> bool:
        return bool(self._digest)

    def hold_for(self, other: Conditions) -> bool:
        return (
            self._form == other._form
            and self.are_noted
            and all(snapshot.holds() for snapshot in self._snapshots)
            and self._digest == other._numbers(self._snapshots)
        )

    def _numbers(self, snapshots: Sequence[Snapshot]) -> bytes:
        """A digest of all values that are read except those of maps: weights and other tensors, which may be
        written unobserved, and values computed from them. Empty if a tensor is not plain."""
        digest = xxh3_128()
        read = {operand.id for op in self._ops for operand in operands((op.args, op.kwargs))}
        values = (value for name, value in self._values.items() if name in read)
        modules = dict.fromkeys(op.module for op in self._ops if op.module is not None)
        held = (each for module in modules for each in (*module.parameters(), *module.buffers()))
        beside = (each for snapshot in snapshots for each in snapshot.attributes)
        for value in (*values, *held, *beside):
            if isinstance(value, Tensor) and not _is_plain(value):
                return b""
            if isinstance(value, Tensor):
                digest.update(repr((value.shape, value.stride(), value.dtype, value.device)).encode())
                if not value.is_meta:
                    resolved = value.detach().resolve_conj().resolve_neg()
                    digest.update(resolved.flatten().contiguous().view(torch.uint8).numpy().data)
            else:
                digest.update(repr(value).encode())
        return digest.digest()


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and tensor.device.type in ("cpu", "meta")
    )


def is_ours(rule: Rule) -> bool:
    """Whether a rule's `run` is defined in this package. That of a `Rule.windowed` does not count, since it
    calls a function that may not be."""
    module = getattr(rule.run, "__module__", None) or ""
    return module.startswith("overlap_tool.rules.") and module != Rule.__module__
