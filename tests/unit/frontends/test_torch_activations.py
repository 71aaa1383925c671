"""Every continuous activation of torch.nn, alone and beside layers that keep state; norms, sums and recurrent layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify.frontends.torch_export import extract
from tests.tiers import also

ACTIVATIONS: dict[str, nn.Module] = {
    "Softshrink": nn.Softshrink(0.3), "Threshold": nn.Threshold(0.1, 0.1), "Hardtanh": nn.Hardtanh(-2.0, 0.5),
    "LogSigmoid": nn.LogSigmoid(), "GLU": nn.GLU(), "Softmin": nn.Softmin(-1), "Tanhshrink": nn.Tanhshrink(), "ReLU6": nn.ReLU6(),
    "RReLU": nn.RReLU(), "SELU": nn.SELU(), "CELU": nn.CELU(0.5), "Softsign": nn.Softsign(), "Hardswish": nn.Hardswish(),
    "LogSoftmax": nn.LogSoftmax(-1),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_stands_beside_an_activation_changes_nothing(name: str) -> None:
    width = 3 if name == "GLU" else 6
    kinds = set()
    for beside in (nn.Identity(), nn.BatchNorm1d(width), nn.Dropout()):
        net = nn.Sequential(nn.Linear(4, 6), ACTIVATIONS[name], beside, nn.Linear(width, 2)).eval()
        kinds.add(tuple(kind for kind in extract(net, torch.randn(2, 4)).operators() if kind != "BatchNorm"))
    assert len(kinds) == 1


@pytest.mark.parametrize("of", [nn.RReLU, nn.Hardtanh, nn.ReLU6, nn.Threshold])
def test_in_place_is_the_same_function(of: type[nn.Module]) -> None:
    numbers = {"RReLU": (0.1, 0.5), "Hardtanh": (-0.5, 0.25), "Threshold": (0.5, 0.5)}.get(of.__name__, ())
    nets = [nn.Sequential(nn.Linear(4, 3), of(*numbers, inplace=there)).eval() for there in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    first, second = (extract(net, torch.randn(2, 4)) for net in nets)
    assert first.digest == second.digest


class Of(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (torch.atan, "Atan"),
        (torch.asinh, "Asinh"),
        (torch.sinh, "Sinh"),
        (torch.cosh, "Cosh"),
        (torch.tan, "Tan"),
        (lambda x: torch.log(x.abs() + 1), "Log"),
        (torch.log1p, "Log"),
        (torch.erfc, "Erf"),
        (lambda x: torch.cumsum(x, -1), "Linear"),
        (lambda x: x.norm(dim=-1, keepdim=True), "ReduceNorm"),
        (lambda x: x.norm(p=3, dim=-1), "ReduceNorm"),
        (lambda x: torch.logsumexp(x, -1), "ReduceLogSumExp"),
    ],
)
def test_functions(function: Any, kind: str) -> None:
    assert kind in extract(Of(function).eval(), torch.randn(2, 4)).operators()


@pytest.mark.parametrize("cell", [also(nn.RNN, "three seconds"), nn.GRU, also(nn.LSTM, "four seconds")])
def test_recurrent_layers(cell: Any) -> None:
    torch.manual_seed(0)
    layer = cell(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    graph = lv.extract(Of(lambda x: layer(x)[0][:, -1]).eval(), torch.randn(2, 3, 3))
    x = torch.randn(4, 3, 3)
    assert torch.allclose(lv.evaluate(graph, x), layer(x)[0][:, -1], atol=1e-6)
    plain = cell(3, 4, bias=False)
    extract(Of(lambda x: plain(x.transpose(0, 1))[0][-1]).eval(), torch.randn(2, 3, 3))
