"""Radii of small networks: exact where they are known, below every adversarial example everywhere, reproducible."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.protocol import Compute
from lipverify.certificates.issuing import subject_of
from lipverify.certificates.writing import Writer
from lipverify.errors import (
    BudgetEnded,
    NotCovered,
    RefutedCertificate,
    UnreadableCertificate,
    UnsupportedModel,
    UsageError,
)
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.robustness import Attack, Plan, Smoothing, points, proof
from lipverify.robustness.arithmetic import LARGEST, length_up, quotient_down
from lipverify.robustness.attack import attack
from lipverify.robustness.constants import PairConstants, pair_constants
from lipverify.robustness.curve import curve
from lipverify.robustness.journal import Journal
from lipverify.robustness.plan import Record
from lipverify.robustness.points import answer, prepare
from tests.clocks import within
from tests.networks import chain, tensor

IDENTITY = torch.eye(2)


@pytest.mark.parametrize(("norm", "exact"), [("l2", 0.70710678118654752), ("linf", 0.5)])
@pytest.mark.parametrize("method", ["global", "crown", "alpha-crown", "local", "branching", "auto"])
def test_linear_classifiers_are_exact(norm: str, exact: float, method: str) -> None:
    x, y = torch.tensor([[2.0, 1.0]]), torch.tensor([0])
    found = lv.radii(chain([IDENTITY]), x, y, norm, method, proofs=False)
    radius = float(found.radius[0])
    # The independent checker proves a radius with a little room, and says so.
    proved = lv.radii(chain([IDENTITY]), x, y, norm, method)
    assert proved.rigour == "checked"
    assert radius * (1 - 1e-6) <= float(proved.radius[0]) <= radius
    assert (
        exact * (1 - (5e-3 if method in ("crown", "alpha-crown", "branching") else 1e-9)) <= radius <= exact
    )
    assert radius <= float(found.attack_radius[0]) <= exact * 1.01
    assert found.records[0].attack_label == 1


def test_misclassified_points_and_ties_have_radius_zero() -> None:
    x = torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    found = lv.radii(chain([IDENTITY]), x, torch.tensor([0, 1, 0]), "l2", "global")
    assert found.radius.tolist()[1:] == [0.0, 0.0]
    assert [r.note for r in found.records] == ["", "misclassified", "two outputs are equal up to rounding"]
    assert found.clean_accuracy == pytest.approx(2 / 3)
    assert found.certified_accuracy(0.5) == pytest.approx(1 / 3)


def test_a_proof_that_fails_does_not_lose_the_other_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the proof of one point ends in, the others are proved."""
    asked = proof._Proving.point

    def point(self: proof._Proving, record: Record, row: int) -> proof._Proved:
        found = asked(self, record, row)
        if row == 0:
            raise UnreadableCertificate("balls that do not grow")
        return found

    monkeypatch.setattr(proof._Proving, "point", point)
    x = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    found = lv.radii(chain([IDENTITY]), x, torch.tensor([0, 1]), "l2", "global")
    assert [r.checked for r in found.records] == [False, True]
    assert found.records[0].unchecked == "balls that do not grow"


def test_beside_a_radius_without_a_proof_stands_a_smaller_one_that_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The search's radius stays what it was; the certificate is about the one that lines over the whole ball reach."""

    def point(*_: object) -> proof._Proved:
        raise RefutedCertificate("no lead")

    monkeypatch.setattr(proof._Proving, "point", point)
    x, y = torch.tensor([[2.0, 1.0]]), torch.tensor([0])
    record = lv.radii(chain([IDENTITY]), x, y, "linf", "branching").records[0]
    alone = lv.radii(chain([IDENTITY]), x, y, "linf", "branching", proofs=False).records[0]
    assert record.radius == alone.radius
    assert not record.checked
    assert record.unchecked == "no lead"
    assert (1 - proof.CLOSE) * record.radius < record.proved < record.radius
    found = lv.radii(chain([IDENTITY]), x, y, "linf", "branching")
    assert found.issued is not None
    assert found.rigour == "real"
    document = found.to_json()["points"][0]
    assert document["proved"] == record.proved
    assert document["rigour"] == "real"
    assert document["certificate"]
    assert found.issued.document["claim"]["radius"] == [record.proved]


@pytest.mark.parametrize("method", ["crown", "local", "branching"])
def test_smaller_radii_are_tried_one_after_another(method: str) -> None:
    """The search said .7 where .5 is true: .63 and .525 have no proof, .35 has, and halving ends near .5."""
    graph = chain([IDENTITY])
    writer = Writer(graph, subject_of(graph).program, np.array([[2.0, 1.0]]))
    record = Record(0, 0, 0, 0.7, method, None, 0.0, 1.0)
    found = proof._Proving(writer, Plan(Norm.LINF, method), 2, None).smaller(record, 0)
    assert 0.5 * (1 - proof.CLOSE) < found.radius <= 0.5
    known = found._replace(radius=0.49)
    assert proof._Proving(writer, Plan(Norm.LINF, method), 2, None).smaller(record, 0, known).radius >= 0.49


def test_a_path_that_ends_early_does_not_end_the_search_of_a_little_smaller_balls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the search's ball the path reaches half of it, on one that is 1 % smaller all: that is the radius."""
    record = Record(0, 0, 0, 1.0, "local", None, 0.0, 1.0)
    reach = {1.0: 0.5, 1.0 - 1e-2: 1.0 - 1e-2}

    def within_(self: proof._Proving, record: Record, row: int, radius: float) -> proof._Proved:
        if radius not in reach:
            raise RefutedCertificate("no lead")
        return proof._Proved(reach[radius], [], reach[radius] > 0.95)

    monkeypatch.setattr(proof._Proving, "_within", within_)
    graph = chain([IDENTITY])
    writer = Writer(graph, subject_of(graph).program, np.zeros((1, 2)))
    proving = proof._Proving(writer, Plan(Norm.LINF), 2, None)
    assert proving.point(record, 0).radius == 1.0 - 1e-2
    del reach[1.0 - 1e-2]
    assert not proving.point(record, 0).whole
    assert proving.point(record, 0).radius == 0.5
    del reach[1.0]
    with pytest.raises(NotCovered, match="no lead"):
        proving.point(record, 0)


def test_what_the_clock_left_of_the_proofs_is_proved_in_a_second_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first round ends after one point; checking it leaves time, and no point is said to have had none."""
    rounds: list[int] = []
    asked = proof._Rounds._point

    def point(self: proof._Rounds, record: Record) -> proof._Proved:
        rounds.append(record.index)
        if rounds == [0, 1]:
            raise BudgetEnded("the budget ended")
        return asked(self, record)

    def smaller(*_: object) -> proof._Proved:
        raise BudgetEnded("the budget ended")

    monkeypatch.setattr(proof._Rounds, "_point", point)
    monkeypatch.setattr(proof._Proving, "smaller", smaller)
    x = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    found = lv.radii(chain([IDENTITY]), x, torch.tensor([0, 1]), "l2", "global")
    assert [r.checked for r in found.records] == [True, True]
    assert [r.unchecked for r in found.records] == ["", ""]
    assert rounds == [0, 1, 1]


@pytest.mark.parametrize(("reached", "walks"), [(0.3, False), (0.5, False), (0.75, True)])
def test_a_walk_that_ends_within_its_first_ball_is_its_value(reached: float, walks: bool) -> None:
    """Another rival may end there: shells cut at that were smaller than the ball before them, and the whole run was lost."""
    graph = chain([tensor(np.random.default_rng(0), 3, 2)])
    writer = Writer(graph, subject_of(graph).program, np.zeros((1, 2)))
    proving = proof._Proving(writer, Plan(norm=Norm.LINF), 3, None)
    value, low = writer.value(proving._part(0.5, 0), (0, 1))
    slope = writer.jacobian(proving._part(1.0, 0), difference=(0, 1))
    shells = ((1.0, slope, writer.exact_limit(slope)),)
    fact = proving._fact(proof._Margin(1, value, low, 0.5, shells, 0.9), 0, 0, reached)
    assert (fact != value) == walks


def test_labels_that_are_all_wrong_are_no_report_of_zeros() -> None:
    x = torch.tensor([[2.0, 1.0]]).repeat(10, 1)
    with pytest.raises(UsageError, match="all 10 labels are wrong"):
        lv.radii(chain([IDENTITY]), x, torch.ones(10), "l2", "global", proofs=False)
    assert not lv.radii(chain([IDENTITY]), x[:9], torch.ones(9), "l2", "global", proofs=False).radius.any()


def test_an_orthogonal_network_has_the_closed_form(rng: np.random.Generator) -> None:
    """1-Lipschitz networks: margin over the norm of the difference of the last rows, sqrt(2)."""
    weights = [torch.linalg.qr(torch.tensor(rng.standard_normal((8, 8))))[0].float() for _ in range(3)]
    graph = chain(weights, ops.GroupSort(2, 0))
    x = torch.tensor(rng.standard_normal((6, 8)), dtype=torch.float32)
    found = lv.radii(
        graph, x, norm="l2", method="global", plan=Plan(Norm.L2, "global", attack=None), proofs=False
    )
    logits = lv.evaluate(graph.to(dtype=torch.float64), x.double()).sort(dim=1, descending=True).values
    expected = (logits[:, 0] - logits[:, 1]) / 2**0.5
    assert torch.allclose(found.radius, expected, rtol=1e-4)
    assert set(found.robust_accuracy()) == {"36/255", "72/255", "108/255", "1"}


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_methods_agree_with_attacks_and_auto_is_the_best(norm: str, rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 12, 5), tensor(rng, 10, 12), tensor(rng, 4, 10)], ops.ReLU())
    x = torch.tensor(rng.random((2, 5)), dtype=torch.float32)
    found = lv.radii(graph, x, norm=norm, box=(0.0, 1.0), proofs=False)
    for record in found.records:
        single = {k: v for k, v in record.by_method.items() if k != "auto"}
        assert set(single) == set(found.plan.parts) >= {"global", "crown", "local"}
        assert record.radius >= max(single.values()) > 0
        if record.attack_radius is not None:
            assert record.radius <= record.attack_radius


def test_constants_of_all_pairs_never_fall_below_sampled_slopes(rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 9, 4), tensor(rng, 4, 9)], ops.Tanh())
    x = torch.tensor(rng.standard_normal((3000, 4)))
    y = x + torch.tensor(rng.standard_normal((3000, 4))) * 1e-2
    f = graph.to(dtype=torch.float64)
    change = lv.evaluate(f, x) - lv.evaluate(f, y)
    for norm in (Norm.L2, Norm.LINF):
        alone = pair_constants(graph, norm, Compute())
        # So little effort that all pairs share the multipliers of one search.
        shared = pair_constants(graph, norm, Compute(), effort=2e5)
        size = torch.linalg.vector_norm(x - y, ord=norm.order, dim=1)
        for a in range(4):
            for b in range(4):
                steepest = float(((change[:, a] - change[:, b]).abs() / size).max())
                assert steepest <= alone.upper[a, b]
                assert steepest <= shared.upper[a, b]
        assert bool((alone.upper <= shared.upper * (1 + 1e-3)).all())
        assert PairConstants.from_json(json.loads(json.dumps(alone.to_json()))).upper.equal(alone.upper)


def test_adversarial_examples_are_real(rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 12, 5), tensor(rng, 3, 12)], ops.ReLU())
    for index in range(6):
        x = torch.tensor(rng.random(5))
        label = int(lv.evaluate(graph.to(dtype=torch.float64), x[None]).argmax())
        for norm in (Norm.L2, Norm.LINF):
            found = attack(graph, x, label, norm, (0.0, 1.0), Attack(), Compute(seed=index))
            if found is None:
                continue
            assert bool(((found.point >= 0) & (found.point <= 1)).all())
            assert int(lv.evaluate(graph.to(dtype=torch.float64), found.point[None]).argmax()) == found.label
            assert found.label != label
            distance = float(torch.linalg.vector_norm(found.point - x, ord=norm.order))
            assert distance <= found.size <= distance * (1 + 1e-12)


def test_an_example_is_taken_deeper_where_rounding_hides_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Enclosures .06 wide hide margins above -.03: half of that again is asked for, at the cost of a few enclosures."""
    import lipverify.robustness.attack as module

    calls, plain = [0], module.enclosed

    def wide(graph: Graph, x: torch.Tensor) -> Interval:
        calls[0] += 1
        box = plain(graph, x)
        return Interval(box.lower - 0.03, box.upper + 0.03)

    monkeypatch.setattr(module, "enclosed", wide)
    settings = Attack()
    found = attack(chain([IDENTITY]), torch.tensor([2.0, 1.0]), 0, Norm.LINF, None, settings, Compute())
    assert found is not None
    assert 0.515 <= found.size <= 0.56
    assert calls[0] <= settings.halvings + settings.doublings


def test_the_attack_goes_on_in_smaller_batches_when_memory_is_short(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lipverify.robustness.attack as module

    graph = chain([tensor(rng, 12, 5), tensor(rng, 3, 12)], ops.ReLU())
    x, settings = torch.tensor(rng.random(5)), Attack()
    label = int(lv.evaluate(graph.to(dtype=torch.float64), x[None]).argmax())
    reference = attack(graph, x, label, Norm.L2, None, settings, Compute())
    assert reference is not None
    whole = module.evaluate

    def short(network: lv.Graph, batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > 4:
            raise MemoryError
        return whole(network, batch)

    monkeypatch.setattr(module, "evaluate", short)
    found = attack(graph, x, label, Norm.L2, None, settings, Compute())
    assert found is not None
    assert found.size == pytest.approx(reference.size, rel=0.05)


def test_a_radius_above_an_example_is_an_error_of_ours() -> None:
    graph = chain([IDENTITY])
    work = prepare(graph, Plan(Norm.L2, "global"), Compute())
    assert work.constants is not None
    wrong = dataclasses.replace(
        work, constants=PairConstants(work.constants.upper / 2, work.constants.source)
    )
    record = answer(wrong, 0, torch.tensor([2.0, 1.0]).double(), 0)
    assert record.radius == 0.0
    assert record.refuted
    assert record.failed
    assert "adversarial example" in record.note
    assert record.attack_radius is not None
    assert lv.Radii(graph, work.plan, (record,), 0.0).exit_code() == 3


def test_a_point_that_breaks_loses_no_other(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph = chain([tensor(rng, 10, 4), tensor(rng, 3, 10)], ops.ReLU())
    x = torch.tensor(rng.random((3, 4)))
    plan = Plan(Norm.LINF, "crown")
    reference = lv.radii(graph, x, plan=plan)
    whole = points.attack

    def breaks(network: lv.Graph, point: torch.Tensor, *rest: object) -> object:
        if torch.equal(point, x[1]):
            raise RuntimeError("linalg.eigh: the algorithm failed to converge\nand a second line")
        return whole(network, point, *rest)

    monkeypatch.setattr(points, "attack", breaks)
    with Journal(tmp_path / "journal.jsonl", {"graph": graph.digest}) as journal:
        found = lv.radii(graph, x, plan=plan, journal=journal)
        assert sorted(journal.records) == [0, 2]
    assert [record.failed for record in found.records] == [False, True, False]
    assert found.radius[[0, 2]].tolist() == reference.radius[[0, 2]].tolist()
    assert found.radius[1] == 0.0
    assert "eigh" in found.records[1].note
    assert "second line" not in found.records[1].note
    assert found.exit_code() == 1
    document = found.to_json()
    assert document["points"][1]["failed"] is True
    assert "failed" not in document["points"][0]
    assert found.clean_accuracy == pytest.approx(2 / 3)
    assert found.to_html()


def test_order_and_processes_change_nothing(rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 10, 4), tensor(rng, 3, 10)], ops.ReLU())
    x = torch.tensor(rng.random((2, 4)))
    plan = Plan(Norm.LINF, "auto", looks=2, attack=Attack(4, 8, 3, 6))

    def numbers(found: lv.Radii) -> list[Record]:
        return [dataclasses.replace(r, seconds=0.0) for r in found.records]

    reference = numbers(lv.radii(graph, x, plan=plan, proofs=False))
    assert numbers(lv.radii(graph, x, plan=plan, jobs=2, proofs=False)) == reference
    prepared = prepare(graph, plan, Compute())
    alone = [answer(prepared, i, x[i], None) for i in reversed(range(2))]
    assert [dataclasses.replace(r, seconds=0.0) for r in reversed(alone)] == reference


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
def test_a_budget_holds_and_its_radii_are_certified(norm: Norm, rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 60, 8), tensor(rng, 60, 60), tensor(rng, 6, 60)], ops.ReLU())
    x = torch.tensor(rng.random((3, 8)))
    importlib.import_module("torch._dynamo")  # torch asks for it at the first derivative: a second
    with within(1.2 + 1.5):
        found = lv.radii(graph, x, norm=norm, budget=1.2, proofs=False)
    assert all(0 < r.radius <= (r.attack_radius or math.inf) for r in found.records)
    assert max(r.seconds for r in found.records) < 1.2


@pytest.mark.parametrize("few", [2, 3])
def test_without_any_time_left_a_few_points_are_answered_and_more_are_not_run(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed forms of a hundred thousand points would be no little thing beyond the budget."""
    monkeypatch.setattr("lipverify.robustness.run.FEW", few)
    x = torch.tensor([[2.0, 1.0]] * 3)
    found = lv.radii(chain([IDENTITY]), x, method="global", budget=1e-9, proofs=False)
    assert [r.predicted for r in found.records] == [-1 if few < 3 else 0] * 3
    assert [r.radius > 0 for r in found.records] == [few >= 3] * 3


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
def test_without_any_time_left_closed_forms_answer(norm: Norm, rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 10, 4), tensor(rng, 3, 10)], ops.ReLU())
    late = Compute(deadline=time.monotonic())
    for side in (False, True):
        constants = pair_constants(graph, norm, late, side=side)
        assert set(constants.source) == {"row sums"}
        tight = pair_constants(graph, norm, Compute())
        assert bool((constants.upper >= tight.upper).all())
    x = torch.tensor(rng.random(4))
    record = answer(prepare(graph, Plan(norm), late), 0, x, None, 0.0)
    assert record.radius == record.by_method["global"] > 0
    assert record.note == "no time was left"


def test_smoothing_of_a_graph(rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 10, 4), tensor(rng, 3, 10)], ops.ReLU())
    x = torch.tensor(rng.random((2, 4)))
    soft = Smoothing(0.05, 2000, 200, 1e-3, "bernstein", "softmax", (1.0, 10.0))
    found = lv.radii(graph, x, plan=Plan(Norm.L2, "smoothing", smoothing=soft))
    for record in found.records:
        assert record.statistics["confidence"] == 0.999
        assert record.statistics["seed"] is not None
        assert record.radius >= record.statistics["radius_without_constant"]
        assert record.attack_radius is None
    with pytest.raises(UsageError, match="l2"):
        Plan(Norm.LINF, "smoothing")


def test_curves_keep_the_undecided_band_in_order(rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 10, 4), tensor(rng, 3, 10)], ops.ReLU())
    x = torch.tensor(rng.random((8, 4)))
    found = lv.radii(graph, x, torch.tensor([0] * 8), "linf")
    line = curve(found.records)
    assert list(line.certified_accuracy) == sorted(line.certified_accuracy, reverse=True)
    assert all(a <= b for a, b in zip(line.certified_accuracy, line.attack_accuracy, strict=True))
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["schema"] == "lipverify.radius/1"
    assert {"index", "label", "predicted", "radius", "method", "attack_radius", "seconds"} <= set(
        document["points"][0]
    )
    assert set(document["curve"]) == {"radii", "certified_accuracy", "attack_accuracy"}
    page = found.to_html()
    assert page.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in page


def test_what_makes_no_sense_is_said() -> None:
    graph = chain([IDENTITY])
    x = torch.tensor([[2.0, 1.0]])
    for bad in (
        lambda: lv.radii(graph, x, norm="l1"),
        lambda: lv.radii(graph, x, method="magic"),
        lambda: lv.radii(graph, x, torch.tensor([2])),
        lambda: lv.radii(graph, x, box=(0.0, 1.0)),
        lambda: lv.radii(graph, torch.zeros(1, 3)),
        lambda: lv.radii(graph, x * float("nan")),
    ):
        with pytest.raises(UsageError):
            bad()
    with pytest.raises(UnsupportedModel, match="two outputs"):
        lv.radii(chain([torch.ones(1, 2)]), x)


def test_arithmetic_rounds_to_the_safe_side(rng: np.random.Generator) -> None:
    from fractions import Fraction

    for _ in range(200):
        m, c = (float(v) for v in 10.0 ** rng.uniform(-5, 5, 2))
        assert Fraction(quotient_down(m, c)) * Fraction(c) <= Fraction(m)
    assert quotient_down(1.0, 0.0) == LARGEST
    assert quotient_down(-1.0, 0.0) == 0.0
    assert quotient_down(float("nan"), 1.0) == 0.0
    x = torch.zeros(7).double()
    step = torch.tensor(rng.standard_normal(7))
    exact = sum(Fraction(v) ** 2 for v in step.tolist())
    assert Fraction(length_up(step, x, Norm.L2)) ** 2 >= exact
