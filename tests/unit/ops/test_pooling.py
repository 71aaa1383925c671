"""Pooling by slices: torch's numbers, and gradients of many outputs at once without a rule that is missing."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn import functional

from lipverify.ops import AvgPool, MaxPool
from lipverify.rules import forward

PLACES = [
    ((2, 2), (2, 2), (1, 1)),
    ((3, 2), (1, 2), (1, 1)),
    ((2, 3), (3, 1), (1, 1)),
    ((2, 2), (1, 1), (2, 3)),
    ((1, 3), (2, 2), (1, 2)),
]


@pytest.mark.parametrize(("kernel", "stride", "dilation"), PLACES)
def test_slices_are_windows(
    kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> None:
    x = torch.randn((2, 3, 8, 9), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    padding = tuple((size // 2, size // 2) for size in kernel)
    plain = tuple(size // 2 for size in kernel)
    largest = MaxPool(kernel, stride, padding, dilation)
    assert torch.equal(forward(largest, x), functional.max_pool2d(x, kernel, stride, plain, dilation))
    ops = [largest]
    if dilation == (1, 1):
        means = AvgPool(kernel, stride, padding, True, (0, 0))
        torch.testing.assert_close(forward(means, x), functional.avg_pool2d(x, kernel, stride, plain))
        ops.append(means)
    for op in ops:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            batched = torch.func.jacrev(lambda x, op=op: forward(op, x[None])[0].flatten())(x[0])
        one = torch.autograd.functional.jacobian(lambda x, op=op: forward(op, x[None])[0].flatten(), x[0])
        assert torch.equal(batched, one)
