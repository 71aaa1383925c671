"""The difference of two networks as a graph: exact, zero where there is none, the same whichever comes first."""

from __future__ import annotations

import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify import ops
from lipverify.combine import difference, minus, with_parameter
from lipverify.combine.carry import exact_difference
from lipverify.errors import InternalError, UsageError
from lipverify.falsify import Search
from lipverify.ir.certificate import Rigour
from lipverify.ir.graph import Graph, Node
from lipverify.ir.graphs import joined
from lipverify.ir.op import Constant, Input
from lipverify.questions import Answer
from tests import networks


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relu_net(seed: int = 0, noise: float = 0.0) -> Graph:
    weights = [numbers(*size, seed=seed + i) for i, size in enumerate([(6, 3), (5, 6), (2, 5)])]
    moved = [w + noise * numbers(*w.shape, seed=seed + 10 + i) for i, w in enumerate(weights)]
    return networks.chain(moved, ops.ReLU())


def module(seed: int, *norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(seed)
    head = (nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4), nn.Softmax(-1))
    return nn.Sequential(nn.Conv2d(1, 3, 3), *norm, *head).eval()


def exported(net: nn.Module, path: Path) -> Graph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.zeros(2, 1, 6, 6),), path, dynamo=False, verbose=False, input_names=["x"],
                          dynamic_axes={"x": {0: "n"}})  # fmt: skip
    return lv.load(path)


def extracted(net: nn.Module) -> Graph:
    return lv.extract(net, torch.zeros(2, 1, 6, 6))


def test_identical_networks_differ_by_exactly_nothing(tmp_path: Path) -> None:
    net = module(0)
    f = extracted(net)
    for g in (f, extracted(net), exported(net, tmp_path / "net.onnx")):
        found = difference(f, g)
        assert found.zero, found.apart
        answer = lv.deviation(f, g, lv.InputBox((1, 6, 6), -1.0, 1.0))
        assert answer.upper == 0.0
        assert answer.lower == 0.0


def test_a_constant_of_two_branches_does_not_see_that_they_are_one_network() -> None:
    """Slopes of the branches are free of each other: 54.8044 by search and by checker, where the carried difference is 0."""
    f = lv.load("zoo:digits-relu-mlp")
    found = lv.audit(minus(f, f), analyzers=["lipsdp"], search=Search(seconds=0.01))
    assert found.upper == pytest.approx(54.8044, abs=1e-4)
    certificate = found.certificates["lipsdp"]
    assert certificate.rigour is Rigour.CHECKED
    assert lv.verify(certificate, found.graph).upper == found.upper
    assert lv.deviation(f, f, lv.InputBox((64,), 0.0, 1.0)).upper == 0.0


def test_a_folded_normalisation_costs_next_to_nothing(tmp_path: Path) -> None:
    net = module(0, nn.BatchNorm2d(3))[:-1]
    f, g = extracted(net), exported(net, tmp_path / "net.onnx")
    assert "BatchNorm" in f.operators()
    assert "BatchNorm" not in g.operators()
    assert difference(f, g).apart == ()
    region = lv.InputBox((1, 6, 6), -1.0, 1.0)
    apart = lv.bounds(minus(f, g), region).output.upper.max()
    assert lv.deviation(f, g, region).upper < 1e-4 * float(apart)


def proved_by_us(answer: Answer) -> float:
    """The bound before the checker proved it again, with a little room for its own roundings."""
    return float(answer.question.formula.evaluate(answer.found.facts).upper[0])


def test_one_linear_layer_is_the_difference_of_the_matrices() -> None:
    v, w = numbers(4, 5), numbers(4, 5, seed=1)
    f, g = (networks.chain([weight]) for weight in (v, w))
    answer = lv.deviation(f, g, lv.InputBox((5,), -1.0, 1.0))
    exact = (v.double() - w.double()).abs().sum(1).max().item()
    ours = proved_by_us(answer)
    assert exact <= ours <= exact * (1 + 1e-14)
    # The checker allows for its roundings by the sizes of both matrices.
    assert ours <= answer.upper <= exact + 1e-12 * float(v.abs().sum() + w.abs().sum())
    ball = lv.Ball(torch.zeros(1, 5), 2.0, "l2")
    upper = proved_by_us(lv.deviation(f, g, ball))
    exact = 2.0 * torch.linalg.vector_norm(v.double() - w.double(), dim=1).max().item()
    assert exact * (1 - 1e-15) <= float(upper) <= exact * (1 + 1e-13)


def test_the_order_of_the_networks_does_not_matter() -> None:
    f, g = relu_net(), relu_net(noise=0.1)
    region = lv.InputBox((3,), -1.0, 2.0)
    there, back = (
        lv.bounds(difference(f, g).graph, region).output,
        lv.bounds(difference(g, f).graph, region).output,
    )
    assert torch.allclose(there.upper, -back.lower, rtol=1e-12)
    assert torch.allclose(there.lower, -back.upper, rtol=1e-12)


def test_a_constant_moves_the_range_by_itself() -> None:
    f = relu_net()
    last = f.output
    assert isinstance(last.op, ops.Linear)
    shift = torch.tensor([0.5, -3.0])
    g = replace(f, nodes=(*f.nodes[:-1], replace(last, op=ops.Linear(last.op.weight, shift))))
    box = lv.bounds(difference(f, g).graph, lv.InputBox((3,), -1.0, 1.0)).output
    assert torch.allclose(box.lower, -shift.double(), atol=1e-300)
    assert torch.allclose(box.upper, -shift.double(), atol=1e-300)


def test_exact_differences() -> None:
    x, y = numbers(100).double() * 1e8, numbers(100, seed=1).double() * 1e-8
    s, e = exact_difference(x, y)
    for a, b, c, d in zip(x.tolist(), y.tolist(), s.tolist(), e.tolist(), strict=True):
        assert Fraction(c) + Fraction(d) == Fraction(a) - Fraction(b)


def test_structures_that_differ_are_subtracted_there_and_named() -> None:
    weights = [numbers(6, 3), numbers(2, 6, seed=1)]
    f = networks.chain(weights, ops.ReLU())
    g = networks.chain([numbers(7, 3, seed=2), numbers(2, 7, seed=3)], ops.ReLU())
    found = difference(f, g)
    assert "Linear" in found.apart[0]
    assert not found.zero
    h = networks.chain(weights, ops.Tanh())
    assert "ReLU" in difference(f, h).apart[0]
    assert "Tanh" in difference(f, h).apart[0]
    region = lv.InputBox((3,), -1.0, 1.0)
    plain, carried = (lv.bounds(graph, region).output for graph in (minus(f, g), found.graph))
    assert bool((carried.upper <= plain.upper + 1e-9).all())


def test_a_softmax_behind_equal_and_behind_different_layers() -> None:
    f, g = (extracted(module(seed)) for seed in (0, 1))
    assert any("Softmax" in text and "no rule" in text for text in difference(f, g).apart)


def test_networks_that_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match="inputs of different shapes"):
        difference(networks.chain([numbers(2, 3)]), networks.chain([numbers(2, 4)]))
    with pytest.raises(UsageError, match="outputs of different shapes"):
        difference(networks.chain([numbers(2, 3)]), networks.chain([numbers(3, 3)]))


def test_joined_networks_keep_their_names_apart() -> None:
    both = joined(relu_net(), relu_net(1))
    assert len(both.outputs) == 2
    assert sum(isinstance(node.op, Input) for node in both.nodes) == 1
    x = numbers(4, 3).double()
    for place, graph in enumerate((relu_net(), relu_net(1))):
        part = replace(both, output_index=place).to(dtype=torch.float64)
        assert torch.equal(lv.evaluate(part, x), lv.evaluate(graph.to(dtype=torch.float64), x))


def test_a_parameter_as_a_part_of_the_input() -> None:
    start = Node("in", Input(), (), (3,))
    stored = Node("p", Constant(numbers(3)), (), (3,))
    graph = Graph((start, stored, Node("y", ops.Mul(), ("in", "p"), (3,))), ("y",))
    both = with_parameter(graph, "p")
    x = numbers(2, 6).double()
    assert torch.equal(lv.evaluate(both, x), x[:, :3] * x[:, 3:])
    with pytest.raises(UsageError, match="no such node"):
        with_parameter(graph, "q")


def test_a_difference_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipverify.combine import carry

    right = carry.exact_difference
    monkeypatch.setattr(carry, "exact_difference", lambda x, y: right(x, 1.01 * y))
    with pytest.raises(InternalError, match="does not compute"):
        difference(relu_net(), relu_net(noise=0.1))
