"""Gates with stored constants: slopes and boxes hold every sample, and agree with the known activations they are made of."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.errors import UsageError
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.rules import forward, gain, interval, slopes


def _f32(value: float) -> Fraction:
    return Fraction(float(np.float32(value)))


HALF = Fraction(1, 2)
LINEAR = _f32(math.sqrt(2 / math.pi))
GATES: list[Op] = [
    ops.ErfGate(_f32(math.sqrt(0.5)), HALF),
    ops.ErfGate(1 / _f32(math.sqrt(2.0)), HALF),
    ops.ErfGate(Fraction(-3), Fraction(-2, 7)),
    ops.TanhGate(LINEAR, LINEAR * _f32(0.044715), HALF),
    ops.TanhGate(LINEAR, LINEAR * Fraction("0.05"), HALF),
    ops.TanhGate(Fraction(-2), Fraction(-1, 3), Fraction(3, 4)),
    ops.SigmoidGate(Fraction(1, 3), Fraction(1)),
    ops.SigmoidGate(Fraction(-5, 2), Fraction(-3)),
    ops.ClipGate(Fraction(1, 6), HALF, Fraction(1)),
    ops.ClipGate(_f32(1 / 6), HALF, Fraction(1)),
    ops.ClipGate(Fraction(-2), Fraction(3, 2), Fraction(1, 3)),
    ops.ClipGate(Fraction(1), Fraction(3), Fraction(-1)),
    ops.ClipGate(Fraction(1), Fraction(-1, 2), Fraction(1)),
]


def _derivative(op: Op, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(forward(op, x).sum(), x)
    return found


@pytest.mark.parametrize("op", GATES, ids=repr)
def test_slopes_of_the_line_hold_every_derivative(op: Op) -> None:
    found = slopes(op, None, (1,))
    seen = _derivative(op, torch.linspace(-12, 12, 400_001, dtype=torch.float64).unsqueeze(1))
    assert float(found.lower) <= float(seen.min())
    assert float(found.upper) >= float(seen.max())
    if not isinstance(op, ops.TanhGate):  # a tanh gate far from GELU has slack on purpose
        assert float(found.lower) >= float(seen.min()) - 2e-4
        assert float(found.upper) <= float(seen.max()) + 2e-4


@pytest.mark.parametrize("op", GATES, ids=repr)
def test_boxes_hold_every_value_and_every_slope(op: Op) -> None:
    rng = torch.Generator().manual_seed(11)
    middle = 3 * torch.randn(200, 1, generator=rng, dtype=torch.float64)
    half = torch.rand(200, 1, generator=rng, dtype=torch.float64).pow(4) * 3
    box = Interval(middle - half, middle + half)
    x = torch.linspace(0, 1, 201, dtype=torch.float64) * (box.upper - box.lower) + box.lower
    x = torch.minimum(torch.maximum(x, box.lower), box.upper)
    values, seen = forward(op, x), _derivative(op, x)
    image, found = interval(op, box), slopes(op, box, (1,))
    rounding = 1e-13 * (1 + x.abs().amax(1, keepdim=True))
    assert bool((values >= image.lower - rounding).all())
    assert bool((values <= image.upper + rounding).all())
    assert bool((seen >= found.lower - rounding).all())
    assert bool((seen <= found.upper + rounding).all())
    if not isinstance(op, ops.TanhGate):
        curvature = 20.0 * (box.upper - box.lower) / 200 + 1e-9
        assert bool((image.upper <= values.amax(1, keepdim=True) + curvature).all())
        assert bool((image.lower >= values.amin(1, keepdim=True) - curvature).all())


@pytest.mark.parametrize(
    ("op", "golden", "width"),
    [
        (GATES[0], 1.1289041451851548, 2e-6),
        (GATES[1], 1.1289041451851548, 2e-6),
        (GATES[3], 1.1289930686587718, 1e-5),
        (GATES[6], 1.0998393201288669, 2e-6),
        (GATES[8], 1.5, 1e-12),
    ],
    ids=repr,
)
@pytest.mark.parametrize("norm", list(Norm))
def test_gain_is_the_golden_one(op: Op, golden: float, width: float, norm: Norm) -> None:
    (factor,) = gain(op, ((5,),), norm, norm).factors
    assert golden <= factor + 1e-8  # the stored constants move the tanh form by about 1e-9
    assert factor <= golden + width


def test_clip_gate_is_hardswish() -> None:
    op, known = GATES[8], ops.Hardswish()
    edges = torch.tensor([-4.0, -3.0, -2.0, -1.5, 0.0, 2.0, 3.0, 5.0], dtype=torch.float64)
    pairs = [(a, b) for a in edges for b in edges if a <= b]
    box = Interval(torch.stack([a for a, _ in pairs])[:, None], torch.stack([b for _, b in pairs])[:, None])
    for rule in (lambda o: interval(o, box), lambda o: slopes(o, box, (1,))):
        mine, theirs = rule(op), rule(known)
        torch.testing.assert_close(mine.lower, theirs.lower, rtol=0, atol=1e-12)
        torch.testing.assert_close(mine.upper, theirs.upper, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ops.ErfGate(Fraction(0), HALF),
        lambda: ops.SigmoidGate(Fraction(0), HALF),
        lambda: ops.ClipGate(Fraction(0), HALF, HALF),
        lambda: ops.TanhGate(Fraction(0), HALF, HALF),
        lambda: ops.TanhGate(HALF, -HALF, HALF),
    ],
)
def test_constants_outside_the_proof_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match="Gate"):
        make()


def test_tanh_gate_follows_its_cubic_no_faster_than_claimed() -> None:
    """|dh'/dc| < 5 and |dh/dc| < 3/5 for h(y) = y sigmoid(2 y + 2 c y^3): the slack of the slopes and values."""
    y = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    for c in (0.0, 0.01, 0.07, 0.3, 2.0):
        cubic = torch.full_like(y, c).requires_grad_()
        s = 2 * y + 2 * cubic * y**3
        value = y * torch.sigmoid(s)
        bell = torch.sigmoid(s) * torch.sigmoid(-s)
        slope = torch.sigmoid(s) + y * (2 + 6 * cubic * y**2) * bell
        (by_value,) = torch.autograd.grad(value.sum(), cubic, retain_graph=True)
        (by_slope,) = torch.autograd.grad(slope.sum(), cubic)
        assert float(by_value.abs().max()) < 0.6
        assert float(by_slope.abs().max()) < 5.0
