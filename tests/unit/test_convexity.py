"""Convexity in the input: by construction, refuted by triples, proved by the checker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lipverify as lv
from lipverify import ops
from lipverify.convexity import Verdict
from lipverify.errors import RefutedCertificate
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input, Op
from tests.command import lipverify
from tests.networks import chain, tensor
from tests.onnx_models import model, node, random


def positive(rng: np.random.Generator, *shape: int) -> Tensor:
    return tensor(rng, *shape).abs()


def layers(rng: np.random.Generator, act: Op, sign: float = 1.0) -> Graph:
    return chain([tensor(rng, 8, 4), positive(rng, 6, 8), sign * positive(rng, 2, 6)], act)


UPWARD = (
    ops.ReLU(),
    ops.LeakyReLU(0.1),
    ops.Softplus(2.0),
    ops.ELU(0.5),
    ops.CELU(2.0),
    ops.Clip(0.0, float("inf")),
)


@pytest.mark.parametrize("act", UPWARD, ids=str)
def test_networks_of_one_sign_are_convex(act: Op) -> None:
    found = lv.convex(layers(np.random.default_rng(0), act))
    assert [f.verdict for f in found.findings] == [Verdict.CONVEX] * 2
    assert all(f.checked for f in found.findings)
    assert [f.verdict for f in lv.convex(layers(np.random.default_rng(0), act, -1.0)).findings] == [
        Verdict.CONCAVE
    ] * 2


@pytest.mark.parametrize(
    "act", [ops.Tanh(), ops.SiLU(), ops.GELU(), ops.Sigmoid(), ops.ELU(1.5), ops.LeakyReLU(-0.5)], ids=str
)
def test_other_activations_are_not_convex_behind_one_another(act: Op) -> None:
    found = lv.convex(layers(np.random.default_rng(0), act))
    assert not any(f.verdict in (Verdict.CONVEX, Verdict.CONCAVE) for f in found.findings)


def test_one_weight_of_the_other_sign_is_named() -> None:
    rng = np.random.default_rng(0)
    weights = [tensor(rng, 8, 4), positive(rng, 6, 8), positive(rng, 1, 6)]
    weights[1][3, 2] = -1e-3
    edge = lv.convex(chain(weights, ops.ReLU())).findings[0].edges[0]
    assert edge is not None
    assert edge.entry == 2
    assert edge.weight == pytest.approx(-1e-3)
    weights[2][0, 1] = -20.0  # this one matters: three points on a line show it
    found = lv.convex(chain(weights, ops.ReLU())).findings[0]
    triple = found.triples[0]
    assert triple is not None
    x, middle, y = (
        evaluate(chain(weights, ops.ReLU()).to(dtype=torch.float64), p.unsqueeze(0)).item()
        for p in (triple.first, triple.middle, triple.last)
    )
    assert torch.equal((triple.first + triple.last) / 2, triple.middle)
    assert middle - (x + y) / 2 >= triple.excess * (1 - 1e-9) > 0


def test_the_weight_that_breaks_it_is_one_of_the_output_that_was_asked_for() -> None:
    """y0 = h0 - h1 and y1 = h0 - 5 h1: for y0 the weight is -1, also where both places of a sequence are in one matrix."""
    for shape in ((2,), (3, 2)):
        x = Node("x", Input(), (), shape)
        hidden = Node("h", ops.ReLU(), ("x",), shape)
        last = Node("y", ops.Linear(torch.tensor([[1.0, -1.0], [1.0, -5.0]])), ("h",), shape)
        found = lv.convex(Graph((x, hidden, last), ("y",))).findings
        for f in found:
            place, row = divmod(f.output, 2)
            up, down = f.edges
            assert up is not None
            assert down is not None
            assert (up.entry, up.wanted, up.reader, up.weight) == (
                2 * place + 1,
                "concave",
                "y",
                (-1.0, -5.0)[row],
            )
            assert (down.entry, down.wanted, down.weight) == (2 * place, "concave", 1.0)


def test_the_reader_that_breaks_it_is_one_that_leads_to_the_output() -> None:
    """h is read by two matrices, and y0 is of the second alone; slopes of PReLU bend each entry its own way."""
    x = Node("x", Input(), (), (2,))
    hidden = Node("h", ops.PReLU(torch.tensor([0.5, 2.0])), ("x",), (2,))
    first, second = (
        Node(name, ops.Linear(torch.tensor([row])), ("h",), (1,))
        for name, row in (("a", [-9.0, -9.0]), ("b", [3.0, 2.0]))
    )
    joined = Node("y", ops.Concat(0), ("b", "a"), (2,))
    edge = lv.convex(Graph((x, hidden, first, second, joined), ("y",))).findings[0].edges[0]
    assert edge is not None
    assert (edge.entry, edge.wanted, edge.reader, edge.weight) == (1, "convex", "b", 2.0)


def test_what_is_affine_is_both() -> None:
    rng = np.random.default_rng(0)
    found = lv.convex(chain([tensor(rng, 3, 4)]))
    assert {f.verdict for f in found.findings} == {Verdict.AFFINE}
    assert all(f.checked for f in found.findings)


def test_maxima_of_affine_functions_are_convex_and_minima_concave() -> None:
    rng = np.random.default_rng(0)
    x = Node("x", Input(), (), (4,))
    parts = [Node(name, ops.Linear(tensor(rng, 3, 4)), ("x",), (3,)) for name in "ab"]
    for op, verdict in ((ops.Maximum(), Verdict.CONVEX), (ops.Minimum(), Verdict.CONCAVE)):
        found = lv.convex(Graph((x, *parts, Node("y", op, ("a", "b"), (3,))), ("y",)))
        assert {f.verdict for f in found.findings} == {verdict}
        assert all(f.checked for f in found.findings)
    square = Graph((x, Node("y", ops.Power(2.0), ("x",), (4,))), ("y",))
    assert {(f.verdict, f.checked) for f in lv.convex(square).findings} == {(Verdict.CONVEX, True)}


def test_input_convex_torch_network_with_skips_pooling_and_batch_norm() -> None:
    class Convex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3).eval()
            self.inner, self.skip = nn.Linear(27, 5), nn.Linear(64, 5)

        def forward(self, x: Tensor) -> Tensor:
            h = nn.functional.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
            return torch.relu(
                nn.functional.linear(h.flatten(1), self.inner.weight.abs(), self.inner.bias)
                + self.skip(x.flatten(1))
            )

    torch.manual_seed(0)
    found = lv.convex(lv.extract(Convex().eval(), torch.zeros(2, 1, 8, 8)))
    assert {f.verdict for f in found.findings} == {Verdict.CONVEX}
    assert all(f.checked for f in found.findings), found.findings[0].unchecked


@pytest.mark.parametrize("seed", range(6))
def test_no_triple_refutes_what_is_convex(seed: int) -> None:
    """Random signs: the verdict is convex or concave only where ten thousand triples agree."""
    rng = np.random.default_rng(seed)
    kind = (ops.ReLU(), ops.Softplus(1.0), ops.Abs(), ops.LogSigmoid(), ops.LeakyReLU(0.3), ops.ELU(0.7))[
        seed
    ]
    weights = [
        tensor(rng, 5, 3),
        tensor(rng, 4, 5) if seed % 2 else positive(rng, 4, 5),
        positive(rng, 6, 4) * torch.from_numpy(rng.choice([-1.0, 1.0], (6, 1))),
    ]
    graph = chain(weights, kind).to(dtype=torch.float64)
    x, y = (torch.from_numpy(rng.standard_normal((10_000, 3)) * 3) for _ in range(2))
    apart = evaluate(graph, (x + y) / 2) - (evaluate(graph, x) + evaluate(graph, y)) / 2
    for f in lv.convex(graph).findings:
        if f.verdict is Verdict.CONVEX:
            assert float(apart[:, f.output].max()) <= 1e-9
        if f.verdict is Verdict.CONCAVE:
            assert float(apart[:, f.output].min()) >= -1e-9
        for triple, sign in zip(f.triples, (1, -1), strict=True):
            assert triple is None or triple.excess * sign > 0


def test_command_certificate_and_forgery(tmp_path: Path) -> None:
    weights: dict[str, Any] = {"w": random(3, 5), "v": np.abs(random(5, 2))}
    proto = model([node("Gemm", ["x", "w"], ["a"]), node("Relu", ["a"], ["h"]), node("Gemm", ["h", "v"], ["y"])],
                  ["N", 3], constants=weights)  # fmt: skip
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    net, out = str(tmp_path / "net.onnx"), tmp_path / "out"
    done = lipverify("audit", net, "--convex", "--out", out, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert [(f["verdict"], f["rigour"]) for f in document["outputs"]] == [("convex", "checked")] * 2
    assert "Convexity" in (out / "report.html").read_text()
    certificate = out / document["certificate"]
    assert "entry 0 is convex in the input" in lipverify("verify", certificate, "--model", net).stdout
    forged = json.loads(certificate.read_text())
    forged["claim"]["entries"][0]["sign"] = -1
    forged["claim"]["statement"] = forged["claim"]["statement"].replace(
        "entry 0 is convex", "entry 0 is concave"
    )
    (tmp_path / "forged.json").write_text(json.dumps(forged))
    with pytest.raises(RefutedCertificate, match="another entry"):
        lv.verify(tmp_path / "forged.json", net)
    assert lipverify("audit", net, "--convex", "--margin", "0,1").returncode == 2
