"""Closed forms: what a certified constant says at once about counterfactuals, critics, generators, values, grids, recurrences."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from lipverify.checkers.kernel.arithmetic import above, below, root_above
from lipverify.derived.computed import OfNetwork
from lipverify.derived.derivation import Derived, Known, derive, number
from lipverify.errors import UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.propagation.points import values

_NORMS = {"l1": 1, "l2": 2, "linf": 0}


def stability_tail(
    samples: int, epsilon: float, new: Known, old: Known, *, deviation: float, factor: int = 2
) -> Derived:
    """How likely a new model falls below a counterfactual's stability value.

    Statement: for x_i ~ N(x, deviation^2 I), i <= samples, R = mean of m(x_i) - new |x - x_i|, and a model M with constant `new`
        that does not depend on the samples, with E M(x_i) >= E m(x_i): P(M(x) < R - epsilon) <= upper =
        exp(-samples epsilon^2 / (factor (new + old)^2 deviation^2)). The practical value with |m(x) - m(x_i)| in place of
        new |x - x_i| carries no guarantee.
    Source: concentration of (M - m)(x_i), Lipschitz in normal variables (Boucheron, Lugosi, Massart, theorem 5.6). factor 8 is
        the weaker tail of robust counterfactual explanations for random models.

    Raises:
        UsageError: numbers that have no meaning here.

    >>> round(stability_tail(1000, .05, 1., 1., deviation=.1, factor=8).upper, 7)
    0.0004046
    """
    return derive(
        "stability", samples=samples, factor=factor, epsilon=epsilon, deviation=deviation, old=old, new=new
    )


def q_constant(reward: float, dynamics: Known, discount: float, *, steps: int = 0) -> Derived:
    """A constant of an action value.

    Statement: |Q(s, a) - Q(s', a')| <= upper |(s, a) - (s', a')| for rewards of constant `reward`, a closed loop of constant
        `dynamics` (L_f (1 + L_policy)) and `steps` steps; endless for 0, where discount times dynamics has to be below 1.
    Source: geometric sum (Rachelson, Lagoudakis 2010).

    Raises:
        UsageError: discount times dynamics is not below 1, and no number of steps is given.

    >>> round(q_constant(1., .9, .99).upper, 6), round(q_constant(1., .9, .99, steps=3).upper, 6)
    (9.174312, 2.684881)
    """
    return derive("q", steps=steps, reward=reward, dynamics=dynamics, discount=discount)


def value_error(discount: float, value: Known, distance: float) -> Derived:
    """How far a backup with a wrong model of the transitions is off.

    Statement: |T V - T' V| <= upper = discount L_V W1(P, P'), for a value function of constant `value` and transitions at
        Wasserstein distance at most `distance` from each other in every state.
    Source: Kantorovich and Rubinstein's duality; Asadi, Misra, Littman 2018.

    >>> value_error(.5, 2., .25).upper
    0.25
    """
    return derive("value", discount=discount, constant=value, distance=distance)


def generator_tail(generator: Known, distance: float) -> Derived:
    """How likely a feature of generated samples is far from its mean.

    Statement: P(|h - E h| > distance) <= upper = 2 exp(-distance^2 / (2 L^2)) for every 1-Lipschitz h of the output, the input
        standard normal, L the constant of the generator in l2; at most 1.
    Source: Boucheron, Lugosi, Massart, Concentration Inequalities, theorem 5.6.

    >>> round(generator_tail(2., 6.).upper, 6)
    0.022218
    """
    return derive("generator", constant=generator, distance=distance)


def grid_margin(constant: Known, pitch: float, directions: int, *, norm: str = "l2") -> Derived:
    """Which margin at the points of a grid decides everything between them.

    Statement: where every point of a grid of this pitch along `directions` entries of the input has a margin above upper =
        L pitch directions^(1/p) / 2, no point between has another label; L the constant of margins. A point below it decides
        nothing.
    Source: every point is within half a diagonal of a grid point (Wicker, Huang, Kwiatkowska 2018).

    Args:
        constant: a number, the constant of margins in `norm`; or an audit or certificate of the network in l2, whose differences
            of two outputs have at most sqrt 2 times its constant.

    Raises:
        UsageError: a norm that is none of l1, l2, linf, or another than l2 for a certificate; no direction.

    >>> round(grid_margin(1., .1, 2).upper, 7)
    0.0707107
    """
    if not isinstance(norm, str) or norm not in _NORMS:
        raise UsageError(f"{norm!r} is no norm: l1, l2 or linf")
    if isinstance(constant, int | float):
        return derive("grid", directions=directions, norm=_NORMS[norm], constant=constant, pitch=pitch)
    if norm != "l2":
        raise UsageError(
            "certificates that go into a derivation are in l2; state the constant of margins as a number"
        )
    return derive("grid-network", directions=directions, constant=constant, pitch=pitch)


def critic_distance(critic: Graph, first: Tensor, second: Tensor, constant: Known) -> Derived:
    """How far apart two sets of samples are at least, by a critic.

    Statement: the Wasserstein-1 distance (l2) of the two empirical sets is at least lower = |mean g(first) - mean g(second)| / L,
        L the certified constant of the critic; a gradient penalty certifies nothing. Scaling the critic changes nothing.
    Source: Kantorovich and Rubinstein's duality. The means are evaluated with every rounding accounted for, by the checker
        where the constant is certified; the points are written beside the document.

    Args:
        first, second: [count, *input shape].

    Raises:
        UsageError: the critic has more than one output; samples of another shape; a certificate of another network.
    """
    if critic.output.size != 1:
        raise UsageError(f"a critic has one output, this one {critic.output.size}")
    first, second = _points(critic, first), _points(critic, second)
    gap = OfNetwork(lambda: _gap(critic, first, second), (first, second), critic)
    return derive("critic", constant=constant, gap=gap)


def neighbour_slope(network: Graph, points: Tensor, constant: Known, *, neighbours: int = 8) -> Derived:
    """How steep a network is at least, by the steepest edge of a graph of nearest neighbours.

    Statement: no constant of the network (l2) is below lower = |f(x) - f(y)| / |x - y|, for the two points of that edge; beside
        the certified constant it says how far that can be above the truth. On data it is a slope along the manifold of the data.
    Source: definition. Values are evaluated with every rounding accounted for.

    Args:
        points: [count, *input shape], two and more. constant: certified, or a number. neighbours: of every point.

    Raises:
        UsageError: fewer than two points that differ, or points of another shape.
    """
    points = _points(network, points)
    if isinstance(neighbours, bool) or not isinstance(neighbours, int) or neighbours < 1:
        raise UsageError(f"neighbours are a whole number from 1, not {neighbours!r}")
    flat = points.flatten(1)
    found = values(network, points).center.flatten(1)
    best, edge = -1.0, (0, 0)
    for i in range(len(flat)):
        apart = (flat - flat[i]).norm(dim=1)
        apart[apart == 0.0] = math.inf  # the point itself, and copies of it
        near, at = apart.topk(min(neighbours, len(flat)), largest=False)
        slopes = (found[at] - found[i]).norm(dim=1) / near
        if float(slopes.max()) > best and math.isfinite(float(near[slopes.argmax()])):
            best, edge = float(slopes.max()), (i, int(at[slopes.argmax()]))
    if best < 0.0:
        raise UsageError("a slope is between two points that differ")
    first, second = (points[k][None] for k in edge)
    gap = OfNetwork(lambda: _gap(network, first, second), (first, second), network)
    far = OfNetwork(lambda: _root_above(flat[edge[0]], flat[edge[1]]), (first, second), network)
    return derive("slope", {"points": list(edge)}, constant=constant, gap=gap, distance=far)


def _points(network: Graph, points: Tensor) -> Tensor:
    """Points of the network's input, in float64."""
    try:
        points = torch.as_tensor(points)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError("points are an array of numbers") from None
    if tuple(points.shape[1:]) != network.input_shape or not len(points) or points.is_complex():
        raise UsageError(
            f"points are [count, {', '.join(map(str, network.input_shape))}], not {list(points.shape)}"
        )
    points = points.to(torch.float64)
    if not bool(torch.isfinite(points).all()):
        raise UsageError("points are finite numbers")
    return points


def _root_above(x: Tensor, y: Tensor) -> float:
    square = sum(
        ((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(x.tolist(), y.tolist(), strict=True)), Fraction(0)
    )
    return above(root_above(square))


def _gap(network: Graph, first: Tensor, second: Tensor) -> float:
    """|mean f(first) - mean f(second)|_2 from below."""
    one, other = (_mean(values(network, samples)) for samples in (first, second))
    apart = [max(a - d, c - b, Fraction(0)) for a, b, c, d in zip(*one, *other, strict=True)]
    square = sum((x * x for x in apart), Fraction(0))
    return below(square / root_above(square)) if square else 0.0


def _mean(found: Interval) -> tuple[list[Fraction], list[Fraction]]:
    """Both ends of the mean of numbers in ranges [count, *shape], one for every entry."""
    low, high = (
        [sum(map(Fraction, column), Fraction(0)) / len(end) for column in end.flatten(1).T.tolist()]
        for end in (found.lower, found.upper)
    )
    return low, high


def recurrent(inputs: Known, states: Known, steps: int, *, of: str = "last") -> Derived:
    """Constants of h_t = phi(U x_t + W h_(t-1)), t <= steps, h_0 fixed, from |U| and |W| alone, for slopes of phi in [-1, 1].

    Statement: of = last: of the last state in the sequence of inputs (l2): u sqrt(1 + w^2 + ... + w^(2T - 2)). of = sequence: of
        all states: u times the norm of the lower triangular Toeplitz matrix w^(i - j); u / (2 sin(pi / (4T + 2))) for w = 1.
        of = each: of any state in the largest change of an input: u (1 + w + ... + w^(T - 1)). Norms of 1 make no sequence
        1-Lipschitz. `lipsdp` on the unrolled network is tighter.
    Source: the path from x_s to h_t has the gain u w^(t - s); Young's inequality.

    Raises:
        UsageError: no step, or another `of`.

    >>> [round(recurrent(1., 1., 20, of=of).upper, 4) for of in ("last", "sequence", "each")]
    [4.4721, 13.0539, 20.0]
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 0 < steps <= 4096:
        raise UsageError(f"steps are a whole number from 1 to 4096, not {steps!r}")
    if of == "sequence":
        vector = _top(number(states), steps)
        return derive("recurrent-sequence", steps=steps, inputs=inputs, states=states, vector=vector)
    if of not in ("last", "each"):
        raise UsageError(f"{of!r}: last, sequence or each")
    return derive(f"recurrent-{of}", steps=steps, inputs=inputs, states=states)


def _top(states: float, steps: int) -> list[float]:
    """The leading right singular vector of the Toeplitz matrix, kept away from 0; the rule needs no more of it than that."""
    with np.errstate(all="ignore"):
        powers = np.minimum(states ** np.arange(steps, dtype=float), 1e100)
    matrix = np.tril(powers[np.abs(np.subtract.outer(np.arange(steps), np.arange(steps)))])
    scale = matrix.max() or 1.0
    vector = np.abs(np.linalg.svd(matrix / scale)[2][0])
    return np.maximum(vector, vector.max() * 1e-12).tolist()  # type: ignore[no-any-return]
