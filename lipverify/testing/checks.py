"""Checks that try to refute the rules of an operator with samples; they raise AssertionError when they succeed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipverify import rules
from lipverify.errors import UnsupportedModel
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Input, Op, Shape
from lipverify.rules import Gain, Rule, Unbounded

# The checks evaluate in float64: their own numbers carry a relative error near 1e-13 (Jacobians are sums of at most a few
# hundred products). A wrong rule that is off by less than this is beyond what samples can show.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class OperatorCase:
    """An operator with sample shapes to test it on.

    domains: for each input the range its entries are drawn from (one range counts for all inputs).
    bounded: whether a finite gain exists over the whole space. point_width: how wide the box of a single point may be,
    relative to the result.
    """

    op: Op
    input_shapes: tuple[Shape, ...]
    label: str = ""
    domains: tuple[tuple[float, float], ...] = ((-40.0, 40.0),)
    bounded: bool = True
    point_width: float = 1e-8

    def __str__(self) -> str:
        shapes = "x".join("_".join(map(str, shape)) or "scalar" for shape in self.input_shapes) or "none"
        return f"{self.op.kind()}-{self.label}-{shapes}" if self.label else f"{self.op.kind()}-{shapes}"

    def domain(self, index: int) -> tuple[float, float]:
        """The range of one input."""
        return self.domains[min(index, len(self.domains) - 1)]

    def exact(self) -> Op:
        """The operator with its stored numbers in float64."""
        return self.op.to(dtype=torch.float64)

    def sample(self, rng: torch.Generator, batch: int) -> tuple[Tensor, ...]:
        """Inputs [batch, *shape] in float64: zeros, spikes, ties and noise at several scales, inside the domains."""
        return tuple(
            self._points(rng, batch, shape, self.domain(i)) for i, shape in enumerate(self.input_shapes)
        )

    def _points(self, rng: torch.Generator, batch: int, shape: Shape, domain: tuple[float, float]) -> Tensor:
        size = math.prod(shape)
        rows = []
        for row in range(batch):
            noise = torch.randn(size, generator=rng, dtype=torch.float64)
            kind = row % 8
            if kind == 0:
                values = torch.zeros(size, dtype=torch.float64)
            elif kind in (1, 2):
                # One or two entries dominate all others.
                values = noise * 0.01
                values[torch.randint(max(size, 1), (kind,), generator=rng)[: size * kind]] = 30.0
            elif kind == 3:
                values = torch.full((size,), 1.5, dtype=torch.float64)
            else:
                values = noise * (0.05, 1.0, 3.0, 12.0)[kind - 4]
            rows.append(values)
        stacked = torch.stack(rows) if rows else torch.zeros(0, size, dtype=torch.float64)
        return stacked.clamp(*domain).reshape(batch, *shape)

    def random_box(self, rng: torch.Generator, batch: int = 6) -> tuple[Interval, ...]:
        """Boxes [batch, *shape] around samples: of width 0, tiny, moderate, and many times wider than the operator's bends."""
        boxes = []
        for index, center in enumerate(self.sample(rng, batch)):
            low, high = self.domain(index)
            widths = torch.tensor(
                [(0.0, 1e-9, 0.1, 1.0, 5.0, 20.0)[row % 6] for row in range(batch)], dtype=torch.float64
            )
            shape = (batch, *(1,) * (center.ndim - 1))
            below, above = (
                torch.rand(center.shape, generator=rng, dtype=torch.float64) * widths.reshape(shape)
                for _ in range(2)
            )
            # Touching a bend from either side is the classic way to lose a slope: one box in three starts or ends at 0.
            lower, upper = (center - below).clamp(low, high), (center + above).clamp(low, high)
            if low < 0 < high and batch > 2:
                lower[2], upper[2] = torch.zeros_like(lower[2]), upper[2].clamp(min=0.0)
            boxes.append(Interval(lower, upper))
        return tuple(boxes)


def points_in(box: Interval, rng: torch.Generator, count: int) -> Tensor:
    """Points of a box, [count, batch, *shape]: both ends, the centre, random corners and random points."""
    found = [box.lower, box.upper, torch.minimum(box.upper, torch.maximum(box.lower, box.center))]
    while len(found) < count:
        share = torch.rand(box.lower.shape, generator=rng, dtype=torch.float64)
        if len(found) % 2:
            share = share.round()
        point = box.lower + share * (box.upper - box.lower)
        found.append(torch.minimum(box.upper, torch.maximum(box.lower, point)))
    return torch.stack(found)


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
        for points in zip(*(points_in(box, rng, 24) for box in boxes), strict=True):
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


def check_gain_not_below(case: OperatorCase, seed: int = 0) -> None:
    """No Jacobian and no difference quotient exceeds `gain`, for every pair of norms."""
    op, rng = case.exact(), torch.Generator().manual_seed(seed)
    inputs = case.sample(rng, 16)
    jacobians = _jacobians(op, inputs) if inputs else None
    for norm_in in Norm:
        for norm_out in Norm:
            try:
                found = rules.gain(case.op, case.input_shapes, norm_in, norm_out)
            except Unbounded:
                assert not case.bounded, f"{case}: `gain` refuses a bounded operator"
                continue
            assert case.bounded, f"{case}: `gain` answers for an unbounded operator"
            assert len(found.factors) == len(inputs), (
                f"{case}: {len(found.factors)} factors for {len(inputs)} inputs"
            )
            assert all(math.isfinite(f) and f >= 0 for f in found.factors), f"{case}: factors {found.factors}"
            if jacobians is not None and jacobians.numel():
                directions = _steepest(jacobians, case.input_shapes, found, norm_in, norm_out, rng)
                where = f"{case}: {norm_in} -> {norm_out}"
                _check_directions(jacobians, directions, case.input_shapes, found, norm_in, norm_out, where)
                _check_quotients(op, inputs, directions, case, found, norm_in, norm_out, where)


def _jacobians(op: Op, inputs: Sequence[Tensor]) -> Tensor:
    """Jacobians of single samples, [batch, outputs, all inputs]."""
    rows = []
    for row in range(inputs[0].shape[0]):
        point = tuple(x[row : row + 1] for x in inputs)
        parts = torch.autograd.functional.jacobian(lambda *xs: rules.forward(op, *xs), point)
        outputs = rules.forward(op, *point).numel()
        rows.append(torch.cat([part.reshape(outputs, -1) for part in parts], dim=1))
    return torch.stack(rows)


def _joint(factors: Sequence[float], norms: Sequence[Tensor], joint: Norm) -> Tensor:
    total: Tensor = torch.linalg.vector_norm(
        torch.stack([f * norm for f, norm in zip(factors, norms, strict=True)]), ord=joint.order, dim=0
    )
    return total


def _sizes(shapes: Sequence[Shape]) -> list[int]:
    return [math.prod(shape) for shape in shapes]


def _allowed(directions: Tensor, shapes: Sequence[Shape], found: Gain, norm_in: Norm) -> Tensor:
    """What the gain allows for input changes [..., all inputs]."""
    parts = directions.split(_sizes(shapes), dim=-1)
    return _joint(
        found.factors,
        [torch.linalg.vector_norm(part, ord=norm_in.order, dim=-1) for part in parts],
        found.joint,
    )


def _steepest(
    jacobians: Tensor,
    shapes: Sequence[Shape],
    found: Gain,
    norm_in: Norm,
    norm_out: Norm,
    rng: torch.Generator,
) -> Tensor:
    """Input changes [batch, starts, all inputs] that ascend |J d|_out among those for which the gain allows 1.

    Source: Boyd, "The power method for lp norms", Linear Algebra and its Applications 9 (1974). Starts: unit vectors, ones,
    random signs and noise.
    """
    batch, _, width = jacobians.shape
    starts = [
        torch.eye(width, dtype=torch.float64)[: min(width, 48)],
        torch.ones(1, width, dtype=torch.float64),
    ]
    starts.append(torch.randn(4, width, generator=rng, dtype=torch.float64))
    starts.append(torch.randn(4, width, generator=rng, dtype=torch.float64).sign())
    directions = torch.cat(starts).expand(batch, -1, -1)
    size = _allowed(directions, shapes, found, norm_in)
    directions = directions / torch.where(size > 0, size, 1.0)[..., None]
    for _ in range(12):
        image = directions @ jacobians.mT
        parts = (_dual(image, norm_out) @ jacobians).split(_sizes(shapes), dim=-1)
        slopes = [torch.linalg.vector_norm(part, ord=norm_in.dual.order, dim=-1) for part in parts]
        lengths = _lengths(slopes, found)
        stepped = [
            length[..., None] * _dual(part, norm_in.dual) for length, part in zip(lengths, parts, strict=True)
        ]
        moved = torch.cat(stepped, dim=-1)
        reached, before = (
            torch.linalg.vector_norm(y, ord=norm_out.order, dim=-1) for y in (moved @ jacobians.mT, image)
        )
        directions = torch.where((reached >= before)[..., None], moved, directions)
    return directions


def _dual(vectors: Tensor, norm: Norm) -> Tensor:
    """z with z'v = |v|_norm and dual norm 1 (last axis)."""
    if norm is Norm.L1:
        return torch.where(vectors >= 0, 1.0, -1.0).to(torch.float64)
    if norm is Norm.L2:
        length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        return vectors / length.clamp(min=1e-300)
    largest = vectors.abs().argmax(dim=-1, keepdim=True)
    return torch.zeros_like(vectors).scatter(
        -1, largest, torch.where(vectors.gather(-1, largest) >= 0, 1.0, -1.0).double()
    )


def _lengths(slopes: Sequence[Tensor], found: Gain) -> list[Tensor]:
    """Lengths t_i >= 0 with joint(f_i t_i) <= 1 that maximise sum t_i slope_i; inputs with factor 0 get length 1."""
    factors = [f if f > 0 else 1.0 for f in found.factors]
    ratios = torch.stack([slope / f for slope, f in zip(slopes, factors, strict=True)])
    if found.joint is Norm.LINF:
        shares = torch.ones_like(ratios)
    elif found.joint is Norm.L2:
        shares = ratios / torch.linalg.vector_norm(ratios, dim=0, keepdim=True).clamp(min=1e-300)
    else:
        shares = (ratios == ratios.amax(0, keepdim=True)).to(torch.float64)
        shares = shares / shares.sum(0, keepdim=True)
    return [share / f for share, f in zip(shares, factors, strict=True)]


def _check_directions(
    jacobians: Tensor,
    directions: Tensor,
    shapes: Sequence[Shape],
    found: Gain,
    norm_in: Norm,
    norm_out: Norm,
    where: str,
) -> None:
    reached = torch.linalg.vector_norm(directions @ jacobians.mT, ord=norm_out.order, dim=-1)
    allowed = _allowed(directions, shapes, found, norm_in)
    excess = reached - allowed * (1 + TOLERANCE) - TOLERANCE * 1e-3
    assert bool((excess <= 0).all()), f"{where}: a Jacobian reaches {_worst(reached, allowed)} times the gain"


def _worst(reached: Tensor, allowed: Tensor) -> float:
    return float((reached / allowed.clamp(min=1e-300)).max())


def _check_quotients(
    op: Op,
    inputs: Sequence[Tensor],
    directions: Tensor,
    case: OperatorCase,
    found: Gain,
    norm_in: Norm,
    norm_out: Norm,
    where: str,
) -> None:
    sizes = _sizes(case.input_shapes)
    size = torch.linalg.vector_norm(directions, ord=math.inf, dim=-1, keepdim=True).clamp(min=1e-300)
    here = rules.forward(op, *inputs).reshape(len(inputs[0]), -1)
    for scale in (1e-3, 0.1, 1.0, 10.0):
        for index in range(-12, 0):  # the last starts: dense directions; the first are unit vectors
            step = (scale * directions / size)[:, max(index, -directions.shape[1])]
            parts = [p.reshape(x.shape) for p, x in zip(step.split(sizes, dim=-1), inputs, strict=True)]
            moved = [
                (x + p).clamp(*case.domain(i)) for i, (x, p) in enumerate(zip(inputs, parts, strict=True))
            ]
            there = rules.forward(op, *moved).reshape(here.shape)
            change = torch.cat([(m - x).flatten(1) for m, x in zip(moved, inputs, strict=True)], dim=1)
            reached = torch.linalg.vector_norm(there - here, ord=norm_out.order, dim=-1)
            allowed = _allowed(change, case.input_shapes, found, norm_in)
            # Subtracting two results loses what they were rounded by.
            slack = 1e-13 * (here.abs().sum(-1) + there.abs().sum(-1) + 1.0)
            excess = reached - allowed * (1 + TOLERANCE) - slack
            assert bool((excess <= 0).all()), (
                f"{where}: a pair reaches {_worst(reached, allowed)} times the gain"
            )


Check = Callable[[OperatorCase], None]


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
            check(case, seed)  # type: ignore[call-arg]


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
