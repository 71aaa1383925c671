"""Checks that try to refute the rules of an operator with samples; they raise AssertionError when they succeed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lipverify import rules
from lipverify.errors import UnsupportedModel
from lipverify.ir.interval import Interval
from lipverify.ir.op import Input, Op, Shape
from lipverify.rules import Rule, Unbounded
from lipverify.testing.case import TOLERANCE, OperatorCase
from lipverify.testing.gains import check_gain_not_below


def check_forward_shape(case: OperatorCase, seed: int = 0) -> None:
    """Samples of a batch do not influence each other, inputs stay as they were, and results are finite numbers."""
    op, rng = case.exact(), torch.Generator().manual_seed(seed)
    inputs = case.sample(rng, 5)
    copies = [x.clone() for x in inputs]
    result = rules.forward(op, *inputs)
    for x, copy in zip(inputs, copies, strict=True):
        assert torch.equal(x, copy), f"{case}: forward changes its input"
    assert result.shape[0] == (5 if inputs else 1), (
        f"{case}: the batch axis of forward has size {result.shape[0]}"
    )
    assert bool(result.isfinite().all()), f"{case}: forward is not finite"
    for row in range(5 if inputs else 0):
        alone = rules.forward(op, *(x[row : row + 1] for x in inputs))
        assert alone.shape[1:] == result.shape[1:], f"{case}: the shape of forward depends on the batch"
        _assert_close(alone[0], result[row], f"{case}: forward mixes samples of a batch")


def _assert_close(first: Tensor, second: Tensor, message: str) -> None:
    scale = 1.0 + max((float(t.abs().max()) for t in (first, second) if t.numel()), default=0.0)
    assert bool(((first - second).abs() <= TOLERANCE * scale).all()), message


def check_linear(case: OperatorCase, seed: int = 0) -> None:
    """`linear` is additive and homogeneous, and differs from `forward` by `forward` at 0."""
    op, rng = case.exact(), torch.Generator().manual_seed(seed)
    x, y = case.sample(rng, 8), case.sample(rng, 8)
    both = rules.linear(op, *(2.0 * a - 3.0 * b for a, b in zip(x, y, strict=True)))
    _assert_close(
        both, 2.0 * rules.linear(op, *x) - 3.0 * rules.linear(op, *y), f"{case}: `linear` is not a linear map"
    )
    constant = rules.forward(op, *(torch.zeros_like(a) for a in x))
    _assert_close(
        rules.forward(op, *x),
        rules.linear(op, *x) + constant,
        f"{case}: `linear` is not forward without its constant",
    )


def check_interval_encloses(case: OperatorCase, seed: int = 0) -> None:
    """Results at points of a box lie in `interval` of the box, and a single point has a narrow box around its result."""
    op, rng = case.exact(), torch.Generator().manual_seed(seed)
    for _ in range(3):
        boxes = case.random_box(rng)
        try:
            found = rules.interval(op, *boxes)
        except UnsupportedModel:
            assert not case.bounded, f"{case}: `interval` refuses a box of the operator's domain"
            continue
        for points in case.points(boxes, rng, 24):
            _assert_inside(found, rules.forward(op, *points), f"{case}: a result lies outside `interval`")
    inputs = case.sample(rng, 8)
    result = rules.forward(op, *inputs)
    narrow = rules.interval(op, *(Interval(x, x) for x in inputs))
    assert narrow.lower.shape == result.shape, f"{case}: `interval` has the shape {tuple(narrow.lower.shape)}"
    _assert_inside(narrow, result, f"{case}: a result lies outside `interval` of its point")
    width = case.point_width * (1.0 + float(result.abs().max()) if result.numel() else 1.0)
    assert bool((narrow.width <= width).all()), f"{case}: `interval` of a point is wide"


def _assert_inside(box: Interval, values: Tensor, message: str) -> None:
    # `forward` rounds too: a few ulps of the largest number on the way to the result.
    slack = 1e-13 * (1.0 + (float(values.abs().max()) if values.numel() else 0.0))
    inside = (box.lower - slack <= values) & (values <= box.upper + slack)
    assert bool(inside.all()), message


def check_slopes_enclose(case: OperatorCase, seed: int = 0) -> None:
    """Difference quotients and derivatives inside a box lie in `slopes` of the box, those anywhere in `slopes` of the line."""
    op, rng = case.exact(), torch.Generator().manual_seed(seed)
    shape = case.input_shapes[0]
    everywhere = _line_slopes(case, op, shape)
    for _ in range(4):
        (box,) = case.random_box(rng, batch=12)
        try:
            found = rules.slopes(op, box, shape)
        except UnsupportedModel:
            assert not case.bounded, f"{case}: `slopes` refuses a box of the operator's domain"
            continue
        assert found.lower.shape == found.upper.shape == box.lower.shape, (
            f"{case}: `slopes` has a wrong shape"
        )
        share = torch.linspace(0.0, 1.0, 65, dtype=torch.float64).reshape(-1, *(1,) * box.lower.ndim)
        points = torch.minimum(box.upper, box.lower + share * box.width)
        _check_slopes(op, points, found, f"{case}: a slope lies outside `slopes` of its box")
        if everywhere is not None:
            _check_slopes(op, points, everywhere, f"{case}: a slope lies outside `slopes` of the line")


def _line_slopes(case: OperatorCase, op: Op, shape: Shape) -> rules.Slopes | None:
    try:
        found = rules.slopes(op, None, shape)
    except Unbounded:
        assert not case.bounded, f"{case}: `slopes` of the line refuses a bounded operator"
        return None
    assert case.bounded, f"{case}: `slopes` of the line answers for an unbounded operator"
    return found


def _check_slopes(op: Op, points: Tensor, found: rules.Slopes, message: str) -> None:
    """points: [count, batch, *shape], increasing along the first axis."""
    flat = points.flatten(0, 1).requires_grad_(True)
    values = rules.forward(op, flat)
    (derivative,) = torch.autograd.grad(values.sum(), flat)
    derivative, values = derivative.reshape(points.shape), values.detach().reshape(points.shape)
    steps = points.diff(dim=0)
    wide = steps > 1e-6
    quotients = torch.where(wide, values.diff(dim=0) / steps.clamp(min=1e-6), derivative[1:])
    # The quotient divides the rounding of two values by the step, and the step is at least 1e-6.
    slack = 16 * 2.0**-52 * (1.0 + values.abs().amax()) / steps.clamp(min=1e-6)
    slack = torch.where(wide, slack, 0.0) + TOLERANCE * (1.0 + derivative.abs()[1:])
    for slope, margin in ((derivative[1:], slack), (quotients, slack)):
        inside = (slope >= found.lower - margin) & (slope <= found.upper + margin)
        assert bool(inside.all()), message


Check = Callable[..., None]


def checks_for(case: OperatorCase) -> list[Check]:
    """The checks that apply: one for every rule the operator has."""
    found: list[Check] = [check_forward_shape]
    table: list[tuple[Rule[Any], Check]] = [
        (rules.linear, check_linear),
        (rules.interval, check_interval_encloses),
        (rules.slopes, check_slopes_enclose),
        (rules.gain, check_gain_not_below),
    ]
    kind = type(case.op)
    # An input node has no inputs of its own: nothing to amplify.
    if kind is Input:
        table = table[:-1]
    return found + [
        check
        for rule, check in table
        if rule.covers(kind) and (case.input_shapes or check is not check_linear)
    ]


def check_operator(
    op: Op,
    input_shapes: Sequence[Shape],
    *,
    domain: tuple[float, float] = (-40.0, 40.0),
    bounded: bool = True,
    seeds: int = 3,
) -> None:
    """Runs every check that applies to an operator; for authors of plug-ins.

    Args:
        op: the operator. input_shapes: sample shapes of its inputs, small ones (Jacobians are formed).
        domain: the range of numbers it is meant for. bounded: whether it has a finite gain over the whole space.

    Raises:
        AssertionError: a rule is refuted, with the check and the numbers. UnsupportedModel: it has no `forward` rule.
    """
    case = OperatorCase(op, tuple(tuple(shape) for shape in input_shapes), domains=(domain,), bounded=bounded)
    for check in checks_for(case):
        for seed in range(seeds):
            check(case, seed)


@contextmanager
def replaced_rule(
    rule: Rule[Any], kind: type[Op], function: Callable[..., Any]
) -> Iterator[Callable[..., Any]]:
    """Another answer for one operator type inside a `with` block; gives the present one. For tests of the checks themselves."""
    present = rule._answers[kind]
    rule._answers[kind] = function
    try:
        yield present
    finally:
        rule._answers[kind] = present
