"""Affine functions around operators: never violated by samples, and as tight as their formulas say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lipverify import ops, rules
from lipverify.ir.interval import Interval
from lipverify.testing.case import DifferenceCase, OperatorCase, SameCase
from lipverify.testing.cases import operator_cases

PLANES = [case for case in operator_cases() if rules.relax.covers(type(case.op))]
CASES = [case for case in PLANES if not isinstance(case, DifferenceCase | SameCase)]
RELATED = [case for case in PLANES if isinstance(case, DifferenceCase | SameCase)]
AFFINE = [case for case in operator_cases() if rules.linear.covers(type(case.op))]
WIDTHS = (0.0, 1e-9, 1e-2, 1.0, 6.0)


def box_of(low: list[float], high: list[float]) -> Interval:
    return Interval(torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64))


def random_boxes(case: OperatorCase, width: float, rng: torch.Generator) -> list[Interval]:
    found = []
    for index, shape in enumerate(case.input_shapes):
        low, high = (max(case.domain(index)[0], -5.0), min(case.domain(index)[1], 5.0))
        center = low + (high - low) * torch.rand(3, *shape, generator=rng, dtype=torch.float64)
        below, above = (width * torch.rand(center.shape, generator=rng, dtype=torch.float64) for _ in "lu")
        found.append(Interval((center - below).clamp(low, high), (center + above).clamp(low, high)))
    return found


def inside(box: Interval, rng: torch.Generator, corners: bool) -> Tensor:
    t = torch.rand(box.lower.shape, generator=rng, dtype=torch.float64)
    point = box.lower + (t.round() if corners else t) * box.width
    return torch.minimum(torch.maximum(point, box.lower), box.upper)


def value(plane: rules.Plane, terms: list[Tensor]) -> Tensor:
    return plane.offset + sum(s * t for s, t in zip(plane.slopes, terms, strict=bool(plane.slopes)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_planes_enclose(case: OperatorCase) -> None:
    rng, op = torch.Generator().manual_seed(5), case.exact()
    for width in WIDTHS:
        boxes = random_boxes(case, width, rng)
        found = rules.relax(op, *boxes)
        for index in range(40):
            xs = [inside(box, rng, index % 3 == 0) for box in boxes]
            y = rules.forward(op, *xs)
            terms = xs
            if found.entries is not None:
                terms = list(xs[0].flatten(1)[:, found.entries].movedim(1, 0))
            # Evaluating forward and plane here rounds; the planes themselves hold exactly.
            slack = 1e-14 * (1.0 + y.abs() + sum(t.abs() for t in terms))
            assert bool((value(found.lower, terms) <= y + slack).all()), f"width {width}"
            assert bool((value(found.upper, terms) >= y - slack).all()), f"width {width}"


@pytest.mark.parametrize("case", RELATED, ids=str)
def test_planes_of_related_inputs_enclose(case: OperatorCase) -> None:
    rng, op = torch.Generator().manual_seed(5), case.exact()
    for _ in range(3):
        boxes = case.random_box(rng)
        found = rules.relax(op, *boxes)
        for xs in case.points(boxes, rng, 24):
            y, terms = rules.forward(op, *xs), list(xs)
            if found.entries is not None:
                terms = list(xs[0].flatten(1)[:, found.entries].movedim(1, 0))
            # The difference of the inputs is rounded here, and so are forward and plane.
            slack = 1e-14 * (1.0 + y.abs() + sum(t.abs() for t in (*terms, *xs) if t.shape == y.shape))
            slack = slack + 1e-14 * max(float(t.abs().max()) for t in terms)
            assert bool((value(found.lower, terms) <= y + slack).all())
            assert bool((value(found.upper, terms) >= y - slack).all())


@pytest.mark.parametrize("case", AFFINE, ids=str)
def test_magnitude_is_the_sum_of_absolute_terms(case: OperatorCase) -> None:
    """Against the matrix itself: |A| x + |b| up to rounding, and at least |A x + b| for mixed signs."""
    rng, op = torch.Generator().manual_seed(6), case.exact()
    xs = [torch.rand(2, *shape, generator=rng, dtype=torch.float64) for shape in case.input_shapes]
    zeros = [torch.zeros_like(x) for x in xs]
    shift = rules.forward(op, *zeros).abs()
    total = shift
    for index, x in enumerate(xs):
        size = x[0].numel()
        basis = torch.eye(size, dtype=torch.float64).reshape(size, *x.shape[1:])
        arguments = [torch.zeros(size, *z.shape[1:], dtype=torch.float64) for z in zeros]
        arguments[index] = basis
        columns = rules.linear(op, *arguments).abs().reshape(size, -1)
        total = total + (x.flatten(1) @ columns).reshape(total.shape)
    found = rules.magnitude(op, *xs)
    assert bool((found >= total * (1 - 1e-12)).all())
    if not isinstance(op, ops.BatchNorm):  # its constant is a difference, of which both terms count
        assert torch.allclose(found, total, rtol=1e-12)


def test_relu_has_the_chord_above_and_the_longer_side_below() -> None:
    found = rules.relax(ops.ReLU(), box_of([-1.0, -3.0, 1.0, -2.0], [3.0, 1.0, 2.0, -1.0]))
    assert found.upper.slopes[0].tolist() == [[0.75, 0.25, 1.0, 0.0]]
    assert found.upper.offset.tolist()[0] == pytest.approx([0.75, 0.75, 0.0, 0.0], rel=1e-12)
    assert found.lower.slopes[0].tolist() == [[1.0, 0.0, 1.0, 0.0]]
    assert found.lower.offset.tolist() == [[0.0] * 4]


def test_tanh_lines_follow_the_curve() -> None:
    """On [-0.1, 0.1] the curve leaves its secant by less than 4e-4; the pieces add little to that."""
    found = rules.relax(ops.Tanh(), box_of([-0.1], [0.1]))
    gap = (found.upper.offset - found.lower.offset).item()
    assert 0 < gap < 6e-4


def test_a_maximum_that_one_term_wins_is_that_term() -> None:
    x, y = box_of([2.0, 0.0], [3.0, 1.0]), box_of([-1.0, 0.0], [2.0, 1.0])
    found = rules.relax(ops.Maximum(), x, y)
    assert [s[0, 0].item() for s in found.upper.slopes] == [1.0, 0.0]
    assert found.upper.offset[0, 0].item() == 0.0
    assert found.upper.offset[0, 1].item() == pytest.approx(0.5, rel=1e-12)


def test_products_touch_their_corners() -> None:
    found = rules.relax(ops.Mul(), box_of([1.0], [2.0]), box_of([-1.0], [3.0]))
    corners = torch.tensor([[1.0, -1.0], [1.0, 3.0], [2.0, -1.0], [2.0, 3.0]], dtype=torch.float64)
    above = (
        found.upper.slopes[0] * corners[:, :1] + found.upper.slopes[1] * corners[:, 1:] + found.upper.offset
    )
    gaps = above[:, 0] - corners.prod(1)
    assert sorted(gaps.tolist())[:3] == pytest.approx([0.0] * 3, abs=1e-12)
