"""Choices that do not jump: functions of straight pieces that meet at a threshold, and what is done with signs."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import where

from lipverify.checkers.reader import model_of_bytes
from lipverify.errors import UnsupportedModel
from lipverify.frontends.building.pieces import Pieces
from lipverify.frontends.onnx import extract_onnx
from tests.onnx_models import agrees, model, node
from tests.torch_functions import check

READ = {
    "above one": (lambda m, x: where(x > 1, x, 1.0), {"Clip": 1}),
    "a tensor of ones": (lambda m, x: where(x > 1, x, torch.ones_like(x)), {"Clip": 1}),
    "from below": (lambda m, x: where(x < 0.5, x, 0.5), {"Clip": 1}),
    "of a shifted tensor": (lambda m, x: where(2 * x + 1 > 0.5, x, -0.25), {"Clip": 1}),
    "turned round": (lambda m, x: where(1 - x > 0.5, x, 0.5), {"Clip": 1}),
    "softly shrunk": (
        lambda m, x: where(x < -0.5, x + 0.5, where(x > 0.5, x - 0.5, 0.0)), {"PiecewiseLinear": 1},
    ),
    "softly shrunk by signs": (lambda m, x: torch.sign(x) * torch.relu(x.abs() - 0.5), {"PiecewiseLinear": 1}),
    "clipped by signs": (lambda m, x: x.abs().clamp(max=2.0) * torch.sign(x), {"Clip": 1}),
    "three slopes": (lambda m, x: where(x > 0, where(x > 1, 2 - x, x), -2 * x), {"PiecewiseLinear": 1}),
    "filled": (lambda m, x: x.masked_fill(x > 2, 2.0), {"Clip": 1}),
    "gated above a threshold": (lambda m, x: (x - 1) * (x > 1), {"Clip": 1, "Scale": 1}),
    "a stretched selu": (lambda m, x: where(x > 0, 1.5 * x, 1.5 * (2 * (torch.exp(x) - 1))), {"SELU": 1}),
    "norms of windows": (lambda m, x: torch.nn.functional.lp_pool1d(x[:, None], 2, 2)[:, 0], None),
}  # fmt: skip
REFUSED = {
    "a step at one": (lambda m, x: where(x > 1, x, 0.0), "not seen to meet"),
    "a gap of one bit": (lambda m, x: where(x > 1, x, 1 - 2.0**-24), "not seen to meet"),
    "another entry's threshold": (lambda m, x: where(x > x.roll(1, 1), x, 0.0), "comparison"),
    "thresholds of their own": (lambda m, x: where(x > m.v, x, m.v), "comparison"),
    "a sign alone": (lambda m, x: torch.sign(x), "jumps"),
    "a sign times what is not 0 there": (lambda m, x: torch.sign(x) * (x.abs() + 0.25), "jumps"),
    "a sign added": (lambda m, x: torch.sign(x) + x, "jumps"),
    "a gate that jumps": (lambda m, x: x * (x > 1), "comparison"),
    "exponentials that do not meet": (
        lambda m, x: where(x > 0, 1.5 * x, 1.25 * (2 * (torch.exp(x) - 1)) + 1), "not seen to meet",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_meets_is_read(name: str) -> None:
    function, kinds = READ[name]
    graph = check(function, (8,))
    if kinds is not None:
        assert {kind: graph.operators().get(kind) for kind in kinds} == kinds


@pytest.mark.parametrize("name", REFUSED)
def test_what_jumps_is_refused(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=reason):
        check(function, (7,))


def test_a_clip_written_as_choices_is_read_on_both_sides_or_refused_by_the_checker() -> None:
    """The checker knows choices by the sign alone: what it does not read stays without a proof, and is not misread."""
    nodes = [node("Greater", ["x", "one"], ["s"]), node("Where", ["s", "x", "one"], ["y"])]
    source = model(nodes, ["N", 6], 13, {"one": np.float32(1)})
    assert agrees(source).operators()["Clip"] == 1
    assert model_of_bytes("m.onnx", source.SerializeToString()).program is None
    jumping = model(
        [nodes[0], node("Where", ["s", "x", "zero"], ["y"])],
        ["N", 6],
        13,
        {"one": np.float32(1), "zero": np.float32(0)},
    )
    with pytest.raises(UnsupportedModel, match="not seen to meet"):
        extract_onnx(jumping)


def drawn(rng: np.random.Generator) -> Pieces:
    """A continuous function of one to five straight pieces with small rational numbers."""
    knots = tuple(Fraction(int(k), 4) for k in np.unique(rng.integers(-12, 13, rng.integers(0, 5))))
    slopes = [Fraction(int(s), 2) for s in rng.integers(-3, 4, len(knots) + 1)]
    lines = [(slopes[0], Fraction(int(rng.integers(-4, 5)), 2))]
    for knot, slope in zip(knots, slopes[1:], strict=True):
        a, c = lines[-1]
        lines.append((slope, a * knot + c - slope * knot))
    return Pieces(knots, tuple(lines))


def test_compositions_are_those_of_the_functions() -> None:
    rng = np.random.default_rng(0)
    points = [Fraction(int(n), 16) for n in rng.integers(-160, 161, 60)]
    for _ in range(60):
        outer, inner = drawn(rng), drawn(rng)
        both = outer.after(inner)
        assert all(a < b for a, b in zip(both.knots, both.knots[1:], strict=False))
        for x in [*points, *inner.knots, *both.knots]:
            assert both.at(x) == outer.at(inner.at(x))
