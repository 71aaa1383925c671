"""Networks whose numbers are near the ends of float64 have right bounds or a refusal that says what to do, and break nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify.falsify import Search
from tests.tiers import FULL

EVERYWHERE = ["product", "lipsdp-fast"]
BALL = [*EVERYWHERE, "local", "local-sdp"]


class Scaled(nn.Module):
    def __init__(self, factor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def network(seed: int) -> tuple[nn.Module, torch.Tensor]:
    """Layers whose weights are 10^-200 to 10^200, in half of all cases each the inverse of those before."""
    g = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=g))

    width = number(1, 3)
    x = torch.randn(1, width, generator=g, dtype=torch.float64)
    layers: list[nn.Module] = []
    total = 0
    for _ in range(number(1, 4)):
        power = -total + number(-3, 3) if number(0, 1) and total else number(-200, 200)
        total += power
        if number(0, 3) == 0:
            layers.append(Scaled(torch.randn(width, generator=g, dtype=torch.float64) * 10.0**power))
        else:
            layer = nn.Linear(width, number(1, 3), bias=False, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.copy_(
                    torch.randn(layer.weight.shape, generator=g, dtype=torch.float64) * 10.0**power
                )
            width = layer.out_features
            layers.append(layer)
        layers.append((nn.ReLU(), nn.Tanh(), nn.LeakyReLU(), nn.Softplus())[number(0, 3)])
    return nn.Sequential(*layers[:-1]).eval(), x


@pytest.mark.parametrize("block", range(40 if FULL else 2))
def test_bounds_near_the_ends_of_float64_are_right_or_refused(block: int) -> None:
    for seed in range(6 * block, 6 * block + 6):
        net, x = network(seed)
        try:
            graph = lv.extract(net, x)
        except (lv.UnsupportedModel, lv.ExtractionMismatch):
            continue
        region = lv.Ball(x, 0.1) if seed % 2 else lv.Everywhere()
        methods = BALL if seed % 2 else EVERYWHERE
        found = lv.audit(
            graph,
            norm=("l2", "linf")[seed // 2 % 2],
            region=region,
            analyzers=methods,
            search=Search(seconds=0.02),
        )
        for row in found.rows:
            assert not row.failed, (seed, row.analyzer, row.refused)
            assert not row.refuted, (seed, row.analyzer, row.refused)


SHRUNK = (1e-170, 1e170)


@pytest.mark.parametrize("analyzer", BALL)
def test_what_is_shrunk_and_stretched_again_is_the_identity(analyzer: str) -> None:
    """relu(1e-170 x) 1e170 in l2: no multipliers could be certified, as squares of 1e170 are none; `product` did not check."""
    parts = [Scaled(torch.full((3,), f, dtype=torch.float64)) for f in SHRUNK]
    net = nn.Sequential(parts[0], nn.ReLU(), parts[1]).eval()
    x = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64)
    found = lv.audit(
        lv.extract(net, x), region=lv.Ball(x, 0.2), analyzers=[analyzer], search=Search(seconds=0.02)
    )
    assert found.upper is not None
    assert 1.0 <= float(found.upper) <= 1.0001


def test_what_leaves_float64_is_refused_with_a_remedy() -> None:
    """Gradients are multiplied from the outputs back: 1e447 and 0 made no number ("ends in the wrong order")."""
    layers: list[nn.Module] = []
    for size in (1e-190, 1e120, 1e105, 1e190, 1e26):
        layer = nn.Linear(3, 3, bias=False, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(
                size
                * torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.7, -0.4], [-0.2, 0.1, 0.9]], dtype=torch.float64)
            )
        layers += [layer, nn.Tanh()]
    net = nn.Sequential(*layers[:-1]).eval()
    x = torch.tensor([[1e-4, -1e-3, 1e-2]], dtype=torch.float64)
    found = lv.audit(
        lv.extract(net, x),
        norm="linf",
        region=lv.Ball(x, 4e-3),
        analyzers=["local", "lipsdp-fast"],
        search=Search(seconds=0.02),
    )
    for row in found.rows:
        assert not row.failed
        assert row.certificate is not None or "scale neighbouring layers" in str(row.refused)
