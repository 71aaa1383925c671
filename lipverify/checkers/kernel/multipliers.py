"""LipSDP from multipliers alone: the matrix is assembled from the neurons, then one Cholesky decides."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from lipverify.checkers.kernel import arithmetic as arith
from lipverify.checkers.kernel import exact as integers
from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.arithmetic import Array
from lipverify.checkers.kernel.neurons import Differences
from lipverify.checkers.kernel.signals import INPUT, ONE, Signal
from lipverify.errors import NotCovered

MAX_ROWS = 10_000


def multipliers_hold(found: Differences, output: Signal, multipliers: Sequence[Array], upper: float,
                     weights: Array | None = None, exact: bool = False) -> bool:  # fmt: skip
    """Whether |f(x) - f(y)|_2 <= upper |x - y|_2 is proved for the rows `output`; with weights tau: upper |x - y|_inf.

    Statement: with D > 0 diagonal, J'g = V0'g + U'c, b = V'g + C'c, c_i between 0 and q_i b_i, E = D diag(q), the matrix

            | T   U'               V0'   |
        M = | U   2D - EC' - CE   -EV'   |  >= 0  gives  |T^-1/2 J'g|^2 <= |T^-1/2 (V0'g + U'c)|^2 + 2 c'D(q b - c) <= rho |g|^2,
            | V0  -VE             rho    |

        T = I, rho = upper^2; or T = diag(tau), rho sum(tau) = upper^2: |J d|^2 <= rho d'T d <= rho sum(tau) |d|_inf^2.
    Source: LipSDP-Neuron (Fazlyab et al., NeurIPS 2019) in reverse mode, by the Schur complement of T. Blocks that feed
        themselves have C on the diagonal too. M is proved positive definite, so 2D - EC' - CE is: every I - C diag(t) with t in
        [0, q] is invertible and the equilibrium unique (El Ghaoui et al. 2021, arXiv 1908.06315).

    Args:
        multipliers: for every block of the differences the diagonal of D, positive. weights: tau [inputs], positive.
    """
    sizes = [found.inputs, *found.sizes, output.height]
    if sum(sizes) > MAX_ROWS:
        raise NotCovered(f"a matrix of {sum(sizes)} rows is too large for the checker")
    tau = np.ones(found.inputs) if weights is None else weights
    ends = np.cumsum([0, *sizes])
    place = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
    whole = sum(map(Fraction, tau.tolist())) if weights is not None else Fraction(1)
    rho = arith.below(Fraction(upper) ** 2 / whole)
    diagonal = np.concatenate([tau, *(2.0 * m for m in multipliers), np.full(sizes[-1], rho)])
    factors = [m * q for m, q in zip(multipliers, found.spans, strict=True)]
    if not all(bool(((v > 2.0**-400) & (v < 2.0**400)).all()) for v in (diagonal, *factors)):
        raise NotCovered("multipliers or a bound near the ends of float64 are not covered by the checker")
    # Powers of two on both sides: exact, and the diagonal becomes 1/2 to 2.
    half = np.ldexp(1.0, -(np.frexp(diagonal)[1] // 2))
    charge(len(diagonal) ** 2)
    matrix, slack, exactly = np.zeros((ends[-1], ends[-1])), np.zeros(ends[-1]), []
    for r, signal in enumerate([*found.blocks, output], start=1):
        for key, part in signal.parts.items():
            if key == ONE:
                continue
            here, there = place[r], place[key + 1]
            factor = np.ones(found.inputs) if key == INPUT else -factors[key]
            if exact and (
                signal.rounds or (key != INPUT and not bool((np.frexp(found.spans[key])[0] == 0.5).all()))
            ):
                raise NotCovered("exact checking covers chains whose matrices are stored as they are")
            exactly.append((here, there, part, factor))
            charge(0, 16 * part.size)
            block = (half[here][:, None] * (part * factor)) * half[there]
            error = (signal.errors(key) + 2.0**-51 * np.abs(part)) * np.abs(factor)
            error = (half[here][:, None] * error) * half[there]
            matrix[here, there] += block
            matrix[there, here] += block.T
            slack[here] += arith.sums(error, 1)
            slack[there] += arith.sums(error, 0)
    if exact:
        return integers.exactly_definite(integers.exact_blocks(diagonal, half, exactly))
    places = np.arange(len(matrix))
    matrix[places, places] += half * diagonal * half
    slack = slack * (1 + 2.0**-30) + 2.0**-50 * np.diagonal(matrix)
    return arith.positive_definite(matrix, slack, spent=True)
