"""Smooth and clipped activations over balls: ranges and gradients hold, audits are checked, wrong lines are noticed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.protocol import Compute
from lipverify.certificates import verify
from lipverify.checkers import NotCovered
from lipverify.checkers.kernel import Subject, jacobians, parse_steps, prove
from lipverify.checkers.kernel.curves import Curve
from lipverify.errors import RefutedCertificate, UnreadableCertificate
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.ir.region import Query
from tests.tiers import also, tier
from tests.unit.checkers.graphs import known_of
from tests.unit.checkers.test_balls import (
    QUICK,
    kinds_of_parts,
    network,
    over_seeds,
    simple,
    slopes_are_below,
    values_are_inside,
)

SMOOTH: list[Callable[[], Op]] = [
    ops.Tanh,
    ops.GELU,
    lambda: ops.SiLU(1.702),
    lambda: ops.Softplus(3.0),
    ops.SELU,
    ops.Mish,
    lambda: ops.Clip(-0.5, 0.6),
    ops.Hardswish,
    ops.Sin,
]


def smooth_values_are_inside(rng: np.random.Generator) -> None:
    values_are_inside(rng, SMOOTH)


def smooth_slopes_are_below(rng: np.random.Generator) -> None:
    slopes_are_below(rng, SMOOTH)


@pytest.mark.parametrize("oracle", [smooth_values_are_inside, smooth_slopes_are_below])
def test_ranges_hold(oracle: Callable[[np.random.Generator], None]) -> None:
    over_seeds(oracle, tier(1, 2))


def halved(old: Callable[..., tuple[np.ndarray, np.ndarray]]) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    def wrong(*args: Any) -> tuple[np.ndarray, np.ndarray]:
        low, high = old(*args)
        return low + (high - low) / 4, high - (high - low) / 4

    return wrong


SMOOTH_MUTANTS: dict[
    str, tuple[object, str, Callable[..., object], Callable[[np.random.Generator], None]]
] = {
    "ranges of slopes too narrow": (Curve, "slopes", halved, smooth_slopes_are_below),
    "ranges of values too narrow": (Curve, "around", halved, smooth_values_are_inside),
    "lines at the ends alone": (
        Curve,
        "around",
        lambda old: lambda c, k, a, b: np.sort([c.value(a) - k * a, c.value(b) - k * b], 0),
        smooth_values_are_inside,
    ),
    "one line in place of two around slopes": (
        Curve,
        "bent",
        lambda old: lambda c, a, b: (old(c, a, b)[0], *[sum(old(c, a, b)[1:]) / 2] * 2),
        smooth_slopes_are_below,
    ),
    "planes of products exchanged": (
        jacobians,
        "_coupled",
        lambda old: lambda chord, q, low, high, bend: old(chord, q, high, low, bend),
        smooth_slopes_are_below,
    ),
    "slopes at their middle": (
        jacobians,
        "_products",
        lambda old: (
            lambda *args: (
                old(*args)[0],
                old(*args)[1]._replace(under=0 * args[0], over=0 * args[0]),
            )
        ),
        smooth_slopes_are_below,
    ),
}


@pytest.mark.parametrize("name", SMOOTH_MUTANTS)
def test_wrong_rules_for_smooth_functions_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, what, change, oracle = SMOOTH_MUTANTS[name]
    monkeypatch.setattr(where, what, change(getattr(where, what)))
    with pytest.raises((AssertionError, NotCovered)):
        over_seeds(oracle, 2)


@pytest.mark.parametrize(
    ("op", "norm"),
    [
        (ops.Tanh(), "l2"),
        (ops.GELU(), "linf"),
        *(
            also(case, "four seconds")
            for case in (
                *((ops.Tanh(), "linf"), (ops.GELU(), "l2")),
                *itertools.product((ops.SiLU(), ops.Sigmoid(), ops.Softplus()), ("l2", "linf")),
            )
        ),
    ],
    ids=str,
)
def test_balls_of_smooth_networks_are_checked(op: Op, norm: str, rng: np.random.Generator) -> None:
    """The checker's own bound is no looser than the analyzer's; multipliers bring the slopes they were found for."""
    graph, radius = (network(rng, op), 0.03) if norm == "linf" else (simple(rng, op), 0.4)
    region = lv.Ball(torch.tensor(rng.standard_normal((tier(1, 2), graph.input_shape[0]))), radius, norm)
    names = ["local", "local-sdp", "lipsdp"]
    found = lv.audit(graph, norm=norm, region=region, analyzers=names, search=QUICK)
    for name, certificate in found.certificates.items():
        assert str(certificate.rigour) == "checked", (name, norm, radius, certificate.unchecked)
        assert verify(certificate, graph).upper == certificate.upper.tolist()
    plain = Local(with_product=False).bound(graph, Query(Norm(norm), Norm(norm), region), Compute()).upper
    for known, upper in zip(known_of(graph, region), plain.tolist(), strict=True):
        assert known.constant((norm, norm)) <= upper * (1 + 1e-6)


def test_slopes_closer_than_shown_are_refused(rng: np.random.Generator) -> None:
    """Multipliers may be those of wider slopes than the checker finds, never of narrower ones."""
    known = known_of(simple(rng, ops.Tanh()), lv.Ball(torch.zeros(1, 3), 0.5))[0]
    subject = known.subject
    layers = subject.layers(0, known.last)
    right = {f"w{k}": np.array(known.ranges.slopes[k]) for k in layers}
    ones = {f"d{k}": np.ones(subject.elements.size(k)) for k in layers}
    upper = 1e3
    steps = [
        {"step": "ranges", "region": 0, "conditions": []},
        {
            "step": "multipliers",
            "start": 0,
            "end": known.last,
            "ranges": 0,
            "wider": list(right),
            "blocks": list(ones),
            "weights": None,
            "rows": [0, 2],
            "norms": ["l2", "l2"],
            "limit": upper.hex(),
        },
    ]

    def proves(slopes: dict[str, np.ndarray], ball: Subject = subject) -> None:
        prove(parse_steps(steps, ones | slopes, ball), ball)

    with pytest.raises(
        RefutedCertificate, match="do not prove"
    ):  # ones are no good multipliers; their slopes are right
        proves(right)
    for k, place, change in ((0, (0, 3), 1e-6), (1, (1, 2), -1e-6)):
        wrong = {name: pair.copy() for name, pair in right.items()}
        wrong[f"w{layers[k]}"][place] += change
        with pytest.raises(RefutedCertificate, match="not shown"):
            proves(wrong)
    first = f"w{layers[0]}"
    for malformed in (right[first][:, :-1], np.full_like(right[first], np.nan)):
        with pytest.raises(UnreadableCertificate):
            proves(right | {first: malformed})
    steps[1]["wider"] = [first]
    with pytest.raises(UnreadableCertificate):
        proves(right)


def test_trees_of_parts_are_proved_part_by_part(rng: np.random.Generator) -> None:
    """Splits at the middle of what an activation reads; multipliers in parts, with slopes of their own."""
    kinds = Counter[str]()
    for op in (ops.Tanh(), ops.Clip(-0.5, 0.6)):
        graph = simple(np.random.default_rng(1), op)
        region = lv.Ball(torch.tensor(rng.standard_normal((1, 3))), 0.7, "linf")
        kinds += kinds_of_parts(graph, "linf", region)
    assert kinds["jacobian"] > 10
    assert kinds["multipliers"] > 0
