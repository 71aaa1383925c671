"""Norms of vectors whose squares underflow."""

from __future__ import annotations

import math

import pytest
import torch

from lipverify.linalg.lengths import euclidean_norm


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.45, 0.6, 0.9])
def test_scaled_vectors_have_scaled_norms(dtype: torch.dtype, share: float) -> None:
    """3, 4 and 12 times a power of two have the norm 13 times it, along any axes."""
    unit = math.log2(torch.finfo(dtype).tiny) * share
    power = 2.0 ** round(unit)
    part = torch.tensor([[3.0, 4.0, 12.0], [0.0, 0.0, 0.0]], dtype=dtype) * power
    found = euclidean_norm(part, 1)
    assert float(found[0]) == pytest.approx(13.0 * power, rel=1e-6)
    assert float(found[1]) == 0.0
    stacked = part[:, None, :].expand(2, 4, 3).movedim(2, 0)  # [3, 2, 4]
    assert euclidean_norm(stacked, (0, 2)).tolist() == pytest.approx([26.0 * power, 0.0], rel=1e-6)
    assert euclidean_norm(stacked, 0).shape == (2, 4)


def test_subnormal_numbers_count() -> None:
    part = torch.full((1, 4), 5e-324, dtype=torch.float64)
    assert float(euclidean_norm(part, 1)) >= 1e-323
    assert euclidean_norm(torch.zeros(2, 0, dtype=torch.float64), 1).tolist() == [0.0, 0.0]
