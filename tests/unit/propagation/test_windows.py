"""Convolutions of rows that are zero outside small windows."""

from __future__ import annotations

import pytest
import torch

from lipverify import ops
from lipverify.propagation.windows import convolved
from lipverify.rules import linear


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((2, 2), (1, 1)), ((1, 2), (0, 3))])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
def test_windows_give_the_whole_convolution(
    stride: tuple[int, int], padding: tuple[tuple[int, int], ...], dilation: tuple[int, int]
) -> None:
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 2, 3, 2, generator=rng, dtype=torch.float64)
    op = ops.Conv(weight, None, stride, padding, dilation, groups=2)
    rows = torch.zeros(40, 4, 11, 12, dtype=torch.float64)
    for index in range(39):  # the last row stays zero
        top, left = divmod(index * 7, 12)
        rows[index, index % 4, min(top, 10), left] = 1.0 + index
        rows[index, 0, min(top + 1, 10), left] = -2.0
    found = convolved(op, rows)
    assert torch.allclose(found, linear(op, rows), rtol=0.0, atol=1e-12)
    assert bool(found[:39].abs().flatten(1).amax(1).sum() > 0)


def test_full_rows_are_convolved_as_a_whole() -> None:
    weight = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    op = ops.Conv(weight, None, (1, 1), ((0, 0), (0, 0)), (1, 1))
    rows = torch.ones(2, 1, 5, 5, dtype=torch.float64)
    assert torch.equal(convolved(op, rows), torch.full((2, 1, 4, 4), 4.0, dtype=torch.float64))
