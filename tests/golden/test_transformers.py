"""Bounds of `local` around points of small transformers: no looser than the figures of the note they are built from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipverify as lv
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.protocol import Compute
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query

BALLS = (("linf", 0.001), ("linf", 0.01), ("l2", 0.001), ("l2", 0.01), ("l2", 0.03))
SEEDED = {
    ("none", "relu"): (
        (15.2346, 13.9727),
        (38.4807, 14.2406),
        (3.6462, 3.5353),
        (4.8740, 3.5535),
        (9.1796, 3.5946),
    ),
    ("none", "gelu"): (
        (16.0062, 14.4456),
        (46.8135, 14.7427),
        (3.8104, 3.6669),
        (5.4654, 3.6806),
        (11.0371, 3.7143),
    ),
    ("layer", "relu"): (
        (6.6346, 6.1442),
        (22.0588, 6.1774),
        (1.8569, 1.7874),
        (2.4285, 1.7890),
        (5.5497, 1.7929),
    ),
    ("rms", "gelu"): (
        (8.2842, 7.7434),
        (24.6126, 7.8835),
        (2.3216, 2.2444),
        (2.9542, 2.2518),
        (6.2496, 2.2687),
    ),
}
"""By norm and activation: bound of the note, and the steepest Jacobian that it found, on each of the balls."""
MODADD = {
    0: {
        "linf": ((0.002, 1138.0, 1096.0), (0.01, 1615.0, 1097.0), (0.05, 6432.0, 1106.0)),
        "l2": ((0.01, 370.1, 352.4), (0.1, 534.2, 354.5), (0.3, 953.1, 361.6)),
    },
    1: {
        "linf": ((0.002, 1188.0, 1091.0), (0.01, 1773.0, 1098.0), (0.05, 7455.0, 1095.0)),
        "l2": ((0.01, 400.5, 365.3), (0.1, 581.3, 365.3), (0.3, 942.4, 365.4)),
    },
}
"""By seed of the centre and norm: radius, bound and steepest Jacobian."""
DIGITS = 5e-4
"""Of figures of four digits, relatively."""


class Seeded(nn.Module):
    """Two blocks, 4 tokens of width 8, 2 heads, without training."""

    def __init__(self, norm: str, activation: str) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.norm, self.activation = norm, activation

        def drawn(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.tensor(rng.normal(size=size) / np.sqrt(size[1])))

        sizes = ((8, 8),) * 4 + ((16, 8), (8, 16))
        self.blocks = nn.ModuleList(nn.ParameterList(drawn(*size) for size in sizes) for _ in range(2))
        self.out = drawn(3, 8)
        self.point = torch.tensor(rng.normal(size=(4, 8)))

    def normed(self, x: Tensor) -> Tensor:
        if self.norm == "layer":
            return F.layer_norm(x, (8,), eps=1e-5)
        return F.rms_norm(x, (8,), eps=1e-5) if self.norm == "rms" else x

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        for block in self.blocks:
            wq, wk, wv, wo, w1, w2 = block
            q, k, v = (
                F.linear(self.normed(x), w).reshape(count, 4, 2, 4).permute(0, 2, 1, 3) for w in (wq, wk, wv)
            )
            p = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(4), -1)
            x = x + F.linear((p @ v).permute(0, 2, 1, 3).reshape(count, 4, 8), wo)
            h = F.linear(self.normed(x), w1)
            x = x + F.linear(torch.relu(h) if self.activation == "relu" else F.gelu(h), w2)
        return F.linear(x.mean(1), self.out)


def bound(graph: Graph, x: Tensor, norm: str, radius: float) -> float:
    measured = Norm.parse(norm)
    query = Query(measured, measured, Ball(x[None], radius, measured))
    return float(Local(with_product=False).bound(graph, query, Compute()).upper)


@pytest.mark.parametrize(("norm", "activation"), SEEDED)
def test_seeded_transformers_have_the_bounds_of_the_note_or_less(norm: str, activation: str) -> None:
    network = Seeded(norm, activation).double().eval()
    graph = lv.extract(network, torch.stack([network.point] * 2)).to(dtype=torch.float64)
    for (name, radius), (most, met) in zip(BALLS, SEEDED[norm, activation], strict=True):
        found = bound(graph, network.point, name, radius)
        assert met - 1e-4 <= found <= most * (1.0 + 1e-6) + 1e-4, (name, radius)


@pytest.mark.third_party
@pytest.mark.parametrize("seed", MODADD)
def test_a_trained_attention_block_has_the_bounds_of_the_note_or_less(seed: int, third_party: Path) -> None:
    graph = lv.load(third_party / "converted" / "modadd-transformer.onnx")
    x = 0.3 * torch.randn(2, 128, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for name, rows in MODADD[seed].items():
        for radius, most, met in rows:
            found = bound(graph, x, name, radius)
            assert met * (1.0 - DIGITS) <= found <= most * (1.0 + DIGITS), (name, radius, found)
