"""Convolutions too large for their matrix: what stands beside them is proved too, whatever it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify.certificates import chains
from lipverify.falsify import Search
from lipverify.ir.certificate import Rigour
from tests.tiers import also


class By(nn.Module):
    def __init__(self, factor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Turned(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


class First(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :3]


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "groups": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "stride": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1),
}
BESIDE = {
    "alone": lambda c: [c],
    "a number before": lambda c: [By(torch.tensor(2.0)), c],
    "a number behind": lambda c: [c, By(torch.tensor(-3.0))],
    "channels before": lambda c: [By(torch.rand(4, 1, 1) + 0.5), c],
    "channels behind": lambda c: [c, By(torch.rand(6, 1, 1) + 0.5)],
    "positions before": lambda c: [By(torch.rand(1, 1, 7) + 0.5), c],
    "positions behind": lambda c: [c, By(torch.rand(c(torch.zeros(1, 4, 7, 7)).shape[1:]) + 0.5)],
    "another order": lambda c: [c, Turned()],
    "a part": lambda c: [c, First()],
    "a part of a part": lambda c: [By(torch.rand(4, 1, 1) + 0.5), c, First(), By(torch.rand(3, 1, 1) + 0.5)],
    "normalised": lambda c: [c, nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()],
}


def cases() -> list[object]:
    """Every pair; each of what stands beside has two convolutions in turn in `make test`, and each convolution half of them."""
    turns = {"plain": 0, "groups": 1, "stride": 1, "transposed": 0}
    pairs = [(c, b, (turn + k) % 2) for c, turn in turns.items() for k, b in enumerate(BESIDE)]
    return [also((c, b), "the other two of four convolutions") if other else (c, b) for c, b, other in pairs]


@pytest.mark.parametrize(("convolution", "beside"), cases())
def test_what_stands_beside_a_large_convolution(
    convolution: str, beside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "DENSE_WORK", 0.0)  # every convolution is too large for its matrix
    torch.manual_seed(3)
    net = nn.Sequential(*BESIDE[beside](CONVOLUTIONS[convolution]())).eval()
    x = torch.randn(2, 4, 7, 7)
    row = lv.audit(lv.extract(net, x), analyzers=["product"], search=Search(seconds=0.05)).rows[0]
    assert row.refused is None
    assert row.certificate is not None
    assert row.certificate.rigour is Rigour.CHECKED
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v[None]).flatten(), x[0]).flatten(1)
    assert row.upper >= float(torch.linalg.matrix_norm(jacobian, 2)) * (1 - 1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    ("convolution", "beside"),
    [
        ("plain", "channels before"),
        ("transposed", "channels before"),
        ("groups", "channels behind"),
        ("stride", "channels behind"),
        also(("plain", "channels behind"), "half a second each"),
        also(("transposed", "channels behind"), "half a second each"),
        also(("groups", "channels before"), "half a second each"),
        also(("stride", "channels before"), "half a second each"),
    ],
)
def test_wide_convolutions_are_written_down_by_an_estimate_and_proved_by_the_checker(
    convolution: str, beside: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "DENSE_WORK", 0.0)
    torch.manual_seed(4)
    net = nn.Sequential(*BESIDE[beside](CONVOLUTIONS[convolution]())).eval()
    graph, rows = lv.extract(net, torch.randn(2, 4, 7, 7)), []
    for wide in (48, 1):
        monkeypatch.setattr(chains, "WIDE", wide)
        audit = lv.audit(graph, norm=norm, analyzers=["product"], search=Search(seconds=0.05))
        rows.append(audit.rows[0].certificate)
    assert all(row is not None and row.rigour is Rigour.CHECKED for row in rows)
    exact, rough = (float(row.upper) for row in rows if row is not None and row.upper is not None)
    assert exact * (1 - 1e-6) <= rough <= exact * (1 + (0.06 if norm == "l2" else 1e-6))
