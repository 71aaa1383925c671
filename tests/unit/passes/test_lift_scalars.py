"""Samples that are single numbers: the end of a critic, a norm, a sum over the only axis."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify.falsify import Search


class Critic(nn.Module):
    def __init__(self, end: str) -> None:
        super().__init__()
        self.layer, self.end = nn.Linear(4, 1 if end == "squeeze" else 3), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        if self.end == "squeeze":
            return torch.relu(y.squeeze(-1))
        if self.end == "mean":
            return 2.0 * y.reshape(-1, 3, 1).mean((1, 2)) + 1.0
        return y.norm(dim=-1) if self.end == "norm" else torch.logsumexp(y, -1)


@pytest.mark.parametrize("end", ["squeeze", "mean", "norm", "logsumexp"])
def test_single_numbers_are_vectors_of_one(end: str) -> None:
    torch.manual_seed(0)
    module = Critic(end).eval()
    graph = lv.extract(module, torch.randn(2, 4))
    assert graph.output_shape == (1,)
    assert all(node.shape for node in graph.nodes)
    x = torch.randn(3, 4)
    assert torch.allclose(lv.evaluate(graph, x)[:, 0], module(x), atol=1e-6)
    for region in (None, lv.Ball(x[:1].double(), 0.1, "l2")):
        analyzers = ["product"] if region is None else ["product", "local"]
        result = lv.audit(graph, analyzers=analyzers, region=region, search=Search(seconds=0.1))
        assert all(row.certificate is not None for row in result.rows), [row.refused for row in result.rows]
