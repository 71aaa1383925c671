"""Functions without slopes on the whole line have some where their argument is bounded: clamp and exp, as policies have it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipverify as lv
from lipverify.falsify.search import Search
from lipverify.propagation import bounded_slopes

QUICK = Search(seconds=0.05)
Function = Callable[[Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.function = nn.Linear(3, 6), nn.Linear(6, 2), function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.function(self.first(x)))
        return result


BOTH_ENDS: dict[str, Function] = {
    "a clipped exponent": lambda h: h.clamp(-5.0, 2.0).exp(),
    "exp of tanh": lambda h: (2.0 * torch.tanh(h)).exp(),
    "log of a sigmoid and eps": lambda h: (torch.sigmoid(h) + 1e-2).log(),
    "1 / (1.5 + sin)": lambda h: 1.0 / (1.5 + torch.sin(h)),
    "root of a hard sigmoid and eps": lambda h: (F.hardsigmoid(h) + 0.1).sqrt(),
    "a square of what is clipped": lambda h: h.clamp(-1.0, 3.0) ** 2,
    "gates of what is clipped": lambda h: h.clamp(-1.0, 3.0) * torch.sigmoid(h).exp(),
}
ONE_END: dict[str, Function] = {
    "exp of a falling softplus": lambda h: (-F.softplus(h)).exp(),
    "1 / (1 + softplus)": lambda h: 1.0 / (1.0 + F.softplus(h)),
    "log(eps + relu)": lambda h: (0.5 + F.relu(h)).log(),
    "root of eps and a distance": lambda h: (h.abs() + 0.25).sqrt(),
}


@pytest.mark.parametrize("what", [*BOTH_ENDS, *ONE_END])
def test_it_has_a_constant_everywhere(what: str) -> None:
    net = Net((BOTH_ENDS | ONE_END)[what]).double()
    graph = lv.extract(net, torch.zeros(2, 3, dtype=torch.float64))
    found = lv.audit(graph, analyzers=["product", "lipsdp-fast", "lipsdp"], search=QUICK)
    x = torch.randn(4000, 3, dtype=torch.float64) * 3.0
    y = x + 1e-3 * torch.randn_like(x)
    steepest = float(((net(x) - net(y)).detach().norm(dim=1) / (x - y).norm(dim=1)).max())
    uppers = [row["upper"] for row in found.to_json()["results"]]
    assert len(uppers) == 3
    assert min(uppers) >= max(steepest, found.lower.value)
    assert min(uppers) <= 50.0 * steepest
    rigours = {row["rigour"] for row in found.to_json()["results"]}
    # The checker follows intervals with both ends.
    assert rigours == ({"checked"} if what in BOTH_ENDS else {"real"})


@pytest.mark.parametrize(
    "function", [torch.exp, lambda h: h.clamp(max=9.0) ** 2, lambda h: h.clamp(min=0.0).sqrt()]
)
def test_it_has_none_where_the_argument_is_not_bounded(function: Function) -> None:
    graph = lv.extract(Net(function), torch.zeros(2, 3))
    assert bounded_slopes(graph) == {}
    with pytest.raises(lv.UnsupportedModel, match="grows without limit"):
        lv.audit(graph, analyzers=["product"], search=QUICK).upper  # noqa: B018
