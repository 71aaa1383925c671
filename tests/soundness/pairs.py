"""Random pairs of networks of one structure, and samples of their difference held against its proved range."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lipverify as lv
from lipverify import ops, rules
from lipverify.analyzers.protocol import Compute
from lipverify.combine import carry, difference
from lipverify.errors import LipverifyError, UnsupportedModel
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.op import Op
from lipverify.ops import change
from lipverify.questions.deviation_proof import Asked, certified
from lipverify.rules import Plane, Relaxation
from lipverify.testing import replaced_rule
from tests.networks import chain, random_graph

SAMPLES = 200
PROVED = 20
"""Of so many pairs one has its deviation proved by the checker."""


@dataclass
class Outcome:
    """pairs: how many were bounded; reach: the largest share of a range that samples fill; apart: pairs whose structures differ;
    proved: pairs with a certificate; unproved: without one, though one was asked for; wrong: sentences, any is a bug."""

    pairs: int = 0
    refused: int = 0
    reach: float = 0.0
    apart: int = 0
    proved: int = 0
    unproved: int = 0
    processor_seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def __add__(self, other: Outcome) -> Outcome:
        both = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Outcome(**{name: max(a, b) if name == "reach" else a + b for name, a, b in both})

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Outcome:
        """What `to_json` wrote."""
        return cls(**{f.name: document[f.name] for f in fields(cls)})


def changed(op: Op, rng: np.random.Generator, noise: float) -> Op:
    """The operator with every stored tensor of floating point moved a little; variances stay positive."""
    moved = {}
    for entry in fields(op):
        value = getattr(op, entry.name)
        if isinstance(value, Tensor) and value.is_floating_point():
            step = torch.tensor(rng.standard_normal(tuple(value.shape)), dtype=torch.float64)
            fresh = value.double() * (1.0 + noise * step) + (0.0 if entry.name == "var" else noise * step)
            moved[entry.name] = fresh.abs() if entry.name == "var" else fresh
    return replace(op, **moved) if moved else op


def copy_of(graph: Graph, rng: np.random.Generator, noise: float) -> Graph:
    """A changed copy: some operators moved by noise, others as they are."""
    nodes = tuple(
        replace(node, op=changed(node.op, rng, noise) if rng.random() < 0.8 else node.op)
        for node in graph.nodes
    )
    return replace(graph, nodes=nodes)


def region_of(graph: Graph, rng: np.random.Generator) -> lv.Ball:
    """Two balls of any size."""
    center = torch.tensor(rng.standard_normal((2, *graph.input_shape)))
    return lv.Ball(center, float(10.0 ** rng.uniform(-4, 0.5)), "linf" if rng.random() < 0.5 else "l2")


def inside(ball: lv.Ball, rng: np.random.Generator) -> Tensor:
    """[samples, balls, *shape]: centres, corners, points on the sphere, and points inside."""
    step = torch.tensor(rng.standard_normal((SAMPLES, *ball.center.shape)))
    step[::3] = step[::3].sign()
    step[1::3] = 10.0 * step[1::3]
    step[0] = 0.0
    return ball.project(ball.center + ball.radius * step)


def check(seed: int, outcome: Outcome) -> None:
    """One pair: no sampled difference leaves the range of the carried graph, by interval arithmetic or by linear bounds.

    Raises:
        AssertionError: one does; with the seed.
    """
    rng = np.random.default_rng(seed)
    f = random_graph(rng, layers=4)
    g = copy_of(f, rng, float(10.0 ** rng.uniform(-9, 0)))
    if rng.random() < 0.1:
        g = random_graph(rng, layers=4)
        if g.input_shape != f.input_shape or g.output.size != f.output.size:
            g = f
    found = difference(f, g)
    outcome.apart += bool(found.apart)
    ball = region_of(f, rng)
    x = inside(ball, rng)
    parts = [lv.evaluate(graph.to(dtype=torch.float64), x.flatten(0, 1)).flatten(1) for graph in (f, g)]
    values = (parts[0] - parts[1]).reshape(SAMPLES, len(ball), -1)
    size = (parts[0].abs() + parts[1].abs()).amax(1).reshape(SAMPLES, len(ball), 1)
    for method in ("interval", "linear"):
        try:
            box = lv.bounds(found.graph, ball, method=method).output
        except UnsupportedModel:
            outcome.refused += 1
            return
        lower, upper = box.lower.flatten(1), box.upper.flatten(1)
        slack = 1e-11 * size  # both networks are evaluated in float64 here
        assert bool(((values >= lower - slack) & (values <= upper + slack)).all()), f"seed {seed}, {method}"
        if method == "linear":
            middle, radius = lower / 2 + upper / 2, upper / 2 - lower / 2
            share = ((values - middle).abs() / radius.clamp_min(1e-300))[
                radius.expand_as(values) > slack * 1e3
            ]
            outcome.reach = max(outcome.reach, float(share.max()) if share.numel() else 0.0)
    outcome.pairs += 1
    if seed % PROVED == 0:
        proved = certified(Asked(f, g, ball, "linf", upper.amax(1).tolist(), parts=8), Compute())
        outcome.proved += proved.issued is not None
        outcome.unproved += proved.issued is None
        for k, most in enumerate(proved.upper):
            reached = float((values[:, k].abs() - slack[:, k]).max())
            assert reached <= most, f"seed {seed}: the checker proves {most} where {reached} was found"


def fuzz(seeds: Iterable[int]) -> Outcome:
    """Pairs of many seeds."""
    outcome, started = Outcome(), time.process_time()
    for seed in seeds:
        try:
            check(seed, outcome)
        except (AssertionError, LipverifyError) as error:
            outcome.wrong.append(f"seed {seed}: {type(error).__name__}: {error}")
    outcome.processor_seconds = time.process_time() - started
    return outcome


# -- planted mistakes


@contextmanager
def planted(where: Any, name: str, wrong: Callable[..., Any]) -> Iterator[None]:
    right = getattr(where, name)
    setattr(where, name, lambda *args: wrong(right, *args))
    try:
        yield
    finally:
        setattr(where, name, right)


def _dropped(right: Callable[..., Any], x: Tensor, y: Tensor) -> Any:
    return torch.zeros_like(x.double()), torch.zeros_like(x.double())


def unrounded(right: Callable[..., Any], x: Tensor, y: Tensor) -> Any:
    """What a difference of weights lost by rounding is left out."""
    return right(x, y)[0], torch.zeros_like(x.double())


def _swapped(right: Callable[..., Relaxation]) -> Callable[..., Relaxation]:
    def wrong(op: change.Change, *boxes: Interval) -> Relaxation:
        found = right(op, *boxes)
        high = found.upper
        turned = Plane(tuple(-slope for slope in high.slopes), high.offset)
        return Relaxation(found.lower, turned, found.entries)

    return wrong


def _narrow(right: Callable[..., Interval]) -> Callable[..., Interval]:
    def wrong(op: change.Change, *boxes: Interval) -> Interval:
        found = right(op, *boxes)
        return Interval(found.lower, torch.maximum(found.lower, torch.minimum(found.upper, -found.lower)))

    return wrong


@contextmanager
def _rule(rule: Any, wrong: Callable[..., Any]) -> Iterator[None]:
    with replaced_rule(rule, ops.Change, wrong(rule._answers[ops.Change])):
        yield


MISTAKES: dict[str, Callable[[], Any]] = {
    "(W_f - W_g) h is left out": lambda: planted(carry, "exact_difference", _dropped),
    "the upper plane of a change falls where it should rise": lambda: _rule(rules.relax, _swapped),
    "the chord of the carried difference has its ends swapped": lambda: _rule(rules.interval, _narrow),
}


def noticed(mistake: str, seeds: Iterable[int] = range(60)) -> int | None:
    """The first seed at which the search finds the planted mistake; None: it does not."""
    with MISTAKES[mistake]():
        for seed in seeds:
            try:
                check(seed, Outcome())
            except (AssertionError, lv.InternalError):
                return seed
    return None


def spread_pair() -> tuple[Graph, Graph, Tensor]:
    """Weights 1e8 and 1e-8 whose difference rounds to the larger ones; and the exact value of it at (1, 1)."""
    first = torch.tensor([[1e8, 1e-8]], dtype=torch.float64)
    second = torch.tensor([[-1e-8, 1e8]], dtype=torch.float64)
    f, g = (chain([weight]) for weight in (first, second))
    return f, g, torch.tensor(2e-8, dtype=torch.float64)


def rounding_noticed() -> bool:
    """Whether leaving out what a difference of weights lost by rounding changes the graph of `spread_pair`."""

    def total() -> float:
        nodes = difference(*spread_pair()[:2]).graph.nodes
        own = [n.op.weight for n in nodes if n.name.startswith("d.") and isinstance(n.op, ops.Linear)]
        return float(sum(w.sum() for w in own))

    right = total()
    with planted(carry, "exact_difference", unrounded):
        return total() != right
