"""Checks the tables of CompressAI's range coder, whose code trusts whatever it is given.

An invalid table makes it divide by zero, read outside its memory or never end. So tables are checked when a
checkpoint is loaded, and again before anything is coded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from overlap_tool.errors import CodingError, WeightsError
from overlap_tool.rules import exact_kernels

BUFFERS = ("_quantized_cdf", "_offset", "_cdf_length", "scale_table")
"""Of CompressAI's entropy models: empty before `update()`, and of any size after it."""

QUANTILES = "quantiles"
"""The parameter from which `update()` computes the length of each channel's table."""

WHOLE = 1 << 16
"""The last entry of a row: probabilities have 16 bits."""

WIDEST = 1 << 15
"""From the median to either end of a table, in symbols."""

MOST_SCALES, LARGEST_SCALE = 1024, 4096.0
"""Limits on the scale table; CompressAI's own has 64 scales, up to 256."""

FORGET = "Delete its _quantized_cdf, _offset and _cdf_length from the file: update() computes them again"
ANOTHER = "The file is damaged, or its training diverged: use another checkpoint"


def entropy_models(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a model that have tables, whatever their class, by name."""
    for name, module in model.named_modules():
        if BUFFERS[0] in module._buffers:
            yield name, module


def refuse_broken_tables(model: nn.Module, where: str) -> None:
    """Raise unless the model's current tables are valid: called before anything is coded."""
    for name, module in entropy_models(model):
        refuse_broken(tables_of(module), f"{where}, {name}" if name else where)


def complete_tables(model: Any, where: str) -> None:
    """Compute missing tables by the model's own `update`, under exact kernels: a decoder needs the
    same ones."""
    update = getattr(model, "update", None)
    if not callable(update):
        return
    refuse_broken_tables(model, where)
    try:
        with exact_kernels():
            update()
    except TypeError as error:
        raise CodingError(
            type(model).__name__,
            f"its update cannot be called without arguments ({error})",
            "Give them defaults in a class of your own",
        ) from error
    except (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise WeightsError(
            where, f"its CDF tables cannot be computed ({type(error).__name__}: {error})", ANOTHER
        ) from error
    refuse_broken_tables(model, where)


def tables_of(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of one entropy model that the rules are about."""
    named = {**module._parameters, **module._buffers}
    return {name: tensor for name in (*BUFFERS, QUANTILES) if (tensor := named.get(name)) is not None}


def refuse_broken(tables: Mapping[str, Tensor], where: str) -> None:
    """Raise unless the tables of an entropy model, by buffer name, are absent, not yet computed, or valid."""
    reason = _broken_quantiles(tables.get(QUANTILES))
    if reason is not None:
        raise WeightsError(where, reason, ANOTHER)
    reason = _broken_scales(tables.get("scale_table")) or _broken_rows(tables)
    if reason is not None:
        raise WeightsError(where, reason, FORGET)


def _broken_quantiles(quantiles: Tensor | None) -> str | None:
    if quantiles is None:
        return None
    if not quantiles.is_floating_point() or quantiles.ndim != 3 or quantiles.shape[1:] != (1, 3):
        return f"its quantiles are {_told(quantiles)}, and should be three numbers for each channel"
    values = quantiles.detach().double()
    spread = (values - values[:, :, 1:2]).abs()
    if not bool((spread <= WIDEST).all()):  # also if it is NaN
        return f"its quantiles are further apart than {WIDEST}"
    return None


def _broken_scales(scales: Tensor | None) -> str | None:
    if scales is None or (scales.numel() == 0 and scales.ndim == 1):
        return None
    if scales.ndim != 1 or scales.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        return f"its scale_table is {_told(scales)}, and should be a list of numbers"
    if len(scales) > MOST_SCALES:
        return f"its scale_table has {len(scales)} scales, more than {MOST_SCALES}"
    values = scales.double()
    if not bool((values > 0).all() & (values <= LARGEST_SCALE).all() & (values.diff() > 0).all()):
        return f"the scales of its scale_table do not rise from above 0 to at most {LARGEST_SCALE:.0f}"
    return None


def _broken_rows(tables: Mapping[str, Tensor]) -> str | None:
    named = {name: tables.get(name, torch.empty(0)) for name in BUFFERS[:3]}
    if all(table.numel() == 0 for table in named.values()):
        return None
    wrong = [f"{name} of {table.dtype}" for name, table in named.items() if table.dtype != torch.int32]
    if wrong:
        return f"its tables should hold 32-bit integers: {', '.join(wrong)}"
    cdf, offset, length = named.values()
    if cdf.ndim != 2 or not cdf.shape[:1] == offset.shape == length.shape:
        shapes = ", ".join(f"{name} {tuple(table.shape)}" for name, table in named.items())
        return f"its tables contradict each other: {shapes}"
    wanted = _rows_wanted(tables)
    if wanted is not None and wanted[0] != len(cdf):
        return f"it has CDF tables for {len(cdf)}, and {wanted[0]} {wanted[1]}"
    if not 3 <= int(length.min()) <= int(length.max()) <= cdf.shape[1]:
        return f"the lengths of its CDF tables are not from 3 to {cdf.shape[1]}"
    # at most as many symbols below 0 as the row has, and no row begins above 0
    if bool((offset > 0).any() | (offset <= -length).any()):
        return "the offsets of its CDF tables point outside of them"
    ends = cdf.gather(1, length[:, None].long() - 1)
    inside = torch.arange(1, cdf.shape[1], device=cdf.device) < length[:, None]
    rises = (cdf[:, 1:] > cdf[:, :-1]) | ~inside
    if not bool((cdf[:, 0] == 0).all() & (ends == WHOLE).all() & rises.all()):
        return f"a row of its CDF tables does not rise from 0 to {WHOLE}"
    return None


def _rows_wanted(tables: Mapping[str, Tensor]) -> tuple[int, str] | None:
    """How many distributions the tables must have, and what they are for."""
    if QUANTILES in tables:
        return len(tables[QUANTILES]), "channels"
    return (len(tables["scale_table"]), "scales") if "scale_table" in tables else None


def _told(tensor: Tensor) -> str:
    return f"{tensor.dtype} of the shape {tuple(tensor.shape)}"
