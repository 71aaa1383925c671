"""Products of bounded values as neurons: gated recurrent layers have LipSDP bounds over all inputs, proved by the checker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.lipsdp.analyzer import LipSDP, LipSDPFast
from lipverify.analyzers.lipsdp.canonical import canonical_form
from lipverify.falsify import Search
from lipverify.interpreter import evaluate_all
from lipverify.propagation import bounds, everywhere
from tests.networks import chain
from tests.onnx_models import model
from tests.tiers import also


class Read(nn.Module):
    """Two numbers from the last state of a layer that reads three rows."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def gated(kind: str, scale: float = 2.0) -> nn.Module:
    torch.manual_seed(0)
    model = Read(getattr(nn, kind)(2, 3, batch_first=True)).double().eval()
    for parameter in model.parameters():
        parameter.data *= scale
    return model


def graph_of(model: nn.Module) -> lv.Graph:
    return lv.extract(model, torch.zeros(2, 3, 2, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["GRU", also("LSTM", "as the other, three seconds")])
def test_gates_have_proved_bounds_far_below_the_product(kind: str) -> None:
    model = gated(kind)
    audit = lv.audit(graph_of(model), analyzers=["product", "lipsdp-fast", "lipsdp"])
    uppers = {row.analyzer: row.upper for row in audit.rows}
    assert all(row.certificate is not None and str(row.certificate.rigour) == "checked" for row in audit.rows)
    assert audit.lower.value <= uppers["lipsdp"] <= min(uppers["lipsdp-fast"], uppers["product"] / 10)
    # Steep pairs near 0 and far away, where gates are open and closed.
    for size in (0.3, 3.0, 30.0):
        x = size * torch.randn(200, 3, 2, dtype=torch.float64)
        y = x + 0.1 * torch.randn_like(x)
        slopes = (model(x) - model(y)).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
        assert float(slopes.detach().max()) <= uppers["lipsdp"]


def test_the_slopes_of_products_hold_for_every_pair() -> None:
    """p q - p' q' = s (p - p') + t (q - q') with s and t in the ranges that the form takes them from."""
    graph = graph_of(gated("GRU"))
    ranges = everywhere(graph)
    model = graph.to(dtype=torch.float64)
    states = [node for node in graph.nodes if type(node.op).__name__ == "Add" and node.shape == (3,)]
    x = 30 * torch.randn(500, *graph.input_shape, dtype=torch.float64)
    values = evaluate_all(model, x)
    for node in graph.nodes:
        box = ranges[node.name]
        assert bool(((values[node.name] >= box.lower) & (values[node.name] <= box.upper)).all())
    # The state lies between the new values and the state before it, so it never leaves [-1, 1]; sums of intervals would.
    bounded = [ranges[node.name] for node in states if bool(ranges[node.name].upper.isfinite().all())]
    assert len(bounded) >= 3
    assert max(float(box.upper.max()) for box in bounded) <= 1 + 1e-12


def test_a_free_state_has_no_bound_everywhere_and_one_around_points() -> None:
    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x[:, :2], (x[:, 2:5], x[:, 5:]))[0]

    torch.manual_seed(1)
    graph = lv.extract(Free().double().eval(), torch.zeros(2, 8, dtype=torch.float64))
    for analyzer in (LipSDP(), LipSDPFast()):
        reason = analyzer.reject(graph, lv.Query())
        assert reason is not None
        assert "not bounded over all inputs" in reason
        assert "give a region" in reason
    ball = lv.Ball(torch.zeros(1, 8, dtype=torch.float64), 0.5)
    assert canonical_form(graph, bounds(graph, ball)).neurons > 0
    (row,) = lv.audit(graph, region=ball, analyzers=["local-sdp"]).rows
    assert row.certificate is not None
    assert str(row.certificate.rigour) == "checked"


def test_a_gate_on_stored_numbers_is_a_scaling_to_both_readers(tmp_path: Path) -> None:
    """Cells that exporters take apart begin with a matrix times a stored state, which the checker does not fold."""
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["h", "r", "b"], ["from_state"]),
        helper.make_node("MatMul", ["x", "w"], ["own"]),
        helper.make_node("Sigmoid", ["own"], ["gate"]),
        helper.make_node("Mul", ["gate", "from_state"], ["kept"]),
        helper.make_node("Add", ["kept", "own"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["y"]),
    ]
    sizes = {"h": (1, 3), "r": (3, 3), "b": (3,), "w": (2, 3)}
    stored = {name: draw.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    file = tmp_path / "cell.onnx"
    file.write_bytes(model(nodes, [1, 2], constants=stored).SerializeToString())
    graph = lv.load(file)
    assert "Mul" not in graph.operators()
    ball = lv.Ball(torch.zeros(1, *graph.input_shape, dtype=torch.float64), 0.5)
    for region, analyzers in ((None, ["lipsdp-fast", "lipsdp"]), (ball, ["local-sdp"])):
        for row in lv.audit(graph, region=region, analyzers=analyzers, search=Search(seconds=0.01)).rows:
            assert row.certificate is not None
            assert str(row.certificate.rigour) == "checked", row.certificate.unchecked


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_multipliers_that_cannot_be_proved_are_refused_in_words(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of two LSTM layers, whose constants are too far apart for float64: it was an internal error."""
    monkeypatch.setattr("lipverify.analyzers.lipsdp.solver.certified_upper", lambda *_: None)
    monkeypatch.setattr("lipverify.analyzers.lipsdp.linf.certified_weighted", lambda *_: None)
    graph = chain([torch.ones(3, 2, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)], ops.Tanh())
    (row,) = lv.audit(graph, norm=norm, analyzers=["lipsdp"], search=Search(seconds=0.01)).rows
    assert row.refused is not None
    assert "--radius" in row.refused
    assert not row.failed
