"""Monotonicity: exact on small networks, consistent with samples on random ones, pairs that anyone can evaluate again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lipverify as lv
from lipverify import ops
from lipverify.cli import main
from lipverify.frontends.builder import Builder
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.interval import Interval
from lipverify.monotonicity import Verdict
from lipverify.monotonicity.branching import Settings
from lipverify.monotonicity.slopes import PartialDerivatives
from tests.networks import random_graph
from tests.tiers import tier

COUNT = tier(30, 60)
"""Random networks."""


def two_layers(
    first: list[list[float]], bias: list[float], second: list[list[float]], op: object = None
) -> Graph:
    """second @ act(first @ x + bias)."""
    b = Builder(symbolic_batch=True)
    v = b.input((1, len(first[0])), 0)
    v = b.linear(v, torch.tensor(first, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64))
    v = b.elementwise(op or ops.ReLU(), v)
    return b.graph([b.linear(v, torch.tensor(second, dtype=torch.float64))], Origin())


def extracted(module: nn.Module, inputs: int) -> Graph:
    return lv.extract(module.double().eval(), torch.zeros(2, inputs, dtype=torch.float64))


class Signed(nn.Module):
    """Increasing in input 0, decreasing in 1, without 2, free in 3: by the signs of its weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second, self.last = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 1)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
            self.first.weight[:, 0].abs_()
            self.first.weight[:, 1].abs_().neg_()
            self.first.weight[:, 2] = 0.0
            self.second.weight.abs_()
            self.last.weight.abs_()
            self.first.bias.sub_(0.5)  # some inputs leave every ReLU off: slopes reach down to zero

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


def test_signs_of_weights_prove_at_the_first_look() -> None:
    found = lv.monotone(extracted(Signed(), 4), (-1.0, 1.0)).findings
    verdicts = [f.verdict for f in found]
    assert verdicts == [Verdict.INCREASING, Verdict.DECREASING, Verdict.CONSTANT, Verdict.NEITHER]
    assert [f.boxes for f in found] == [1, 1, 1, 1]
    # Rounding does not blur a sum of non-negative terms.
    assert found[0].slope[0] == 0.0
    assert found[1].slope[1] == 0.0
    assert found[2].slope == (0.0, 0.0)


def test_slopes_that_cannot_occur_together_need_cuts() -> None:
    """Slope 1 + 2 [z > .3] - 1.5 [z > .35]: at least 1 in truth, -0.5 if the steps are taken as independent."""
    graph = two_layers([[1, 0.5], [1, 0.5], [1, 0]], [-0.3, -0.35, 10.0], [[2, -1.5, 1]])
    root = PartialDerivatives(graph, 0, torch.device("cpu"))
    whole = Interval(-torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    assert float(root.over(whole, [0]).lower) < 0
    (found,) = lv.monotone(graph, (-1.0, 1.0), 0).findings
    assert found.verdict is Verdict.INCREASING
    assert found.boxes > 3
    assert 0 <= found.slope[0] <= 1
    assert found.slope[1] >= 3
    assert found.falls is None


def test_a_narrow_dip_is_found_and_shown() -> None:
    """Slope 1, and -1 for x between .50 and .51 alone."""
    graph = two_layers([[1], [1], [1]], [10.0, -0.5, -0.51], [[1, -2, 2]])
    (found,) = lv.monotone(graph, (-1.0, 1.0), 0, settings=Settings(samples=2)).findings
    assert found.verdict is Verdict.NEITHER
    assert found.falls is not None
    assert found.rises is not None
    low, high = float(found.falls.low), float(found.falls.high)
    assert low < high
    assert 0.49 <= low <= 0.51 <= high + 0.01
    assert found.falls.change < 0 < found.rises.change


def test_pairs_differ_in_one_feature_and_stay_in_the_box() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 2))
    graph = extracted(net, 3)
    low, high = torch.tensor([-1.0, -2, 0]), torch.tensor([1.0, 2, 3])
    result = lv.monotone(graph, (low, high), output=1)
    seen = 0
    for finding in result.findings:
        for pair, sign in ((finding.falls, -1), (finding.rises, 1)):
            if pair is None:
                continue
            seen += 1
            other = torch.arange(3) != finding.feature
            assert torch.equal(pair.low[other], pair.high[other])
            assert float(pair.low[finding.feature]) < float(pair.high[finding.feature])
            for x in (pair.low, pair.high):
                assert bool(((low <= x) & (x <= high)).all())
            change = evaluate(graph, pair.high[None])[0, 1] - evaluate(graph, pair.low[None])[0, 1]
            assert sign * float(change) > 0
            assert abs(float(change)) >= abs(pair.change) * (1 - 1e-9)
    assert seen >= 3


def test_every_slope_of_a_sample_lies_in_the_proved_range(rng: np.random.Generator) -> None:
    answered, proved = 0, 0
    for _ in range(COUNT):
        graph = random_graph(rng, layers=4)
        size = graph.input.size
        center = torch.tensor(rng.normal(size=graph.input_shape))
        radius = 10.0 ** rng.uniform(-3, 0)
        feature = int(rng.integers(size))
        try:
            result = lv.monotone(
                graph,
                (center - radius, center + radius),
                feature,
                output=0,
                settings=Settings(boxes=40, samples=32),
            )
        except lv.UnsupportedModel:
            continue
        answered += 1
        (found,) = result.findings
        x = center + radius * torch.tensor(rng.uniform(-1, 1, size=(64, *graph.input_shape)))
        x.requires_grad_(True)
        total = evaluate(graph.to(dtype=torch.float64), x).flatten(1)[:, 0].sum()
        slopes = torch.autograd.grad(total, x, materialize_grads=True)[0].flatten(1)[:, feature]
        slack = 1e-9 * (1 + slopes.abs().max())
        assert float(slopes.min()) >= found.slope[0] - slack
        assert float(slopes.max()) <= found.slope[1] + slack
        if found.verdict in {Verdict.INCREASING, Verdict.CONSTANT}:
            assert float(slopes.min()) >= -1e-12
        if found.verdict in {Verdict.DECREASING, Verdict.CONSTANT}:
            assert float(slopes.max()) <= 1e-12
        proved += found.verdict not in {Verdict.UNDECIDED, Verdict.NEITHER}
    assert answered >= COUNT // 2
    assert proved >= COUNT // 6


def test_a_budget_ends_the_search_with_what_is_known() -> None:
    """Slope 2 [z > .3] - [z > .3] with equal thresholds: boxes across the threshold stay open for ever."""
    graph = two_layers([[1, 1], [1, 1]], [-0.3, -0.3], [[2, -1]])
    (found,) = lv.monotone(graph, (-1.0, 1.0), 0, settings=Settings(boxes=60)).findings
    assert found.verdict is Verdict.UNDECIDED
    assert found.slope[0] == pytest.approx(-1, abs=1e-12)
    assert found.falls is None
    assert found.rises is not None
    (later,) = lv.monotone(graph, (-1.0, 1.0), 0, budget=1e-9).findings
    assert later.verdict is Verdict.UNDECIDED


def test_balls_are_regions_of_their_own() -> None:
    graph = two_layers([[1.0], [-1.0]], [0.0, 0.0], [[1, 1]])  # |x|
    ball = lv.Ball(torch.tensor([[2.0], [-2.0], [0.5]]), 1.0)
    verdicts = [f.verdict for f in lv.monotone(graph, ball).findings]
    assert verdicts == [Verdict.INCREASING, Verdict.DECREASING, Verdict.NEITHER]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"features": "age"}, "no feature 'age'"),
        ({"features": 4}, "no feature 4"),
        ({"region": (1.0, -1.0)}, "wrong order"),
        ({"region": (torch.zeros(3), 1.0)}, "shape"),
        ({"region": lv.Ball(torch.zeros(1, 4), 1.0, "l2")}, "linf"),
        ({"output": 1}, "no output 1"),
        ({"names": ["a", "b"]}, "as many different names"),
    ],
)
def test_questions_that_make_no_sense(arguments: dict[str, object], words: str) -> None:
    graph = extracted(Signed(), 4)
    with pytest.raises(lv.UsageError, match=words):
        lv.monotone(graph, arguments.pop("region", (-1.0, 1.0)), **arguments)  # type: ignore[arg-type]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs `audit` in this process: exit code and standard output."""

    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["audit", *arguments])
        return int(ended.value.code or 0), capsys.readouterr().out

    return call


def test_command_line(tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    save_file(Signed().state_dict(), tmp_path / "net.safetensors")
    source = "from tests.unit.monotonicity.test_monotone import Signed\n"
    (tmp_path / "arch.py").write_text(source, encoding="utf-8")
    model = (str(tmp_path / "net.safetensors"), "--arch", f"{tmp_path / 'arch.py'}:Signed", "--trust-code")
    model = (*model, "--input-shape", "4", "--box=-1,1")
    out = tmp_path / "out"
    code, text = run(*model, "--monotone", "age,3", "--names", "age,b,c,d", "--json", "--out", str(out))
    assert code == 0
    document = json.loads(text)
    assert document["schema"] == "lipverify.monotone/1"
    assert [(f["name"], f["verdict"]) for f in document["features"]] == [
        ("age", "increasing"),
        ("d", "neither"),
    ]
    assert document["rigour"] == "checked"
    with np.load(out / "witness.npz") as stored:
        low, high = stored["falls_3_0_low"], stored["falls_3_0_high"]
    assert list(np.flatnonzero(low != high)) == [3]
    assert json.loads((out / "result.json").read_text())["features"] == document["features"]
    code, text = run(*model, "--monotone", "all")
    assert code == 0
    assert "increasing" in text
    assert run(*model[:-1], "--monotone", "0")[0] == 2
    assert run(*model, "--monotone", "9")[0] == 2
    (tmp_path / "people.csv").write_text("age,b,c,d\n0,0,0,0\n1,1,1,1\n", encoding="utf-8")
    code, text = run(*model[:-1], "--monotone", "age", "--data", str(tmp_path / "people.csv"), "--json")
    assert (code, json.loads(text)["features"][0]["name"]) == (0, "age")
    # With a box, which is the region then, the table gives the names; all its points must lie in it.
    question = ("--monotone", "age", "--data", str(tmp_path / "people.csv"), "--json")
    code, text = run(*model, *question)
    assert (code, json.loads(text)["features"][0]["name"]) == (0, "age")
    assert run(*model[:-1], "--box=-1,0.5", *question)[0] == 2


def test_undecided_ends_with_4(run) -> None:  # type: ignore[no-untyped-def]
    question = ("zoo:cancer-gelu", "--monotone", "6", "--box=0,0.5", "--budget", "1ms", "--of", "0", "--json")
    code, text = run(*question)
    assert json.loads(text)["features"][0]["verdict"] == "undecided"
    assert code == 4
