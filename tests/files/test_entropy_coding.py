"""What stands in for methods of CompressAI's entropy models gives what they give."""

from __future__ import annotations

import pytest
import torch
from compressai.entropy_models import GaussianConditional

from overlap_tool import exact_kernels
from overlap_tool.files.coding.entropy import table_numbers

RISING = [0.11, 0.2, 0.2, 0.5, 3.0, 256.0]


@pytest.mark.parametrize("table", [RISING, RISING[:1], RISING[:2]])
def test_tables_are_those_that_the_model_itself_looks_up(table: list[float]) -> None:
    model = GaussianConditional(table)
    near = torch.tensor(RISING).repeat(3) * torch.tensor([1 - 1e-7, 1, 1 + 1e-7]).repeat_interleave(6)
    rare = torch.tensor([0, -1, float("inf"), float("-inf"), float("nan"), 1e-30, 1e30])
    scales = torch.cat([near, rare, torch.rand(500, generator=torch.Generator().manual_seed(0)) * 5])
    with torch.no_grad(), exact_kernels():
        found = table_numbers(model, scales)
    assert found.dtype == torch.int32
    assert torch.equal(found, model.build_indexes(scales))


def test_tables_that_do_not_rise_are_compared_one_by_one() -> None:
    """No constructor makes such a table, but a checkpoint may hold one."""
    model = GaussianConditional(RISING)
    model.scale_table = torch.tensor([0.5, 0.2, 3.0, 0.11, 1.0])
    scales = torch.linspace(0, 4, 400)
    assert torch.equal(table_numbers(model, scales), model.build_indexes(scales))
