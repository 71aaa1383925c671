"""Closed forms over certified constants: a fixed list, each a theorem, evaluated in rationals.

Searches are outside: weights, vectors and matrices come as data, and every rule says what has to hold of them. The rules and
their sources stand in docs/derived.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.arithmetic import above, below, need, root_above, trimmed

Matrix = Sequence[Sequence[Fraction]]
FREE = 10
"""Derivatives of a sector that are not known exactly: it has 2^FREE corners at most."""
RATIONAL = 1 << 10
"""Operations that one of rationals counts as."""


@dataclass(frozen=True)
class Rule:
    """A theorem. takes: the kind of every number: `count`, `number` (any), `size` (not negative), `constant` (not negative, may
    come with a certificate), `assumed` (a constant that comes with none), and lists (`numbers`, `sizes`, `constants`) and square
    or oblong `matrix`.

    side: whether the value is never below (`upper`) or never above (`lower`) what the statement speaks of.
    """

    takes: Mapping[str, str]
    side: str
    statement: str
    value: Callable[..., Fraction]


def exponential_above(x: Fraction) -> Fraction:
    """A rational >= exp(-x), x >= 0: e^-1 as often as it goes, and a Taylor sum that ends with a positive term."""
    need(x >= 0, "an exponential that grows")
    x = min(x, Fraction(4096))
    whole = x.numerator // x.denominator
    return trimmed(_taylor(x - whole) * _power(_taylor(Fraction(1)), whole))


def _taylor(x: Fraction) -> Fraction:
    x = -x
    total, term = Fraction(0), Fraction(1)
    for k in range(41):
        total += term
        term = term * x / (k + 1)
    return trimmed(total)


def _power(x: Fraction, count: int) -> Fraction:
    """x^count from above, x >= 0."""
    total = Fraction(1)
    while count:
        if count & 1:
            total = trimmed(total * x)
        x = trimmed(x * x)
        count >>= 1
    return total


def _kept(x: Fraction) -> Fraction:
    """A number >= x >= 0 of a bounded length."""
    need(x < 2**1000, "a number beyond float64")
    return trimmed(x)


def positive_definite(matrix: Matrix) -> bool:
    """Whether a symmetric rational matrix is positive definite: its leading minors, by elimination in integers (Bareiss 1968)."""
    charge(0, RATIONAL * len(matrix) ** 3)
    scale = math.lcm(*(x.denominator for row in matrix for x in map(Fraction, row)))
    a = [[int(x * scale) for x in row] for row in matrix]
    last = 1
    for k, pivots in enumerate(a):
        if pivots[k] <= 0:
            return False
        for i in range(k + 1, len(a)):
            row, factor = a[i], a[i][k]
            a[i] = row[: k + 1] + [
                (row[j] * pivots[k] - factor * pivots[j]) // last for j in range(k + 1, len(a))
            ]
        last = pivots[k]
    return True


def _product(a: Matrix, b: Matrix) -> list[list[Fraction]]:
    columns = list(zip(*b, strict=True))
    charge(0, RATIONAL * len(a) * len(b) * len(columns))
    return [[sum((x * y for x, y in zip(row, c, strict=True)), Fraction(0)) for c in columns] for row in a]


def _transposed(a: Matrix) -> list[list[Fraction]]:
    return [list(row) for row in zip(*a, strict=True)]


# -- the rules


def _stability(
    samples: int, factor: int, epsilon: Fraction, deviation: Fraction, old: Fraction, new: Fraction
) -> Fraction:
    need(
        factor in (2, 8) and deviation * (old + new) > 0,
        "no spread of samples, or another factor than 2 or 8",
    )
    return exponential_above(samples * epsilon**2 / (factor * (old + new) ** 2 * deviation**2))


def _q(steps: int, reward: Fraction, dynamics: Fraction, discount: Fraction) -> Fraction:
    need(discount <= 1, "a discount above 1")
    factor = dynamics * discount
    if steps == 0:
        need(factor < 1, "discount times dynamics is not below 1: no constant over endless time")
        return reward / (1 - factor)
    total = Fraction(0)
    for _ in range(steps):
        total = _kept(1 + factor * total)
    return reward * total


def _value(discount: Fraction, constant: Fraction, distance: Fraction) -> Fraction:
    need(discount <= 1, "a discount above 1")
    return discount * constant * distance


def _grid(directions: int, norm: int, constant: Fraction, pitch: Fraction) -> Fraction:
    need(norm in (0, 1, 2) and directions > 0, "no norm: 1, 2 or 0 (the largest entry)")
    reach = {0: Fraction(1), 1: Fraction(directions), 2: root_above(Fraction(directions))}[norm]
    return constant * pitch * reach / 2


def _network_grid(directions: int, constant: Fraction, pitch: Fraction) -> Fraction:
    return root_above(Fraction(2)) * _grid(directions, 2, constant, pitch)


def _generator(constant: Fraction, distance: Fraction) -> Fraction:
    need(constant > 0, "a constant of 0 leaves nothing to deviate")
    return min(Fraction(1), 2 * exponential_above(distance**2 / (2 * constant**2)))


def _critic(constant: Fraction, gap: Fraction) -> Fraction:
    need(constant > 0, "a critic with the constant 0 separates nothing")
    return gap / constant


def _slope(constant: Fraction, gap: Fraction, distance: Fraction) -> Fraction:
    need(distance > 0, "two points that are one")
    need(gap <= constant * distance, "a slope above the constant: the numbers contradict each other")
    return gap / distance


def _last(steps: int, inputs: Fraction, states: Fraction) -> Fraction:
    total = Fraction(0)
    for _ in range(steps):
        total = _kept(1 + states**2 * total)
    return inputs * root_above(total)


def _each(steps: int, inputs: Fraction, states: Fraction) -> Fraction:
    return _q(steps, inputs, states, Fraction(1)) if steps else Fraction(0)


def _sequence(steps: int, inputs: Fraction, states: Fraction, vector: Sequence[Fraction]) -> Fraction:
    """|T|^2 <= max (T'Tv)_i / v_i for the lower triangular T_ij = states^(i-j) and any v > 0 (Collatz and Wielandt)."""
    need(
        len(vector) == steps and all(v > 0 for v in vector), "the vector has a positive entry for every step"
    )
    forward, running = [], Fraction(0)
    for v in vector:
        running = _kept(states * running + v)
        forward.append(running)
    worst, running = Fraction(0), Fraction(0)
    for moved, v in zip(reversed(forward), reversed(vector), strict=True):
        running = _kept(states * running + moved)
        worst = max(worst, running / v)
    return inputs * root_above(worst)


def _sensitivity(neighbours: int, loss: Fraction, reach: Fraction, heads: Sequence[Fraction], offsets: Sequence[Fraction],
                 tails: Sequence[Fraction], factors: Sequence[Fraction]) -> Fraction:  # fmt: skip
    need(neighbours in (1, 2) and len(heads) == len(offsets) == len(tails) == len(factors),
         "1 (a sample more or less) or 2 (one replaced), and four numbers for every layer")  # fmt: skip
    squares = (
        (t * f * (o + h * reach)) ** 2 for h, o, t, f in zip(heads, offsets, tails, factors, strict=True)
    )
    return neighbours * loss * root_above(trimmed(sum(squares, Fraction(0))))


def _players(couplings: Sequence[Fraction], *lists: Sequence[Fraction]) -> list[Sequence[Fraction]]:
    """Rows of the couplings, once there is one entry for every player in every list."""
    count = len(lists[0])
    need(
        len(couplings) == count * count and all(len(one) == count for one in lists),
        "lists of different numbers of players",
    )
    return [couplings[i * count : (i + 1) * count] for i in range(count)]


def _game(curvature: Sequence[Fraction], shifted: Sequence[Fraction], couplings: Sequence[Fraction],
          weights: Sequence[Fraction], vector: Sequence[Fraction]) -> Fraction:  # fmt: skip
    """A symmetric matrix whose entries off the diagonal are <= 0 has no eigenvalue below min (Mv)_i / v_i, for any v > 0."""
    rows = _players(couplings, curvature, shifted, weights, vector)
    need(
        all(w > 0 for w in weights) and all(v > 0 for v in vector),
        "weights and entries of the vector are positive",
    )
    players = range(len(rows))
    # With u = W^1/2 v: (W^-1/2 M W^-1/2 u)_i / u_i = (Mv)_i / (w_i v_i), without a root.
    return min(
        curvature[i] - shifted[i]
        - sum(((weights[i] * rows[i][j] + weights[j] * rows[j][i]) * vector[j] for j in players if j != i), Fraction(0))
        / (2 * weights[i] * vector[i])
        for i in players
    )  # fmt: skip


def _step(curvature: Sequence[Fraction], shifted: Sequence[Fraction], couplings: Sequence[Fraction],
          weights: Sequence[Fraction], vector: Sequence[Fraction], spread: Sequence[Fraction]) -> Fraction:  # fmt: skip
    """2 margin / beta^2, the margin that of `_game`: beta^2 <= max (N'Nu)_i / u_i for N_ij = (w_i / w_j)^1/2 L_ij >= 0 and
    u = W^1/2 v > 0, v the numbers `spread`."""
    margin = _game(curvature, shifted, couplings, weights, vector)
    need(margin > 0, "no step is safe without a margin above 0")
    rows = _players(couplings, weights, spread)
    need(all(v > 0 for v in spread), "weights and entries of the vector are positive")
    moved = [sum((c * v for c, v in zip(row, spread, strict=True)), Fraction(0)) for row in rows]
    squares = [
        sum((row[j] * w * t for row, w, t in zip(rows, weights, moved, strict=True)), Fraction(0))
        / (weights[j] * spread[j])
        for j in range(len(rows))
    ]
    need(max(squares) > 0, "gradients that never change leave every step safe")
    need(
        max(squares) >= margin**2,
        "a margin above how fast the pseudo-gradient changes: the numbers contradict each other",
    )
    return 2 * margin / max(squares)


def _loop(constant: Fraction, rate: Fraction, dynamics: Matrix, control: Matrix, gain: Matrix, shape: Matrix,
          multiplier: Fraction) -> Fraction:  # fmt: skip
    n, m = len(dynamics), len(control[0])
    need(all(len(row) == n for row in [*dynamics, *gain, *shape]) and len(shape) == len(control) == n and len(gain) == m
         and all(len(row) == m for row in control), "matrices whose sizes do not fit")  # fmt: skip
    need(_transposed(shape) == [list(row) for row in shape] and 0 <= rate < 1 and multiplier > 0,
         "a shape that is not symmetric, or a rate of 1 and more")  # fmt: skip
    moved = _product(control, gain)
    closed = [
        [x + y for x, y in zip(row, other, strict=True)] for row, other in zip(dynamics, moved, strict=True)
    ]
    state, force = _product(shape, closed), _product(shape, control)
    over, cross, under = (
        _product(_transposed(a), b) for a, b in ((closed, state), (closed, force), (control, force))
    )
    square, level = rate**2, multiplier * constant**2
    matrix = [
        *([square * shape[i][j] - over[i][j] - (level if i == j else 0) for j in range(n)] + [-c for c in cross[i]]
          for i in range(n)),
        *([-cross[i][j] for i in range(n)] + [(multiplier if j == k else 0) - under[j][k] for k in range(m)] for j in range(m)),
    ]  # fmt: skip
    need(positive_definite(shape), "the shape is not positive definite")
    need(positive_definite(matrix), "the two matrices do not show that distances shrink")
    return rate


def _stays(radius: Fraction, level: Fraction, shape: Matrix) -> bool:
    """Whether all x with x'Px <= level have entries of size <= radius: e_i' P^-1 e_i <= radius^2 / level, as a definite matrix.

    By Schur: [P, e_i; e_i', radius^2 / level] >= 0; here it is > 0.
    """
    n = len(shape)
    ends = radius**2 / level
    return all(
        positive_definite(
            [
                *([*row, Fraction(int(k == i))] for k, row in enumerate(shape)),
                [*(Fraction(int(k == i)) for k in range(n)), ends],
            ]
        )
        for i in range(n)
    )


def _near(constant: Fraction, rate: Fraction, dynamics: Matrix, control: Matrix, gain: Matrix, shape: Matrix,
          multiplier: Fraction, level: Fraction, radius: Fraction) -> Fraction:  # fmt: skip
    found = _loop(constant, rate, dynamics, control, gain, shape, multiplier)
    need(level > 0 and _stays(radius, level, shape), "the set does not lie in the box")
    return found


def _remainder(constant: Fraction, rate: Fraction, dynamics: Matrix, control: Matrix, gain: Matrix, shape: Matrix,
               multiplier: Fraction, level: Fraction, radius: Fraction, direction: Matrix, remainder: Fraction,
               largest: Fraction, smallest: Fraction) -> Fraction:  # fmt: skip
    """|D s|_P <= sqrt(largest) |s| where D'PD < largest I, and |x| <= |x|_P / sqrt(smallest) where P > smallest I."""
    found = _near(constant, rate, dynamics, control, gain, shape, multiplier, level, radius)
    n, k = len(shape), len(direction[0])
    need(len(direction) == n and all(len(row) == k for row in direction), "matrices whose sizes do not fit")
    pushed = _product(_transposed(direction), _product(shape, direction))
    over = [[(largest if i == j else 0) - pushed[i][j] for j in range(k)] for i in range(k)]
    under = [[shape[i][j] - (smallest if i == j else 0) for j in range(n)] for i in range(n)]
    need(
        smallest > 0 and positive_definite(over) and positive_definite(under),
        "numbers that do not bound the shape",
    )
    found += remainder * root_above(largest / smallest)
    need(found < 1, "the remainder is too large for this loop")
    return found


def _sector(rate: Fraction, dynamics: Matrix, control: Matrix, low: Matrix, high: Matrix, shape: Matrix, level: Fraction,
            radius: Fraction) -> Fraction:  # fmt: skip
    """x'(A + B S)'P(A + B S)x is convex in S: between two matrices it is largest at a corner."""
    n, m = len(dynamics), len(control[0])
    need(all(len(row) == n for row in [*dynamics, *low, *high, *shape]) and len(shape) == len(control) == n
         and len(low) == len(high) == m and all(len(row) == m for row in control), "matrices whose sizes do not fit")  # fmt: skip
    need(_transposed(shape) == [list(row) for row in shape] and 0 <= rate < 1,
         "a shape that is not symmetric, or a rate of 1 and more")  # fmt: skip
    ends = [sorted({a, b}) for rows in zip(low, high, strict=True) for a, b in zip(*rows, strict=True)]
    need(
        all(a <= b for rows in zip(low, high, strict=True) for a, b in zip(*rows, strict=True)),
        "a sector of no numbers",
    )
    need(sum(len(each) > 1 for each in ends) <= FREE, "a sector with too many corners")
    need(positive_definite(shape), "the shape is not positive definite")
    for corner in product(*ends):
        slopes = [list(corner[k * n : (k + 1) * n]) for k in range(m)]
        closed = [
            [x + y for x, y in zip(row, other, strict=True)]
            for row, other in zip(dynamics, _product(control, slopes), strict=True)
        ]
        after = _product(_transposed(closed), _product(shape, closed))
        falls = [[rate**2 * shape[i][j] - after[i][j] for j in range(n)] for i in range(n)]
        need(positive_definite(falls), "the shape does not fall at a corner of the sector")
    need(level > 0 and _stays(radius, level, shape), "the set does not lie in the box")
    return rate


def _network_sector(constant: Fraction, **given: Any) -> Fraction:
    return _sector(**given)


def _disturbed(
    rate: Fraction, amplification: Fraction, constant: Fraction, disturbance: Fraction
) -> Fraction:
    need(rate < 1, "distances that do not shrink have no bound")
    return amplification * constant * disturbance / (1 - rate)


RULES: dict[str, Rule] = {
    "stability": Rule(
        {"samples": "count", "factor": "count", "epsilon": "size", "deviation": "size", "old": "constant", "new": "constant"},
        "upper",
        "at a point x the new model lies more than {epsilon} below the mean of m(y) - {new} |x - y| over {samples} independent "
        "normal samples y of deviation {deviation} around x with probability at most {value}, if the old model m has the "
        "constant {old} and the new one {new} (l2), both have the same mean over such y, and the new one does not depend on "
        "the samples",
        _stability,
    ),
    "q": Rule(
        {"steps": "count", "reward": "size", "dynamics": "constant", "discount": "size"},
        "upper",
        "the action value has a constant of at most {value}, for rewards of constant {reward}, a closed loop of constant "
        "{dynamics}, discount {discount} and {steps} steps (0: endless)",
        _q,
    ),
    "value": Rule(
        {"discount": "size", "constant": "constant", "distance": "size"},
        "upper",
        "backing up the value function with the wrong transition changes it by at most {value}, for discount {discount}, a value "
        "function of constant {constant} and transitions at Wasserstein distance {distance}",
        _value,
    ),
    "critic": Rule(
        {"constant": "constant", "gap": "size"},
        "lower",
        "the Wasserstein distance of the two sets is at least {value}: the critic has the constant {constant} and its means "
        "differ by at least {gap}",
        _critic,
    ),
    "slope": Rule(
        {"constant": "constant", "gap": "size", "distance": "size"},
        "lower",
        "the network has no constant below {value} (l2), and one of {constant}: at two points at most {distance} apart its "
        "values are at least {gap} apart",
        _slope,
    ),
    "generator": Rule(
        {"constant": "constant", "distance": "size"},
        "upper",
        "a 1-Lipschitz function of the generator's output, for normal input, is further than {distance} from its mean with "
        "probability at most {value}, as the generator has the constant {constant} (l2)",
        _generator,
    ),
    "grid": Rule(
        {"directions": "count", "norm": "count", "constant": "assumed", "pitch": "size"},
        "upper",
        "margins above {value} at all points of a grid of pitch {pitch} along {directions} entries of the input leave no "
        "other label between them, if margins have the constant {constant} in the norm {norm} (0: largest entry)",
        _grid,
    ),
    "grid-network": Rule(
        {"directions": "count", "constant": "constant", "pitch": "size"},
        "upper",
        "margins above {value} at all points of a grid of pitch {pitch} along {directions} entries of the input leave no "
        "other label between them, if the network has the constant {constant} (l2), so that differences of two outputs have "
        "sqrt 2 times as much",
        _network_grid,
    ),
    "recurrent-last": Rule(
        {"steps": "count", "inputs": "constant", "states": "constant"},
        "upper",
        "the last state of {steps} steps h = phi(U x + W h) changes at most {value} times as fast as the sequence (l2), for "
        "slopes of phi in [-1, 1], |U| <= {inputs} and |W| <= {states}",
        _last,
    ),
    "recurrent-sequence": Rule(
        {"steps": "count", "inputs": "constant", "states": "constant", "vector": "sizes"},
        "upper",
        "the sequence of {steps} states h = phi(U x + W h) changes at most {value} times as fast as the sequence of inputs (l2), "
        "for slopes of phi in [-1, 1], |U| <= {inputs} and |W| <= {states}",
        _sequence,
    ),
    "recurrent-each": Rule(
        {"steps": "count", "inputs": "constant", "states": "constant"},
        "upper",
        "no state of {steps} steps h = phi(U x + W h) changes by more than {value} times the largest change of an input, for "
        "slopes of phi in [-1, 1], |U| <= {inputs} and |W| <= {states}",
        _each,
    ),
    "sensitivity": Rule(
        {"neighbours": "count", "loss": "constant", "reach": "size", "heads": "constants", "offsets": "sizes",
         "tails": "constants", "factors": "sizes"},
        "upper",
        "the sum of per-sample gradients in the tensors of these layers, each used there alone or with the factor of all its "
        "uses, changes by at most {value} (l2) when {neighbours} (1: a sample comes or goes, 2: one is replaced), for inputs of "
        "norm at most {reach}, a loss of constant {loss}, what comes ahead of the layers of constants {heads} and values "
        "{offsets} at 0, what comes behind them of constants {tails}, and factors {factors} of the layers",
        _sensitivity,
    ),
    "game": Rule(
        {"curvature": "numbers", "shifted": "constants", "couplings": "constants", "weights": "sizes", "vector": "sizes"},
        "lower",
        "the pseudo-gradient is strongly monotone with margin {value} in the inner product of the weights {weights}, if "
        "{curvature} x less the gradient of each player has the constants {shifted} in the player's own variables, and gradients "
        "have the constants {couplings} (row by row) in those of the others",
        _game,
    ),
    "game-step": Rule(
        {"curvature": "numbers", "shifted": "constants", "couplings": "constants", "weights": "sizes", "vector": "sizes",
         "spread": "sizes"},
        "lower",
        "every step below {value} of Euler's or of the classical Runge-Kutta method brings any two strategies together in the "
        "inner product of the weights {weights}, if {curvature} x less the gradient of each player has the constants {shifted} "
        "in the player's own variables, and gradients have the constants {couplings} (row by row, the own variables included)",
        _step,
    ),
    "loop": Rule(
        {"constant": "constant", "rate": "size", "dynamics": "matrix", "control": "matrix", "gain": "matrix", "shape": "matrix",
         "multiplier": "size"},
        "upper",
        "two runs of x+ = A x + B p(x) come together by the factor {value} a step, in the norm of P, if p - K has the constant "
        "{constant} (l2), with A {dynamics}, B {control}, K {gain}, P {shape}",
        _loop,
    ),
    "loop-near": Rule(
        {"constant": "constant", "rate": "size", "dynamics": "matrix", "control": "matrix", "gain": "matrix", "shape": "matrix",
         "multiplier": "size", "level": "size", "radius": "size"},
        "upper",
        "runs of x+ = A x + B p(x) that start where x'Px <= {level} stay there and come to 0 by the factor {value} a step, in "
        "the norm of P, if p(0) = 0 and p - K has the constant {constant} (l2) where all entries are at most {radius} in size, "
        "with A {dynamics}, B {control}, K {gain}, P {shape}",
        _near,
    ),
    "loop-remainder": Rule(
        {"constant": "constant", "rate": "size", "dynamics": "matrix", "control": "matrix", "gain": "matrix", "shape": "matrix",
         "multiplier": "size", "level": "size", "radius": "size", "direction": "matrix", "remainder": "size",
         "largest": "size", "smallest": "size"},
        "upper",
        "runs of x+ = A x + B p(x) + D s(x) that start where x'Px <= {level} stay there and come to 0 by the factor {value} a "
        "step, in the norm of P, if p(0) = 0, and where all entries are at most {radius} in size p - K has the constant "
        "{constant} (l2) and |s(x)| <= {remainder} |x|, with A {dynamics}, B {control}, K {gain}, D {direction}, P {shape}",
        _remainder,
    ),
    "loop-sector": Rule(
        {"rate": "size", "dynamics": "matrix", "control": "matrix", "low": "matrix", "high": "matrix", "shape": "matrix",
         "level": "size", "radius": "size"},
        "upper",
        "runs of x+ = A x + B p(x) that start where x'Px <= {level} stay there and come to 0 by the factor {value} a step, in "
        "the norm of P, if p(0) = 0 and the derivatives of p lie between {low} and {high} where all entries are at most "
        "{radius} in size, with A {dynamics}, B {control}, P {shape}",
        _sector,
    ),
    "loop-sector-network": Rule(
        {"constant": "constant", "rate": "size", "dynamics": "matrix", "control": "matrix", "low": "matrix", "high": "matrix",
         "shape": "matrix", "level": "size", "radius": "size"},
        "upper",
        "runs of x+ = A x + B p(x) that start where x'Px <= {level} stay there and come to 0 by the factor {value} a step, in "
        "the norm of P, if p(0) = 0, for the network p that has the constant {constant} (l2) and derivatives between {low} and "
        "{high} where all entries are at most {radius} in size, with A {dynamics}, B {control}, P {shape}",
        _network_sector,
    ),
    "disturbed": Rule(
        {"rate": "size", "amplification": "size", "constant": "constant", "disturbance": "size"},
        "upper",
        "measurements wrong by {disturbance} move the loop by at most {value} in the long run, for steps that contract by "
        "{rate}, {amplification} times as much state as control, and a policy of constant {constant}",
        _disturbed,
    ),
}  # fmt: skip


def bound(rule: str, value: Fraction) -> float:
    """The value as float64, rounded to the side on which the rule is true."""
    return above(value) if RULES[rule].side == "upper" else below(value)
