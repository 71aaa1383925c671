"""Branch and bound: what it certifies is below every attack, proved by the checker leaf by leaf, and grows with its leaves."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.protocol import Compute
from lipverify.errors import NotCovered
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.robustness import Attack, Plan, proof
from lipverify.robustness.attack import attack
from lipverify.robustness.branching import Hint, proved_on
from lipverify.robustness.carried import Carried
from lipverify.robustness.domains import Neurons
from lipverify.robustness.march import grow
from lipverify.robustness.pairs import differences, predict
from lipverify.robustness.plan import Record
from lipverify.robustness.shells import Shell, Shells
from tests.networks import chain, tensor

QUICK = Attack(6, 15, 5)


def network(seed: int) -> tuple[Graph, torch.Tensor]:
    rng = np.random.default_rng([seed, 31])
    graph = chain([tensor(rng, 14, 4), tensor(rng, 12, 14), tensor(rng, 3, 12)], ops.ReLU())
    return graph, torch.tensor(rng.standard_normal((1, 4)))


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
@pytest.mark.parametrize("seed", [0, 2])
def test_radii_by_trees_are_proved_leaf_by_leaf(seed: int, norm: Norm) -> None:
    graph, x = network(seed)
    plan = Plan(norm, "branching", attack=QUICK)
    found = lv.radii(graph, x, plan=plan)
    record = found.records[0]
    assert record.attack_radius is not None
    assert 0.0 < record.radius < record.attack_radius
    single = lv.radii(graph, x, plan=Plan(norm, "alpha-crown", attack=QUICK), proofs=False)
    assert record.radius > 1.2 * float(single.radius[0])
    assert record.checked, record.unchecked
    assert found.issued is not None
    files = found.certificate_files()
    steps = json.loads(next(data for name, data in files.items() if name.endswith(".json")))["proof"]["steps"]
    kinds = [step["step"] for step in steps]
    assert kinds.count("leaf") > 3
    # Ranges are computed once: a leaf is one row pushed back.
    assert kinds.count("ranges") <= 2


def test_what_carries_a_radius_survives_the_journal() -> None:
    graph, x = network(0)
    found = lv.radii(graph, x, plan=Plan(Norm.LINF, "branching", attack=QUICK), proofs=False).records[0]
    assert found.carried is not None
    assert found.carried.trees
    again = Record.from_json(json.loads(json.dumps(found.stored())))
    assert isinstance(again.carried, Carried)
    assert again.carried.to_json() == found.carried.to_json()


def test_a_journal_does_not_say_what_is_proved() -> None:
    """A doctored one made `radius --resume` print a radius of 99 as `checked`."""
    graph, x = network(0)
    found = lv.radii(graph, x, plan=Plan(Norm.LINF, "crown", attack=QUICK), proofs=False).records[0]
    again = Record.from_json({**found.stored(), "checked": True, "proved": 98.0, "unchecked": "why"})
    assert (again.checked, again.proved, again.unchecked) == (False, 0.0, "")
    assert again.radius == found.radius


def test_nothing_false_is_shown_and_a_count_ends_the_search() -> None:
    graph, x = network(1)
    label = predict(graph, x[0])
    example = attack(graph, x[0], label, Norm.LINF, None, Attack(), Compute())
    assert example is not None
    ball = lv.Ball(x, example.size * 1.001, Norm.LINF)
    neurons = Neurons.of(lv.bounds(differences(graph, label), ball).known)
    rival = example.label - (example.label > label)
    assert proved_on(neurons, [rival], {}, lambda: False, most=2000) is None
    assert proved_on(neurons, [rival], {}, lambda: True) is None


def test_growing_stops_below_what_cannot_be_shown() -> None:
    """Where everything within 0.7 can be shown, radii end near it, in fewer balls than a bisection from below would take."""
    asked: list[float] = []

    def prove(radius: float, deadline: float) -> bool:
        asked.append(radius)
        return radius <= 0.7

    margin = torch.ones(2, dtype=torch.float64)
    shells = Shells(margin, None, Shell, [Shell(0.1, margins=margin)])
    grow(shells, prove, 1.0, 40, 1e-3, Compute())
    assert 0.7 * (1 - 3e-3) <= shells.branched() <= 0.7
    assert len(asked) < 25
    assert shells.linear() == 0.1


@pytest.mark.parametrize("end", [0.101, 0.7])
def test_a_trial_ends_with_the_first_ball_that_is_not_proved(end: float) -> None:
    asked: list[float] = []

    def prove(radius: float, deadline: float) -> bool:
        asked.append(radius)
        return radius <= end

    shells = Shells(
        torch.ones(2, dtype=torch.float64), None, Shell, [Shell(0.1, margins=torch.ones(2).double())]
    )
    grow(shells, prove, 1.0, 40, 1e-3, Compute(), trial=True)
    assert asked[0] == pytest.approx(0.1 * (1 + 1 / 64))
    assert (len(asked) == 1) == (end < asked[0])
    assert shells.branched() <= end
    assert end < asked[0] or shells.branched() >= 0.69


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
def test_the_attack_finds_what_gradients_at_the_centre_point_to(norm: Norm) -> None:
    """A network that is nearly affine: the nearest example lies along the gradient, which noise rarely meets."""
    rng = np.random.default_rng(5)
    graph = chain([tensor(rng, 20, 30), tensor(rng, 2, 20)], ops.ReLU())
    x = torch.tensor(rng.standard_normal((1, 30)))
    label = predict(graph, x[0])
    found = attack(graph, x[0], label, norm, None, Attack(restarts=4, steps=10), Compute())
    assert found is not None
    certified = lv.radii(graph, x, plan=Plan(norm, "branching", attack=None), proofs=False)
    assert float(certified.radius[0]) < found.size < 1.6 * float(certified.radius[0])


@pytest.mark.parametrize("beyond", ["a condition", "a slope"])
def test_trees_over_neurons_that_the_checker_does_not_have_are_not_covered(beyond: str) -> None:
    """Maxima are layers of other sizes in the checker: numbers of the search ran beyond them, and ended in an internal error."""
    writing = SimpleNamespace(writer=SimpleNamespace(layers=lambda part: [3, 2]))

    def leaves(number: int, hinted: int) -> Any:
        numbers = torch.tensor([1, hinted])
        hint = Hint(numbers=numbers, slopes=torch.tensor([0.25, 0.5]), betas=torch.tensor([0.0, 2.0]))
        return proof._Proving._leaves(writing, None, {((1, 1), (number, -1)): hint})

    (((first, second), (weights, slopes)),) = leaves(4, 4).items()
    assert (first.layer, first.entry, first.above) == (0, 1, True)
    assert (second.layer, second.entry, second.above) == (1, 1, False)
    assert weights == [0.0, 2.0]
    assert [s.tolist() for s in slopes] == [[0.0, 0.25, 0.0], [0.0, 0.5]]
    with pytest.raises(NotCovered, match="arranges the layers"):
        leaves(5 if beyond == "a condition" else 4, 5 if beyond == "a slope" else 4)
