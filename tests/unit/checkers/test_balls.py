"""Ranges over balls hold what networks do there, in exact arithmetic as well, and wrong rules for them are noticed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.local.bab import LocalBaB
from lipverify.certificates import verify
from lipverify.checkers import NotCovered
from lipverify.checkers.kernel import Condition, curves, jacobians, ranges, signals
from lipverify.checkers.kernel.curves import Curve
from lipverify.checkers.kernel.ranges import Chain, Empty, Ranges, Region
from lipverify.checkers.theories.radii import largest_where
from lipverify.falsify import Search
from lipverify.frontends.builder import Builder
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.op import Op
from tests.networks import tensor
from tests.tiers import FULL, tier
from tests.unit.checkers.graphs import known_of

QUICK = Search(seconds=0.1)
KINKS: list[Callable[[], Op]] = [
    ops.ReLU,
    ops.Abs,
    lambda: ops.LeakyReLU(0.1),
    lambda: ops.LeakyReLU(-0.5),
    lambda: ops.LeakyReLU(1.7),
]


def network(rng: np.random.Generator, op: Op, widths: tuple[int, ...] = (4, 9, 8, 7, 3)) -> Graph:
    """Dense layers with biases, a batch normalisation, a shortcut, a maximum, and a constant that is subtracted."""
    b = Builder(symbolic_batch=True)
    v = b.input((1, widths[0]), 0)
    v = b.minus(v, tensor(rng, widths[0]))
    for index, (n, m) in enumerate(itertools.pairwise(widths)):
        b.where = f"layer{index}"
        v = b.linear(v, tensor(rng, m, n, scale=n**-0.5), tensor(rng, m, scale=0.3))
        if index == 0:
            channel = [tensor(rng, m) for _ in range(3)]
            v = b.batch_norm(v, *channel, tensor(rng, m).abs() + 0.2, 1e-3)
        if index < len(widths) - 2:
            v = b.plus(b.elementwise(op, v), b.times(v, tensor(rng, m, scale=0.1)))
            v = b.maximum(v, b.minus(v, tensor(rng, m, scale=0.2))) if index == 1 else v
    return b.graph([v], Origin())


def region_of(rng: np.random.Generator, size: int, norm: str, count: int = 2) -> lv.Ball:
    box = (-1.0, 1.0) if rng.random() < 0.5 else None
    return lv.Ball(torch.tensor(rng.uniform(-1, 1, (count, size))), 10.0 ** rng.uniform(-2, 0), norm, box)


def values_are_inside(rng: np.random.Generator, kinds: Sequence[Callable[[], Op]] = tuple(KINKS)) -> None:
    """The output at many points of the ball, corners among them, against the checker's range of it."""
    for op, norm in itertools.product(kinds, ("l2", "linf")):
        graph = network(rng, op())
        region = region_of(rng, 4, norm)
        step = torch.tensor(rng.choice([-1.0, 1.0], (300, 2, 4)) * rng.choice([0.3, 1.0, 2.0], (300, 1, 4)))
        step = step if norm == "linf" else step / step.norm(dim=-1, keepdim=True)
        x = region.project(region.center + region.radius * step)
        y = evaluate(graph.to(dtype=torch.float64), x.flatten(0, 1)).reshape(300, 2, -1).numpy()
        for index, known in enumerate(known_of(graph, region)):
            low, high = known.values()
            assert (y[:, index] >= low - 1e-12).all()
            assert (y[:, index] <= high + 1e-12).all()


def slopes_are_below(rng: np.random.Generator, kinds: Sequence[Callable[[], Op]] = tuple(KINKS)) -> None:
    """Gradients at many points of the ball against the checker's bound, in all pairs of norms."""
    order = {"l1": 1, "l2": 2, "linf": np.inf}
    for op, norm in itertools.product(kinds, ("l2", "linf")):
        graph = network(rng, op()).to(dtype=torch.float64)
        region = region_of(rng, 4, norm, 1)
        step = torch.tensor(rng.uniform(-1, 1, (60, 1, 4)))
        step = (
            step
            if norm == "linf"
            else step / step.norm(dim=-1, keepdim=True) * torch.tensor(rng.random((60, 1, 1)))
        )
        x = region.project(region.center + region.radius * step)[:, 0]
        rows = torch.autograd.functional.jacobian(lambda t, g=graph: evaluate(g, t).sum(0), x)
        jacobians = rows.movedim(1, 0).numpy()
        known = known_of(graph, region)[0]
        pairs = (
            itertools.product(order, order) if len(kinds) == len(KINKS) else zip(order, order, strict=True)
        )
        for first, last in pairs:
            bound = known.constant((first, last))
            assert largest_gain(jacobians, order[first], order[last]) <= bound * (1 + 1e-9)


def largest_gain(matrices: np.ndarray, first: float, last: float) -> float:
    """From below: the gain of unit vectors, corners for l_inf, and singular vectors."""
    n = matrices.shape[2]
    tries = [np.array(t) for t in itertools.product((-1.0, 1.0), repeat=n)] + list(np.eye(n))
    tries += [v[0] for v in np.linalg.svd(matrices)[2]]
    gains = [np.linalg.norm(matrices @ t, last, axis=1).max() / np.linalg.norm(t, first) for t in tries]
    return float(max(gains))


def exact_values_are_inside(rng: np.random.Generator) -> None:
    """A ball of radius 0 leaves no room but that for rounding: the value in exact arithmetic lies in it."""
    for _ in range(5):
        layers = [(tensor(rng, m, n), tensor(rng, m)) for n, m in itertools.pairwise((6, 20, 20, 3))]
        b = Builder(symbolic_batch=True)
        v = b.input((1, 6), 0)
        for index, (weight, bias) in enumerate(layers):
            b.where = f"layer{index}"
            v = b.linear(v, weight, bias)
            v = b.elementwise(ops.ReLU(), v) if index < 2 else v
        point = torch.tensor(rng.standard_normal((1, 6)))
        known = known_of(b.graph([v], Origin()), lv.Ball(point, 0.0))[0]
        assert known.neurons().sizes == []  # the sign of every neuron is known
        exact = [Fraction(t) for t in point[0].tolist()]
        for index, (weight, bias) in enumerate(layers):
            rows = zip(weight.tolist(), bias.tolist(), strict=True)
            exact = [
                sum((Fraction(a) * t for a, t in zip(r, exact, strict=True)), Fraction(c)) for r, c in rows
            ]
            exact = [max(t, Fraction(0)) for t in exact] if index < 2 else exact
        low, high = (list(map(Fraction, end.tolist())) for end in known.values())
        assert all(a <= t <= c for a, t, c in zip(low, exact, high, strict=True))
        assert max(c - a for a, c in zip(low, high, strict=True)) < 1e-9


@pytest.mark.parametrize(
    "oracle",
    [
        values_are_inside,
        slopes_are_below,
        exact_values_are_inside,
    ],
)
def test_ranges_hold(oracle: Callable[[np.random.Generator], None]) -> None:
    over_seeds(oracle, tier(2, 4))


def over_seeds(oracle: Callable[[np.random.Generator], None], count: int = 4) -> None:
    for seed in range(count):
        oracle(np.random.default_rng(seed))


def narrowed(old: Callable[..., Any]) -> Callable[..., Any]:
    """Kinks above 0 are overlooked."""
    return lambda curve, low, high: old(curve, np.maximum(low, 0 * low), np.maximum(high, 0 * high))


MUTANTS: dict[str, tuple[object, str, Callable[..., object], Callable[[np.random.Generator], None]]] = {
    "half the secant's offset": (
        curves,
        "secant",
        lambda old: lambda a, b: (old(a, b)[0], old(a, b)[1] / 2),
        values_are_inside,
    ),
    "no line but zero above": (
        jacobians,
        "secant",
        lambda old: lambda a, b: (old(a, b)[0], 0 * a),
        slopes_are_below,
    ),
    "the kink's lines exchanged": (
        Curve,
        "_kinked",
        lambda old: lambda *args: old(*args)._replace(under=old(*args).over, over=old(*args).under),
        values_are_inside,
    ),
    "always the right slope": (
        Curve,
        "slopes",
        lambda old: lambda c, a, b: (np.ones_like(a), np.ones_like(a)),
        values_are_inside,
    ),
    "kinks inside are overlooked": (Curve, "slopes", narrowed, slopes_are_below),
    "a sum in place of a matrix's norm": (
        jacobians,
        "_norm",
        lambda old: lambda m: float(np.abs(m).mean()),
        slopes_are_below,
    ),
    "a mean in place of a length": (
        jacobians,
        "_length",
        lambda old: lambda v, n: float(np.abs(v).max()),
        slopes_are_below,
    ),
    "rows without their constants": (
        jacobians,
        "_summed",
        lambda old: lambda g, squared: old(g._replace(high=g.low), squared),
        slopes_are_below,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_rules_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, what, change, oracle = MUTANTS[name]
    monkeypatch.setattr(where, what, change(getattr(where, what)))
    with pytest.raises((AssertionError, NotCovered)):  # or bounds from two rules contradict each other
        over_seeds(oracle)


def test_an_l2_ball_is_no_smaller_than_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def smaller(
        self: Chain, ball: Region | None = None, part: bool = False, old: Any = Chain.__init__
    ) -> None:
        old(self, None if ball is None else ball._replace(radius=ball.radius / 2), part)

    monkeypatch.setattr(Chain, "__init__", smaller)
    with pytest.raises(AssertionError):
        over_seeds(values_are_inside)


def test_roundings_that_are_not_charged_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ranges, signals):
        monkeypatch.setattr(module, "gamma", lambda count: 0.0)
        monkeypatch.setattr(module, "TINY", 0.0)
    with pytest.raises(AssertionError):
        exact_values_are_inside(np.random.default_rng(0))


def test_certificates_over_balls_survive_the_disk(rng: np.random.Generator, tmp_path: Path) -> None:
    graph = network(rng, ops.ReLU())
    region = lv.Ball(torch.tensor(rng.standard_normal((2, 4))), 0.2, "linf", (-4, 4))
    names = ["local", "local:interval", "lipsdp", "local-sdp"]
    found = lv.audit(graph, norm="linf", region=region, analyzers=names, search=QUICK)
    for name, certificate in found.certificates.items():
        assert str(certificate.rigour) == "checked", (name, certificate.unchecked)
        path = tmp_path / f"{name.replace(':', '-')}.json"
        certificate.save(path)
        verdict = verify(path, graph)
        assert verdict.upper == certificate.upper.tolist()
        assert "2 centres with digest" in verdict.claim
        with pytest.raises(NotCovered):  # ranges are in floating point
            verify(path, graph, exact=True)


def test_an_audit_says_for_every_centre_whether_it_is_checked() -> None:
    """Around 1 a sine goes through many periods, around -1 it reads zeros."""
    b = Builder(symbolic_batch=True)
    v = b.elementwise(ops.ReLU(), b.times(b.input((1, 2), 0), torch.full((2,), 1000.0)))
    graph = b.graph([b.elementwise(ops.Sin(), v)], Origin())
    region = lv.Ball(torch.tensor([[-1.0, -1.0], [1.0, -1.0]]), 0.5, "linf")
    row = lv.audit(graph, norm="linf", region=region, analyzers=["local:interval"], search=QUICK).to_json()[
        "results"
    ][0]
    assert row["rigour"] == "real"
    assert row["checked"] == [True, False]
    assert "half periods" in row["unchecked"]


def test_trees_of_parts_are_proved_part_by_part(rng: np.random.Generator) -> None:
    """Splits of activations and of the input, parts that are empty, trees for single outputs and for all."""
    kinds = Counter[str]()
    pairs = list(itertools.product((ops.ReLU(), ops.LeakyReLU(0.1)), ("l2", "linf")))
    for op, norm in pairs if FULL else (pairs[0], pairs[-1]):
        graph = simple(rng, op)
        region = lv.Ball(torch.tensor(rng.standard_normal((2, 3))), 0.5, norm)
        kinds += kinds_of_parts(graph, norm, region)
    assert kinds["jacobian"] > 20
    assert kinds["empty"] > 0


def kinds_of_parts(graph: Graph, norm: str, region: lv.Ball) -> Counter[str]:
    """How many parts of the trees of `local-bab`, which check, are proved in each way."""
    found = lv.audit(graph, norm=norm, region=region, analyzers=[LocalBaB(leaves=tier(12, 24))], search=QUICK)
    certificate = found.certificates["local-bab"]
    assert str(certificate.rigour) == "checked", certificate.unchecked
    assert verify(certificate, graph).upper == certificate.upper.tolist()
    return Counter(step["step"] for step in certificate.issued.document["proof"]["steps"])


def simple(rng: np.random.Generator, op: Op) -> Graph:
    b = Builder(symbolic_batch=True)
    v = b.input((1, 3), 0)
    for index, (n, m) in enumerate(itertools.pairwise((3, 8, 8, 2))):
        b.where = f"layer{index}"
        v = b.linear(v, tensor(rng, m, n, scale=(2 / n) ** 0.5), tensor(rng, m, scale=0.2))
        v = b.elementwise(op, v) if index < 2 else v
    return b.graph([v], Origin())


def test_a_part_is_empty_only_where_that_is_shown(rng: np.random.Generator) -> None:
    graph, region = simple(rng, ops.ReLU()), lv.Ball(torch.zeros(1, 3), 1.0, "linf")
    # x_0 >= 1/2 and -x_0 >= -1/4 contradict each other; x_0 >= 1/2 and x_1 >= 1/2 do not.
    for layer, entry, above, shown in ((-1, 0, False, True), (-1, 1, True, False), (0, 0, True, False)):
        other = Condition(layer, entry, 0.25 if layer < 0 else -100.0, above)
        try:
            known = known_of(graph, region, (Condition(-1, 0, 0.5, True), other))[0]
            assert empty(known.ranges) is shown
        except Empty:
            assert shown
    whole = known_of(graph, region, (Condition(0, 0, -1e3, True),))[0].ranges
    above, below = Condition(0, 0, 0.0, True), Condition(0, 0, -1.0, False)
    assert empty(within(whole, (above, below)))
    assert not empty(within(whole, (above._replace(at=-1.0), below._replace(at=0.0))))


def empty(known: Ranges) -> bool:
    """Whether the sum of both conditions shows that no input fulfils them."""
    try:
        return largest_where(known, known.output.rows([-1]), known.conditions, [1.0, 1.0], {}) < 0
    except Empty:
        return True


def within(known: Ranges, conditions: tuple[Condition, ...]) -> Ranges:
    """The same ranges, said to be those of other conditions."""
    known.conditions = conditions
    return known
