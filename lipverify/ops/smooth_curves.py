"""Slopes, boxes and gains of the smooth activations of `lipverify.ops.smooth`.

Numbers in the tables are proven by interval bisection in tests/unit/ops/test_curves.py, the number of turning points by the
argument beside each curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lipverify.errors import UnsupportedModel
from lipverify.ir.interval import Interval
from lipverify.ir.op import Shape
from lipverify.linalg.rounding import down, up
from lipverify.ops.curves import Branch, Curve, Turn, curve, curve_interval, curve_slopes
from lipverify.ops.enclosure import Enclosure, negative_part, positive_part, two_sided
from lipverify.ops.planes import scalar_planes
from lipverify.ops.scalar import box_slopes, uniform_slopes
from lipverify.ops.smooth import (
    CELU,
    ELU,
    GELU,
    SELU,
    Asinh,
    Atan,
    Cos,
    Erf,
    LogSigmoid,
    Mish,
    Sigmoid,
    SiLU,
    Sin,
    Softplus,
    Softsign,
    Tanh,
    Tanhshrink,
)
from lipverify.rules import Slopes, Unbounded, interval, relax, slopes

_CURVES = (Sigmoid, Tanh, Softplus, GELU, SiLU, Mish, Softsign, Tanhshrink, LogSigmoid, Erf, Atan, Asinh)
slopes.register(*_CURVES)(curve_slopes)
interval.register(*_CURVES)(curve_interval)
relax.register(*_CURVES, ELU, SELU, CELU, Sin, Cos)(scalar_planes)


def _bell(x: Enclosure) -> Enclosure:
    """sigmoid(x) sigmoid(-x), the derivative of the sigmoid."""
    return x.sigmoid() * (-x).sigmoid()


@curve.register(Sigmoid)
def _sigmoid(op: Sigmoid) -> Curve:
    # f'' = f' (1 - 2 f) vanishes at 0 only.
    return Curve(
        Branch(lambda x: x.sigmoid()),
        Branch(_bell, (Turn((0.0, 0.0), (0.25, 0.25)),)),
        (0.0, 0.25),
        (0.0, 1.0),
    )


@curve.register(Tanh)
def _tanh(op: Tanh) -> Curve:
    # f' = 1 - f^2 = 4 sigmoid(2x) sigmoid(-2x) without cancellation; f'' = -2 f f' vanishes at 0 only.
    slope = Branch(lambda x: _bell(x * 2.0) * 4.0, (Turn((0.0, 0.0), (1.0, 1.0)),))
    return Curve(Branch(lambda x: x.tanh()), slope, (0.0, 1.0), (-1.0, 1.0))


def _softplus(x: Enclosure) -> Enclosure:
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))."""
    tail = (-(x.abs())).exp().log1p().clipped(0.0, 1.0)
    return Enclosure(x.lower.clamp_min(0.0), x.upper.clamp_min(0.0)) + tail


@curve.register(Softplus)
def _softplus_curve(op: Softplus) -> Curve:
    if not (math.isfinite(op.beta) and op.beta != 0):
        raise UnsupportedModel(f"beta = {op.beta!r} of a softplus is not a finite number other than 0")
    return Curve(Branch(_softplus), Branch(lambda x: x.sigmoid()), (0.0, 1.0), (0.0, math.inf), scale=op.beta)


@curve.register(LogSigmoid)
def _log_sigmoid(op: LogSigmoid) -> Curve:
    return Curve(
        Branch(lambda x: -_softplus(-x)), Branch(lambda x: (-x).sigmoid()), (0.0, 1.0), (-math.inf, 0.0)
    )


def _on(x: Enclosure, constant: float) -> Enclosure:
    """An irrational constant, given as its nearest float64, on the device of x."""
    ends = (torch.tensor(step(constant), dtype=torch.float64, device=x.lower.device) for step in (down, up))
    return Enclosure(*ends)


def _normal(x: Enclosure) -> Enclosure:
    """The distribution function of the standard normal distribution."""
    return (-(x * _on(x, math.sqrt(0.5)))).erfc() * 0.5


def _gelu_slope(x: Enclosure) -> Enclosure:
    density = (x.square() * -0.5).exp() * _on(x, 0.3989422804014327)
    return _normal(x) + x * density


def _gelu_tanh_argument(x: Enclosure) -> Enclosure:
    """2 sqrt(2/pi) (x + 0.044715 x^3): f = x sigmoid of it."""
    return x * (1.0 + x.square() * 0.044715) * _on(x, 1.5957691216057308)


def _gelu_tanh_slope(x: Enclosure) -> Enclosure:
    argument = _gelu_tanh_argument(x)
    speed = (1.0 + x.square() * (3 * _on(x, 0.044715))) * _on(x, 1.5957691216057308)
    return argument.sigmoid() + x * speed * _bell(argument)


@curve.register(GELU)
def _gelu(op: GELU) -> Curve:
    if op.tanh:
        # With s the argument of the sigmoid, f'' = s(1-s)-like positive factor times the even function
        # 2 s' + x s'' - x s'^2 tanh(s/2), which has one positive zero: bisection up to 3, and beyond it
        # 2 s' + x s'' < 4 s' < x s'^2 tanh(s/2).
        return Curve(
            Branch(
                lambda x: x * _gelu_tanh_argument(x).sigmoid(),
                (Turn.near(-0.7524614220710163, -0.1700407505712541),),
                left=0.0,
                far=30.0,
            ),
            Branch(
                _gelu_tanh_slope,
                (
                    Turn.near(-1.4185040087908284, -0.1289930686587718),
                    Turn.near(1.4185040087908284, 1.1289930686587718),
                ),
                left=0.0,
                right=1.0,
                far=30.0,
            ),
            (-0.129, 1.129),
            (-0.17005, math.inf),
        )
    # f'' = density (2 - x^2): turning points of f' exactly at +-sqrt 2.
    return Curve(
        Branch(
            lambda x: x * _normal(x),
            (Turn.near(-0.7517915246935645, -0.1699712074799036),),
            left=0.0,
            far=30.0,
        ),
        Branch(
            _gelu_slope,
            (
                Turn.near(-1.4142135623730951, -0.1289041451851548),
                Turn.near(1.4142135623730951, 1.1289041451851548),
            ),
            left=0.0,
            right=1.0,
            far=30.0,
        ),
        (-0.128905, 1.128905),
        (-0.16998, math.inf),
    )


@curve.register(SiLU)
def _silu(op: SiLU) -> Curve:
    """x sigmoid(beta x) = g(beta x)/beta with g(t) = t sigmoid(t)."""
    if not math.isfinite(op.beta):
        raise UnsupportedModel(f"beta = {op.beta!r} of a SiLU is not finite")
    if op.beta == 0:
        half = Branch(lambda x: Enclosure.of(torch.full_like(x.lower, 0.5)))
        return Curve(Branch(lambda x: x * 0.5), half, (0.5, 0.5))
    # g'' = g-like positive factor times 2 - t tanh(t/2), and t tanh(t/2) increases with |t|: two turning points.
    return Curve(
        Branch(
            lambda t: t * t.sigmoid(),
            (Turn.near(-1.2784645427610738, -0.2784645427610738),),
            left=0.0,
            far=700.0,
        ),
        Branch(
            lambda t: t.sigmoid() + t * _bell(t),
            (
                Turn.near(-2.3993572805154677, -0.0998393201288669),
                Turn.near(2.3993572805154677, 1.0998393201288669),
            ),
            left=0.0,
            right=1.0,
            far=700.0,
        ),
        (-0.09984, 1.09984),
        (-0.27847, math.inf),
        scale=op.beta,
    )


def _mish_gate(x: Enclosure) -> Enclosure:
    """tanh(log(1 + w)) = q / (q + 2) with w = exp(x), q = w (w + 2); 1 - 2 / (q + 2) is within 1e-80 of 1 beyond 100."""
    w = Enclosure(x.lower.clamp(max=100.0), x.upper.clamp(max=100.0)).exp()
    q = w * (w + 2.0)
    gate = (q / (q + 2.0)).clipped(0.0, 1.0)
    return Enclosure(gate.lower, torch.where(x.upper > 100.0, 1.0, gate.upper))


def _mish_slope(x: Enclosure) -> Enclosure:
    w = x.exp()
    q = w * (w + 2.0)
    return q / (q + 2.0) + x * (w * (w + 1.0) * 4.0) / (q + 2.0).square()


@curve.register(Mish)
def _mish(op: Mish) -> Curve:
    # f'' has the sign of 2 (w+1) (w^2+2w+2) + x (2 + 2w - 3w^2 - 2w^3), w = exp(x): negative for x <= -3, where w < .05 makes
    # it < 4.5 - 6, and for x >= 3, where it is at most -4w^3 - 3w^2 + 14w + 10. Between, bisection finds two zeros.
    return Curve(
        Branch(
            lambda x: x * _mish_gate(x),
            (Turn.near(-1.1924312145154952, -0.3088434130172504),),
            left=0.0,
            far=100.0,
        ),
        Branch(
            _mish_slope,
            (
                Turn.near(-2.2563763963607931, -0.1125261223894626),
                Turn.near(1.4905711794854285, 1.0884981612517279),
            ),
            left=0.0,
            right=1.0,
            far=100.0,
        ),
        (-0.11253, 1.0885),
        (-0.30885, math.inf),
    )


@curve.register(Softsign)
def _softsign(op: Softsign) -> Curve:
    return Curve(
        Branch(lambda x: x / (x.abs() + 1.0), left=-1.0, right=1.0, far=2.0**60),
        Branch(lambda x: 1.0 / (x.abs() + 1.0).square(), (Turn((0.0, 0.0), (1.0, 1.0)),)),
        (0.0, 1.0),
        (-1.0, 1.0),
    )


@curve.register(Tanhshrink)
def _tanhshrink(op: Tanhshrink) -> Curve:
    return Curve(
        Branch(lambda x: x - x.tanh()),
        Branch(lambda x: x.tanh().square(), (Turn((0.0, 0.0), (0.0, 0.0)),)),
        (0.0, 1.0),
    )


@curve.register(Atan)
def _atan(op: Atan) -> Curve:
    # f' = 1/(1 + x^2) turns at 0 only; the range ends at pi/2, whose nearest float64 is below it.
    slope = Branch(lambda x: 1.0 / (x.square() + 1.0), (Turn((0.0, 0.0), (1.0, 1.0)),))
    half_pi = up(math.pi / 2)
    return Curve(Branch(lambda x: x.atan()), slope, (0.0, 1.0), (-half_pi, half_pi))


@curve.register(Asinh)
def _asinh(op: Asinh) -> Curve:
    slope = Branch(lambda x: 1.0 / (x.square() + 1.0).sqrt(), (Turn((0.0, 0.0), (1.0, 1.0)),))
    return Curve(Branch(lambda x: x.asinh()), slope, (0.0, 1.0))


# 2 / sqrt(pi) = 1.12837916709551257389...; the nearest float64 is above it or one step below the next.
_TWO_OVER_ROOT_PI = up(1.1283791670955126)


@curve.register(Erf)
def _erf(op: Erf) -> Curve:
    peak = (down(1.1283791670955126), _TWO_OVER_ROOT_PI)
    slope = Branch(lambda x: (-x.square()).exp() * _on(x, 1.1283791670955126), (Turn((0.0, 0.0), peak),))
    return Curve(Branch(lambda x: x.erf()), slope, (0.0, _TWO_OVER_ROOT_PI), (-1.0, 1.0))


def _elu_parameters(op: ELU | SELU | CELU) -> tuple[float, float, float]:
    """(alpha, gamma, scale): gamma * (x above 0, alpha (exp(scale x) - 1) below, of slope alpha scale exp(scale x))."""
    if isinstance(op, CELU):
        if not (op.alpha > 0 and math.isfinite(op.alpha)):
            raise Unbounded(
                f"alpha = {op.alpha!r} of a CELU is not positive: exp(x / alpha) grows without limit"
            )
        return op.alpha, 1.0, op.alpha
    found = (op.alpha, op.gamma, 1.0) if isinstance(op, SELU) else (op.alpha, 1.0, 1.0)
    if not all(math.isfinite(value) for value in found):
        raise UnsupportedModel(f"the parameters {found[:2]} of an exponential linear unit are not finite")
    return found


@slopes.register(ELU, SELU, CELU)
def _elu_slopes(op: ELU | SELU | CELU, box: Interval | None, shape: Shape) -> Slopes:
    """1 above 0 and c exp(..) below, all times gamma; c = alpha (1 for CELU, where alpha cancels). Both at 0."""
    alpha, gamma, divisor = _elu_parameters(op)
    steep = 1.0 if isinstance(op, CELU) else alpha
    if box is None:
        ends = Enclosure.of(torch.tensor([min(0.0, steep), max(1.0, steep)], dtype=torch.float64))
        products = Enclosure(ends.lower.amin(), ends.upper.amax())
        if gamma != 1.0:
            products = products * gamma
        return uniform_slopes(products.lower.item(), products.upper.item(), shape)
    argument = negative_part(box)
    decay = (argument if divisor == 1.0 else argument / divisor).exp().clipped(0.0, 1.0)
    left = decay if steep == 1.0 else decay * steep
    found = two_sided(box, left, Enclosure.of(torch.ones_like(left.lower)))
    return box_slopes(found if gamma == 1.0 else found * gamma, shape)


@interval.register(ELU, SELU, CELU)
def _elu_interval(op: ELU | SELU | CELU, box: Interval) -> Interval:
    """Monotone on either side of 0, where it is 0."""
    alpha, gamma, divisor = _elu_parameters(op)
    argument = negative_part(box)
    left = (argument if divisor == 1.0 else argument / divisor).expm1() * alpha
    found = two_sided(box, left, positive_part(box))
    return found if gamma == 1.0 else found * gamma


def _cosine_range(at_ends: Callable[[Tensor], Tensor], x: Enclosure, phase: float) -> Enclosure:
    """Range of cos(x - phase pi) over boxes, `at_ends` evaluating it: extrema (-1)^k where x = (k + phase) pi."""
    values = [torch.nan_to_num(at_ends(end), nan=0.0) for end in (x.lower, x.upper)]
    low, high = torch.minimum(*values), torch.maximum(*values)
    margin = 2.0**-49
    turns = Enclosure(x.lower / math.pi - phase, x.upper / math.pi - phase)
    first = turns.lower - (turns.lower.abs() + 1.0) * margin
    last = turns.upper + (turns.upper.abs() + 1.0) * margin
    endless = ~(x.lower.isfinite() & x.upper.isfinite())
    peak = endless | (2.0 * torch.floor(last / 2.0) >= first)
    valley = endless | (2.0 * torch.floor((last - 1.0) / 2.0) + 1.0 >= first)
    low = torch.where(valley, -1.0, low - margin)
    high = torch.where(peak, 1.0, high + margin)
    return Enclosure(low, high).clipped(-1.0, 1.0)


@interval.register(Sin)
def _sin_interval(op: Sin, box: Interval) -> Interval:
    return _cosine_range(torch.sin, Enclosure.of(box), 0.5)


@interval.register(Cos)
def _cos_interval(op: Cos, box: Interval) -> Interval:
    return _cosine_range(torch.cos, Enclosure.of(box), 0.0)


@slopes.register(Sin)
def _sin_slopes(op: Sin, box: Interval | None, shape: Shape) -> Slopes:
    if box is None:
        return uniform_slopes(-1.0, 1.0, shape)
    return box_slopes(_cosine_range(torch.cos, Enclosure.of(box), 0.0), shape)


@slopes.register(Cos)
def _cos_slopes(op: Cos, box: Interval | None, shape: Shape) -> Slopes:
    if box is None:
        return uniform_slopes(-1.0, 1.0, shape)
    return box_slopes(-_cosine_range(torch.sin, Enclosure.of(box), 0.5), shape)
