"""A policy in a loop with a linear plant: what the constant of policy minus gain proves about runs of the loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lipverify.checkers import derivations
from lipverify.combine.difference import minus
from lipverify.derived.derivation import Derived, Known, certificate_of, derive, needs_region, number
from lipverify.derived.networks import audited, linear
from lipverify.derived.sectors import certified_sector, closed_by_sector, sector
from lipverify.errors import Undecided, UsageError
from lipverify.ir.certificate import Certificate
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.propagation.points import values
from lipverify.results import Audit

Array = NDArray[np.float64]
SLOWEST = 1.0 - 1e-12


def closed_loop(
    policy: Graph | Known | tuple[ArrayLike, ArrayLike],
    dynamics: ArrayLike,
    control: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    radius: float | None = None,
    remainder: float | None = None,
    direction: ArrayLike | None = None,
    analyzers: Sequence[str] | None = None,
    by: str = "constant",
) -> Derived:
    """Whether a loop x+ = A x + B p(x) is stable, and how fast runs come together.

    Statement: everywhere (radius None): for any two runs |x+ - y+|_P <= upper |x - y|_P with upper < 1, |x|_P^2 = x'Px. Near 0:
        runs that start where x'Px <= details["level"] stay there, in the box of entries up to `radius`, and come to 0 by that
        factor a step, if p(0) = 0. With a remainder the plant is x+ = A x + B p(x) + D s(x), |s(x)| <= remainder |x| in the box:
        what a linear plant leaves of one that is not; it adds remainder |D|_P / |x|_P to the factor, at its largest.
    Source: the small gain theorem after a shift of the loop by K, as one matrix inequality (Yakubovich 1971): with L the
        constant of p - K in l2 and M = A + BK, [rate^2 P - M'PM - lam L^2 I, -M'PB; -B'PM, lam I - B'PB] > 0 and P > 0. P and lam
        come from a Riccati equation; both matrices are proved definite in rationals.
    Sound when: the certified network is the policy less the gain, which the certificate of a graph in memory does not know.

    Args:
        policy: the network; or the constant of p - K, a number or certified. dynamics: A [n, n]. control: B [n, m].
        gain: K [m, n], 0 if None. The nearer it is to the policy, the smaller the constant. radius: see above; None: everywhere.
        remainder: see above; a fact about the plant that you state, such as dt g r^2 / 6 for the sine of an angle up to r.
        direction: D [n, k], where it acts; all entries if None.
        by: `constant`, as above, or `sector`: the derivatives of p lie between two matrices in the box of `radius`, and one form
            falls at every corner between them. Narrower than a constant where derivatives are known to have signs. The policy is
            then the network, or the matrices. Of a network the checker computes the ranges of derivatives anew (`checked`); where
            it does not cover it, those of `local` go in, as numbers that nobody checks (`real`).
        analyzers: for p - K; `product` and `lipsdp` everywhere, `local` near 0 if None.

    Raises:
        Undecided: the constant is too large for this loop; it is named with the one that is allowed. UsageError: sizes; a
        constant of balls that do not hold the box, or of any ball everywhere; a policy that does not give 0 at 0 where `radius`
        is given.

    >>> round(closed_loop(.1, [[.9, .1], [0., .8]], [[0.], [1.]]).upper, 3)
    0.972
    """
    a, b = _matrix(dynamics, "dynamics"), _matrix(control, "control")
    if not isinstance(by, str) or by not in ("constant", "sector"):
        raise UsageError(f"a loop is shown stable by constant or by sector, not by {by!r}")
    if radius is not None and not (isinstance(radius, int | float) and 0.0 < radius < math.inf):
        raise UsageError(f"a radius is a finite number above 0, not {radius!r}")
    if by == "sector" or isinstance(policy, tuple):
        return _by_sector(policy, a, b, radius, by, (gain, remainder, direction, analyzers))
    k = np.zeros((b.shape[1], a.shape[0])) if gain is None else _matrix(gain, "gain")
    n, m = b.shape
    if a.shape != (n, n) or k.shape != (m, n):
        raise UsageError(f"dynamics {a.shape}, control {b.shape} and gain {k.shape} do not fit")
    constant = _shifted(policy, k, radius, analyzers) if isinstance(policy, Graph) else policy
    if isinstance(constant, Audit) and (constant.graph.input_shape, constant.graph.output_shape) != (
        (n,),
        (m,),
    ):
        shapes = list(constant.graph.input_shape), list(constant.graph.output_shape)
        raise UsageError(
            f"the audited network maps {shapes[0]} to {shapes[1]}, and policy less gain maps [{n}] to [{m}]"
        )
    if (remainder is not None or direction is not None) and radius is None:
        raise UsageError("a remainder is known in a box: give its radius")
    if remainder is not None and not (isinstance(remainder, int | float) and 0.0 <= remainder < math.inf):
        raise UsageError(f"a remainder is a finite number >= 0, not {remainder!r}")
    if isinstance(constant, Audit | Certificate):
        rule = "loop" if radius is None else "loop-near"
        needs_region(rule, {"dynamics": a, "radius": radius}, certificate_of(constant), "constant")
    upper, plant = number(constant), _Plant(a, b, k)
    if upper < 0.0:
        raise UsageError(f"a constant is not negative, and {upper!r} is")
    found = _fastest(plant, upper)
    allowed = _largest(plant)
    if found is None and allowed == 0.0:
        raise Undecided(
            f"the plant with this gain does not settle by itself (its largest eigenvalue has the size {plant.radius:.6g}): no "
            "constant of policy less gain shows the loop stable; another gain may"
        )
    if found is None:
        raise Undecided(
            f"policy less gain has a constant of at most {upper:.6g}, and this loop is shown stable up to {allowed:.6g}"
        )
    rate, shape, multiplier = found
    given: dict[str, Any] = {
        "constant": constant,
        "rate": rate,
        "shape": shape,
        "multiplier": multiplier,
        **plant._asdict(),
    }
    details = {"constant": upper, "allowed": allowed, "shape": shape.tolist()}
    if radius is None:
        return derive("loop", details, **given)
    level = radius**2 / float(np.linalg.inv(shape).diagonal().max()) * (1.0 - 1e-9)
    details["level"] = level
    if remainder is None:
        return derive("loop-near", details, **given, level=level, radius=radius)
    pushed = np.eye(n) if direction is None else _matrix(direction, "direction")
    if len(pushed) != n:
        raise UsageError(f"dynamics {a.shape} and direction {pushed.shape} do not fit")
    # The margins are far above the error of an eigenvalue; the rule proves both in rationals.
    largest = float(np.linalg.eigvalsh(pushed.T @ shape @ pushed)[-1]) * (1 + 1e-6)
    smallest = float(np.linalg.eigvalsh(shape)[0]) * (1 - 1e-6)
    if not rate + remainder * np.sqrt(largest / smallest) < 1.0:
        room = (1.0 - rate) / np.sqrt(largest / smallest)
        raise Undecided(
            f"the remainder is {remainder:.6g}, and this loop is shown stable for remainders below {room:.6g}"
        )
    return derive("loop-remainder", details, **given, level=level, radius=radius, direction=pushed, remainder=remainder,
                  largest=largest, smallest=smallest)  # fmt: skip


def disturbed(rate: float, policy: Known, disturbance: float, *, amplification: float = 1.0) -> Derived:
    """How far wrong measurements move a loop in the long run.

    Statement: if a step contracts by `rate` for a given control and moves by at most `amplification` times a change of control,
        measurements wrong by at most `disturbance` move the state by at most upper = amplification L disturbance / (1 - rate), L
        the constant of the policy.
    Source: geometric sum.

    >>> round(disturbed(.5, 2., .1).upper, 6)
    0.4
    """
    return derive(
        "disturbed", rate=rate, amplification=amplification, constant=policy, disturbance=disturbance
    )


def largest_constant(dynamics: ArrayLike, control: ArrayLike, digits: int = 9) -> float:
    """The largest constant of a policy for which `closed_loop` shows the loop stable, up to a relative 10^-digits, from below.

    Raises:
        UsageError: matrices that are none; digits other than 1 to 15.

    That is 1 / |(zI - A)^-1 B|, the largest over the unit circle (bounded real lemma); 0 where the plant alone is not stable.

    >>> round(largest_constant([[.9, .1], [0., .8]], [[0.], [1.]]), 6)
    0.141421
    """
    if isinstance(digits, bool) or not isinstance(digits, int) or not 1 <= digits <= 15:
        raise UsageError(f"digits are a whole number from 1 to 15, not {digits!r}")
    a, b = _matrix(dynamics, "dynamics"), _matrix(control, "control")
    return _largest(_Plant(a, b, np.zeros(b.shape[::-1])), digits)


class _Plant(NamedTuple):
    """A [n, n], B [n, m], K [m, n]."""

    dynamics: Array
    control: Array
    gain: Array

    @property
    def closed(self) -> Array:
        return self.dynamics + self.control @ self.gain

    @property
    def radius(self) -> float:
        """Of the spectrum, as an estimate."""
        return float(np.abs(np.linalg.eigvals(self.closed)).max())


def _largest(plant: _Plant, digits: int = 9) -> float:
    if plant.radius >= 1.0:
        return 0.0
    low, high = 0.0, 1.0
    while _holds(plant, high, SLOWEST) is not None and high < 1e12:
        low, high = high, high * 2.0
    while high - low > 10.0**-digits * high and high > 1e-12:
        middle = (low + high) / 2.0
        low, high = (middle, high) if _holds(plant, middle, SLOWEST) is not None else (low, middle)
    return low


def _shifted(policy: Graph, gain: Array, radius: float | None, analyzers: Sequence[str] | None) -> Known:
    if policy.input_shape != (gain.shape[1],) or policy.output_shape != (gain.shape[0],):
        raise UsageError(
            f"the policy maps {list(policy.input_shape)} to {list(policy.output_shape)}, and the gain is {list(gain.shape)}"
        )
    less = minus(policy, linear(torch.from_numpy(gain)))
    if radius is None:
        return audited(less, analyzers or ("product", "lipsdp"))
    center = _rests(policy)
    return audited(less, analyzers or ("product", "lipsdp", "local"), Ball(center, radius, Norm.LINF))


def _rests(policy: Graph) -> Tensor:
    """0 as a batch of one state. Raises UsageError for a policy that does not give 0 there."""
    center = torch.zeros(1, *policy.input_shape, dtype=torch.float64)
    at = values(policy.to(dtype=torch.float64), center)
    if bool(((at.lower > 0.0) | (at.upper < 0.0)).any()):
        raise UsageError(
            f"the policy gives {at.center.flatten().tolist()} at 0: subtract that, or shift the state to where the loop rests"
        )
    return center


def _by_sector(
    policy: Any, a: Array, b: Array, radius: float | None, by: str, others: tuple[Any, ...]
) -> Derived:
    """A network, or two matrices, between which its derivatives lie."""
    if by != "sector" or radius is None or any(value is not None for value in others):
        raise UsageError(
            "a sector is known in a box: give by='sector' and radius, without gain, remainder and analyzers"
        )
    if isinstance(policy, Graph):
        _rests(policy)
        known = certified_sector(policy, radius)
        if known is not None:
            found, low, high = known
            return closed_by_sector(a, b, low, high, radius, found)
        low, high = sector(policy, radius)
    elif isinstance(policy, tuple) and len(policy) == 2:
        low, high = _matrix(policy[0], "the lower end"), _matrix(policy[1], "the upper end")
    else:
        raise UsageError("a sector is that of a network, or a pair of matrices")
    return closed_by_sector(a, b, low, high, radius)


def _fastest(plant: _Plant, constant: float) -> tuple[float, Array, float] | None:
    """The smallest rate for which the inequality was shown, with P and the multiplier."""
    best = _holds(plant, constant, SLOWEST)
    if best is None:
        return None
    low, high = plant.radius, SLOWEST
    for _ in range(30):
        middle = (low + high) / 2.0
        found = _holds(plant, constant, middle)
        low, high, best = (low, middle, found) if found is not None else (middle, high, best)
    return best


def _holds(plant: _Plant, constant: float, rate: float) -> tuple[float, Array, float] | None:
    """P from the Riccati equation of the scaled plant, if the rule takes it."""
    from scipy.linalg import solve_discrete_are

    n, m = plant.control.shape
    forced = (constant**2 * (1.0 + 1e-7) + 1e-14) * np.eye(n)
    try:
        with np.errstate(all="ignore"):
            shape = solve_discrete_are(plant.closed / rate, plant.control / rate, forced, -np.eye(m))
    except (np.linalg.LinAlgError, ValueError, ZeroDivisionError):
        return None
    shape = (shape + shape.T) / 2.0
    if not np.isfinite(shape).all():
        return None
    try:
        derive("loop", constant=constant, rate=rate, multiplier=rate**2, shape=shape, **plant._asdict())
    except UsageError:
        return None
    return rate, shape, rate**2


def _matrix(found: ArrayLike | Tensor, name: str) -> Array:
    matrix = np.asarray(found, dtype=np.float64)
    if (
        matrix.ndim != 2
        or not matrix.size
        or max(matrix.shape) > derivations.WIDEST
        or not np.isfinite(matrix).all()
    ):
        raise UsageError(
            f"{name} is a matrix of finite numbers, of at most {derivations.WIDEST} rows and columns"
        )
    return matrix
