"""Random pairs of networks of one structure, and samples of their difference held against its proved range."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

import lipverify as lv
from lipverify.combine import difference
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph
from lipverify.ir.op import Op
from tests.networks import random_graph

SAMPLES = 200


@dataclass
class Outcome:
    """pairs: how many were bounded; reach: the largest share of a range that samples fill; wrong: sentences, any is a bug."""

    pairs: int = 0
    refused: int = 0
    reach: float = 0.0
    apart: int = 0


def changed(op: Op, rng: np.random.Generator, noise: float) -> Op:
    """The operator with every stored tensor of floating point moved a little; variances stay positive."""
    moved = {}
    for field in fields(op):
        value = getattr(op, field.name)
        if isinstance(value, Tensor) and value.is_floating_point():
            step = torch.tensor(rng.standard_normal(tuple(value.shape)), dtype=torch.float64)
            fresh = value.double() * (1.0 + noise * step) + (0.0 if field.name == "var" else noise * step)
            moved[field.name] = fresh.abs() if field.name == "var" else fresh
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
