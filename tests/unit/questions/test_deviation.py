"""`deviate`: measured figures, labels, gates, documents, the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import lipverify as lv
from lipverify import ops, zoo
from lipverify.analyzers.protocol import Compute
from lipverify.certificates.issuing import subject_of
from lipverify.combine import difference
from lipverify.deadline import within
from lipverify.errors import BudgetEnded, RefutedCertificate, UsageError
from lipverify.frontends.builder import Builder
from lipverify.ir.certificate import Rigour
from lipverify.ir.graph import Origin
from lipverify.ir.interval import Interval
from lipverify.questions import carrying, deviation_proof
from lipverify.questions.deviation import Deviation
from lipverify.questions.question import Found, Proved
from lipverify.reporting.sections import Bars
from tests import networks
from tests.command import lipverify

F, INT8, PRUNED = "zoo:digits-relu-mlp", "zoo:digits-int8", "zoo:digits-pruned"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x, y = zoo.points("digits-relu-mlp", 40)
    path = tmp_path_factory.mktemp("data") / "points.npz"
    np.savez(path, x=x.numpy(), y=y.numpy())
    return path


def document(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    done = lipverify("deviate", *arguments, "--json")
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_figures_of_the_zoo() -> None:
    """Against figures measured once with another program: bounds within two per cent, witnesses above nine tenths of theirs.

    The other way: no deviation at corners and inside of the box is above the bound.
    """
    f, g, h = (lv.load(name) for name in (F, INT8, PRUNED))
    whole = lv.InputBox((64,), 0.0, 1.0)
    inside = torch.rand(1000, 64, generator=torch.Generator().manual_seed(0))
    sampled = torch.cat([inside, inside.round()])
    for other, bound, witness in ((g, 1.7582, 0.2264), (h, 85.4, 19.72)):
        answer = lv.deviation(f, other, whole)
        assert isinstance(answer.upper, float)
        assert answer.upper <= 1.02 * bound
        assert 0.9 * witness < answer.shown <= answer.upper
        met = (lv.evaluate(f, sampled) - lv.evaluate(other, sampled)).abs().max()
        assert 0.4 * witness < float(met) < answer.upper
        assert abs(lv.deviation(other, f, whole).upper / answer.upper - 1) < 1e-12


def test_balls_and_labels(data: Path) -> None:
    found = document(F, INT8, "--data", data, "--limit", "3", "--radius", "1/64", "--box", "0,1")
    assert len(found["upper"]) == len(found["lower"]["value"]) == len(found["kept"]["label_kept"]) == 3
    assert all(low <= high for low, high in zip(found["lower"]["value"], found["upper"], strict=True))
    assert found["kept"]["certified"] > 0.9
    assert found["kept"]["label_kept"].count(True) >= 2
    far = document(
        F, PRUNED, "--data", data, "--limit", "3", "--radius", "0.3", "--ball", "l2", "--box", "0,1"
    )
    assert far["kept"]["changed"]
    assert far["kept"]["label_kept"].count(False) == len(far["kept"]["changed"])


def test_the_whole_box_document_and_folder(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = document(F, INT8, "--data", data, "--box", "0,1", "--out", out)
    assert found["schema"] == "lipverify.answer/1"
    assert found["question"] == "deviation"
    assert [model["role"] for model in found["models"]] == ["original", "changed"]
    assert found["query"]["region"] == {"kind": "box", "low": 0.0, "high": 1.0}
    assert found["rigour"] == "checked"
    assert found["unchecked"] is None
    verdict = lv.verify(out / found["certificate"], [F, INT8])
    assert verdict.upper == found["upper"]
    assert found["kept"]["checked"] == found["kept"]["certified"]
    assert found["formula"] == "largest entry of |difference|"
    assert found["needs"][0]["name"] == "difference"
    tau = np.array(found["pairs"])
    assert tau.shape == (10, 10)
    assert not tau.diagonal().any()
    assert tau.max() <= 2.805 * 1.02
    kept = found["kept"]
    assert kept["points"] == 40
    assert kept["same_label_now"] == 1.0
    assert kept["certified"] >= 0.97
    with np.load(out / "witness.npz") as stored:
        x, value = torch.tensor(stored["points"]), float(stored["value"][0])
    f, g = (lv.load(name).to(dtype=torch.float64) for name in (F, INT8))
    assert bool(((x >= 0) & (x <= 1)).all())
    assert abs(float((lv.evaluate(f, x) - lv.evaluate(g, x)).abs().max()) - value) < 1e-9
    assert value == found["lower"]["value"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Leads against differences" in page
    assert "<script" not in page
    assert "Where the difference arises" in page
    assert json.loads((out / "result.json").read_text()) == found


def test_several_copies_in_one_document(tmp_path: Path) -> None:
    found = document(F, INT8, PRUNED, "--box", "0,1", "--out", tmp_path / "out")
    assert found["schema"] == "lipverify.answers/1"
    assert len(found["answers"]) == 2
    assert found["answers"][1]["lower"]["witness"] == "witness-2.npz"
    assert (tmp_path / "out" / "witness-2.npz").exists()


@pytest.mark.parametrize(("limit", "code"), [("3", 0), ("0.5", 4), ("0.1", 3)])
def test_a_bound_passes_a_witness_refutes_and_between_nothing_is_decided(limit: str, code: int) -> None:
    document(F, INT8, "--box", "0,1", "--fail-above", limit, code=code)


def test_a_label_that_changes_fails(data: Path) -> None:
    arguments = ("--data", data, "--limit", "2", "--box", "0,1", "--fail-on-change")
    balls = ("--radius", "0.5", "--ball", "l2")
    found = document(F, PRUNED, *arguments, *balls, code=3)
    assert found["kept"]["changed"]
    document(F, INT8, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((F, INT8), "give a region"),
        ((F, "--box", "0,1"), "needs another model"),
        ((F, INT8, "--box", "0,1", "--radius", "0.1"), "--radius means nothing here without --data"),
        ((F, INT8, "--box", "0,1", "--norm-out", "l1"), "measured in linf, l2, pairs"),
        ((F, "zoo:wine-selu", "--box", "0,1"), "inputs of different shapes"),
    ],
)
def test_sentences(arguments: tuple[str, ...], words: str) -> None:
    done = lipverify("deviate", *arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split()), done.stderr


def fixed(path: Path, batch: int | str) -> Path:
    """A dense layer whose file says this size of a batch."""
    w = np.eye(4, 3, dtype=np.float32)
    ends = [helper.make_tensor_value_info(n, 1, [batch, k]) for n, k in (("x", 4), ("y", 3))]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(w, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_batch_that_an_export_fixed_is_named(tmp_path: Path) -> None:
    files = [fixed(tmp_path / f"{batch}.onnx", batch) for batch in ("n", 1, 8)]
    assert document(*files[:2], "--box", "0,1")["upper"] == 0
    done = lipverify("deviate", files[0], files[2], "--box", "0,1")
    assert done.returncode == 2
    assert "[8, 4] may be a batch of 8 that the export fixed" in " ".join(done.stderr.split())


def test_a_folder_is_verified_with_all_its_models(tmp_path: Path) -> None:
    document(F, INT8, "--box", "0,1", "--out", tmp_path / "report")
    done = lipverify("verify", tmp_path / "report", "--model", F)
    assert done.returncode == 7
    assert "it is about 2 models, not 1: give each of them once" in " ".join(done.stdout.split())


@pytest.mark.parametrize(("before", "after", "warned"), [
    ((4.0, 10.0), (3.0, 50.0), True), ((4.0, 10.0), (3.0, None), True), ((4.0, 10.0), (5.0, 50.0), False),
    ((4.0, 10.0), (3.0, 9.0), False), ((4.0, None), (3.0, None), False),
])  # fmt: skip
def test_smaller_norms_with_worse_conditions_are_a_warning(
    before: tuple[float, float | None], after: tuple[float, float | None], warned: bool
) -> None:
    pair = [{"largest": s, "condition": c, "rank": 3.0} for s, c in (before, after)]
    layers = [{"layer": f"l{k}", "op": "Linear", "own": k / 8, "carried": 1.0 + k} for k in range(30)]
    found = Deviation.sections({"spectra": [{"layer": "l0", "of": pair}], "layers": layers})
    by_title = {section.title: section for section in found}
    assert ("condition number rises" in by_title["Conditioning"].text) == warned
    bars = by_title["The difference from layer to layer"]
    assert isinstance(bars, Bars)
    assert [(b.label, b.upper, b.mark) for b in bars.bars] == [
        (f"l{k}", 1.0 + k, k / 8) for k in range(6, 30)
    ]


def test_the_summary_at_a_terminal(data: Path) -> None:
    done = lipverify("deviate", F, INT8, "--data", data, "--limit", "20", "--box", "0,1")
    assert done.returncode == 0
    assert "label certified to be kept" in done.stdout
    assert "1.748" in done.stdout


def test_other_norms_of_the_output() -> None:
    f, g = (networks.chain([torch.tensor(w)]) for w in ([[3.0], [4.0]], [[0.0], [0.0]]))
    region = lv.InputBox((1,), -1.0, 1.0)
    for norm, exact in (("linf", 4.0), ("l2", 5.0), ("pairs", 1.0)):
        answer = lv.deviation(f, g, region, norm_out=norm)
        assert exact <= answer.upper <= exact * (1 + 1e-9)
        assert exact * (1 - 1e-9) <= answer.lower <= exact
    one = networks.chain([torch.tensor([[1.0]])], ops.ReLU())
    with pytest.raises(UsageError, match="pairs"):
        lv.deviation(one, one, region, norm_out="pairs")


def test_labels_that_the_budget_left_no_time_for_are_said_and_lose_no_bound(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    f, g = (
        networks.chain([networks.tensor(rng, 6, 4), networks.tensor(rng, 3, 6)], ops.ReLU()) for _ in range(2)
    )
    ball = lv.Ball(torch.zeros(2, 4, dtype=torch.float64), 0.1, lv.Norm.LINF)

    def ended(*_: object) -> None:
        raise BudgetEnded("the budget ended")

    whole = lv.deviation(f, g, ball)
    monkeypatch.setattr("lipverify.questions.labels.kept_within", ended)
    answer = lv.deviation(f, g, ball, budget=20)
    assert "kept" in whole.fields
    assert "kept" not in answer.fields
    assert "budget ended" in answer.fields["labels_not_run"]
    assert bool((answer.upper <= whole.upper * 1.01).all())
    assert "not run: the budget ended before the labels" in answer.to_html()


def test_nothing_is_said_about_labels_of_points_outside_the_box() -> None:
    f, g, box = lv.load(F), lv.load(INT8), lv.InputBox((64,), 0.0, 1.0)
    x = zoo.points("digits-relu-mlp", 3)[0].double()
    Deviation(f, g, box, x=x)  # every point of the digits lies in it, some at its ends
    for bad in (1.001, -0.5, float("nan")):
        y = x.clone()
        y[2, 5] = bad
        with pytest.raises(UsageError, match=r"point 2 lies outside the box \(entry 5 is .* has 0 to 1\)"):
            Deviation(f, g, box, x=y)
    with pytest.raises(UsageError, match=r"a batch of \[64\] is needed"):
        Deviation(f, g, box, x=x[0])


def test_points_outside_the_box_of_a_command_are_refused(data: Path) -> None:
    done = lipverify("deviate", F, INT8, "--data", data, "--box", "0,0.5")
    assert done.returncode == 2
    assert "point 0 lies outside the box" in done.stderr
    done = lipverify("compare", F, INT8, "--deviate", "--data", data, "--box", "0,0.5")
    assert done.returncode == 2
    assert "point 0 lies outside the box" in done.stderr


def _of_integers(weights: list[torch.Tensor], step: float, zero: int, last: bool = False) -> lv.Graph:
    """Layers of one number; between them integers of 8 bits in place of ReLUs. last: signed ones behind all, too."""
    b = Builder(symbolic_batch=True)
    x = b.linear(b.input((1, 1), 0), weights[0])
    for weight in weights[1:]:
        for op in _integers(step, zero):
            x = b.elementwise(op, x)
        x = b.linear(x, weight)
    for op in _integers(step, 128) if last else ():
        x = b.elementwise(op, x)
    return b.graph([x], Origin())


def _integers(step: float, zero: int) -> tuple[ops.Clip, ops.Quantize, ops.Scale]:
    scale = ops.Scale(torch.tensor(step), torch.tensor(-zero * step))
    return ops.Clip(-zero * step, (255 - zero) * step), ops.Quantize(step, zero), scale


def test_integers_in_the_place_of_relus_are_paired_with_them() -> None:
    weights = [torch.tensor([[w]]) for w in (2.0, -1.5, 1.0)]
    f = networks.chain(weights, ops.ReLU())
    for pair in ((f, g := _of_integers(weights, 1 / 64, 0, last=True)), (g, f)):
        assert difference(*pair).apart == ()
    # Three roundings of half a step each, times what is behind them: 1.5, 1 and 1; side by side the bound is above 1.
    assert lv.deviation(f, g, lv.InputBox((1,), -0.9, 0.9)).upper <= 1.01 * 3.5 / 128


@pytest.mark.parametrize(
    ("step", "zero", "told"),
    [(1 / 64, 0, False), (1 / 256, 0, True), (1 / 64, 128, False), (1 / 512, 128, True)],
)
def test_integers_that_stand_for_a_relu_are_no_saturation(step: float, zero: int, told: bool) -> None:
    weights = [torch.tensor([[2.0]]), torch.tensor([[1.0]])]
    f = networks.chain(weights, ops.ReLU())
    answer = lv.deviation(f, _of_integers(weights, step, zero), lv.InputBox((1,), -0.9, 0.9))
    (row,) = answer.fields["saturation"]
    assert row["range"][0] <= -1.8 < 1.8 <= row["range"][1]
    assert ("are cut off there without a word" in answer.to_html()) is told


def test_a_file_that_the_budget_left_unread_is_read_with_more_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = []
    for name in ("f", "g"):
        nodes = [helper.make_node("Gemm", ["x", "w"], ["y"])]
        w = numpy_helper.from_array(rng.standard_normal((3, 2)).astype(np.float32), "w")
        ends = [helper.make_tensor_value_info(k, 1, ["n", n]) for k, n in (("x", 3), ("y", 2))]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [w])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / f"{name}.onnx"
        )
        paths.append(lv.load(tmp_path / f"{name}.onnx"))
    for graph in paths:
        with pytest.raises(BudgetEnded), within(0.0):
            subject_of(graph)
    assert lv.deviation(*paths, lv.InputBox((3,), 0.0, 1.0)).rigour is Rigour.CHECKED


class Loose(Deviation):
    """Found a hundred times too large; what takes longest is built within the time of everything, not of the search."""

    def facts(self, compute: Compute) -> Iterator[Found]:
        for found in super().facts(compute):
            facts = {
                name: Interval(100.0 * box.lower, 100.0 * box.upper) for name, box in found.facts.items()
            }
            yield Found(facts, more=found.more)

    def search(self, compute: Compute) -> torch.Tensor:
        assert "carried" in self.__dict__
        return super().search(compute)


def test_what_is_proved_of_the_first_regions_counts_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deviation_proof, "MOST_OF_ALL", 1)
    rng = np.random.default_rng(0)
    f, g = (
        networks.chain([networks.tensor(rng, 6, 4), networks.tensor(rng, 3, 6)], ops.ReLU()) for _ in range(2)
    )
    centres = torch.tensor([[0.1, 0.2, -0.3, 0.4], [0.4, -0.1, 0.2, 0.0]], dtype=torch.float64)
    answer = lv.ask(Loose(f, g, lv.Ball(centres, 0.01, "linf")))
    assert answer.issued is not None
    (first,) = answer.issued.document["claim"]["upper"]
    assert isinstance(answer.upper, torch.Tensor)
    assert float(answer.upper[0]) == first < 0.1 * float(answer.upper[1])
    said = answer.to_json()
    assert said["rigour"] == "real"
    assert "first 1 of 2 regions" in said["unchecked"]
    # The bounds of other balls are none of these.
    proved = Proved(answer.issued)
    elsewhere = Deviation(f, g, lv.Ball(centres + 0.5, 0.01, "linf"))
    with pytest.raises(RefutedCertificate, match="another region"):
        carrying.carried(elsewhere, proved, 2)
    # Nor are those in another norm.
    with pytest.raises(RefutedCertificate, match="says norm_out 'linf', and the question expects 'l2'"):
        carrying.carried(replace(answer.question, norm_out="l2"), proved, 2)
