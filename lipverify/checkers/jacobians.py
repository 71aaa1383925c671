"""Constants of networks over balls: gradients are a chain from the output to the input, behind that of the values.

Source: Shi et al., NeurIPS 2022 (arXiv 2210.07394); McCormick, Mathematical Programming 10 (1976), for slopes that are functions
of the values; Girard, HSCC 2005, for gradients around the middle of all slopes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lipverify.checkers import arithmetic as arith
from lipverify.checkers.arithmetic import TINY, Array, gamma
from lipverify.checkers.balls import Chain, Lines, secant
from lipverify.checkers.multipliers import System
from lipverify.checkers.signals import INPUT, ONE, Signal, mapped
from lipverify.checkers.steps import Map


def prove_local(system: System, norms: tuple[str, str], outputs: Sequence[int] | None = None) -> float:
    """A constant of the network over the ball of the system, from ranges of J'g for every output g = e_i, or some of them.

    Statement: a constant is the largest norm of a derivative almost everywhere, of the ball or of parts that cover it. J'g =
        V0'g + U'c, b = V'g + C'c, c_i = s_i b_i with s_i in the range of slopes of neuron i: a chain of blocks from the output to
        the input. At kinks s_i does not matter: where v_i is one the gradient of v_i is 0 almost everywhere (Evans, Gariepy,
        Measure Theory and Fine Properties of Functions, section 4.2). Elsewhere s_i = phi'(v_i): a chain behind that of values.
    """
    rows, ends = [], []
    # Sums of sizes take entries one by one and together: the middle of all slopes adds nothing.
    wanted = range(system.outputs) if outputs is None else outputs
    for low, high, chain, gradient in _gradients(system, wanted, norms != ("linf", "linf")):
        ends.append((low, high))
        most = np.maximum(np.abs(low), np.abs(high)).max(initial=0.0)
        rows.append(most if norms[0] == "l1" else _summed(low, high, chain, gradient, norms[0] == "l2"))
    by_row, grown = np.array(rows), 1.0 + gamma(16)
    if norms[1] == "linf":
        return float(by_row.max(initial=0.0))
    total = _length(by_row, norms[1])
    first, last = (np.array(end) for end in zip(*ends, strict=True))
    entries = np.maximum(np.abs(first), np.abs(last))
    if norms[0] == "l1":
        total = min(total, max(_length(column, norms[1]) for column in entries.T))
    elif norms == ("l2", "l1"):
        total = min(total, _length(arith.sums(entries, 0), "l2"))
    elif norms == ("l2", "l2"):
        middle = first / 2 + last / 2
        apart = np.maximum(last - middle, middle - first) * grown + TINY
        total = min(total, _norm(entries), (_norm(middle) + _norm(apart)) * grown)
    return total


def _length(values: Array, norm: str) -> float:
    """Upper bound of the l1 or l2 norm of a vector."""
    squared = values * values if norm == "l2" else values
    return float(np.sqrt(arith.sums(squared)) * (1.0 + gamma(16)) if norm == "l2" else arith.sums(squared))


def _norm(matrix: Array) -> float:
    """Upper bound of the l2 norm of a matrix: a guess that is proved, or the root of largest row sum times column sum."""
    guess = np.linalg.norm(matrix, 2) * (1.0 + 2.0**-26 + 2.0**-51 * min(matrix.shape) ** 2) + TINY
    proved = arith.norms_at_most(matrix[None], 0.0, np.array([guess]))
    return float(guess) if proved else float(arith.interpolated(np.abs(matrix)))


def _summed(low: Array, high: Array, chain: Chain, gradient: Signal, squared: bool) -> float:
    """The sum of |J_j| or the root of that of J_j^2: entry by entry, and by the chords of these functions as one functional."""
    ends = [(v * v if squared else np.abs(v)) for v in (low, high)]
    slope = (ends[1] - ends[0]) / np.where(high > low, high - low, 1.0)
    rest = np.maximum(ends[0] - slope * low, ends[1] - slope * high)
    rest = rest + 2.0**-50 * (ends[0] + ends[1] + np.abs(slope) * (np.abs(low) + np.abs(high))) + TINY
    across = np.arange(len(low))
    row = mapped(Map((), across, 1, slope[None, None], across[None, None]), gradient)
    extra = float(rest.sum()) + float(arith.sums(rest)) * 2.0 * gamma(len(rest) + 8)
    joint = max(0.0, float(chain.largest(row)[0]) + extra) * (1.0 + 2.0**-50)
    best = min(float(arith.sums(np.maximum(*ends))), joint)
    return float(np.sqrt(best) * (1.0 + gamma(8))) if squared else best


def _gradients(
    system: System, outputs: Sequence[int], middle: bool
) -> Iterator[tuple[Array, Array, Chain, Signal]]:
    """For every output the ranges of its gradient at the input, with the chain and the signal they come from."""
    count, last, values = len(system.blocks), system.output, system.chain
    assert values is not None
    smooth = {k: (curve, reads) for k, (curve, reads) in system.curves.items() if not curve.jumps}
    bends = {k: (curve.bent(*reads), np.maximum(*np.abs(reads))) for k, (curve, reads) in smooth.items()}
    base = count if bends else 0
    rounds, growth = (max(getattr(s, f) for s in (*system.blocks, last)) for f in ("rounds", "growth"))
    behind: dict[int, Signal] = {}
    for key in (*range(count), INPUT):
        readers = [(base + count - 1 - k, b) for k, b in enumerate(system.blocks) if key in b.parts]
        parts, sizes = {j: b.parts[key].T for j, b in readers}, {j: b.size(key).T for j, b in readers}
        behind[key] = Signal(parts, sizes, rounds, False, growth)
    for row in outputs:
        chain = values.continued() if bends else Chain()
        chain.kinds = (0, 1) if bends else (0,)
        for key in (*reversed(range(count)), INPUT):
            b, width = behind[key], system.inputs if key == INPUT else system.sizes[key]
            entries, terms = (
                (last.parts[key], last.size(key)) if key in last.parts else [np.zeros((row + 1, width))] * 2
            )
            assert b.sizes is not None
            b = b._replace(
                parts=b.parts | {ONE: entries[row][:, None]}, sizes=b.sizes | {ONE: terms[row][:, None]}
            )
            if key == INPUT:
                yield *chain.ranges(b, (*chain.kinds, 2) if middle else chain.kinds), chain, b
                break
            low, high = chain.ranges(b)
            chord, around = products(*system.slopes[key], low, high)
            joint = (
                chord
                if key not in bends
                else coupled(chord, *system.slopes[key], low, high, *bends[key], system.blocks[key])
            )
            chain.put(b, chord, joint, around)


def products(p: Array, q: Array, low: Array, high: Array) -> tuple[Lines, Lines]:
    """Lines around s b with s in [p, q], b in [low, high]: chords of max(p b, q b) and min(p b, q b); and around the middle s."""
    (s, o), (r, t), most = secant(low, high), secant(-high, -low), np.maximum(np.abs(low), np.abs(high))
    slack, span, m = 2.0**-49 * (np.abs(p) + np.abs(q)) * most + TINY, q - p, p / 2 + q / 2
    corners = np.array([p * low, p * high, q * low, q * high])
    half = span / 2 * most + slack
    ends = corners.min(0) - slack, corners.max(0) + slack
    return (
        Lines(p + span * r, -span * t - slack, p + span * s, span * o + slack, *ends),
        Lines(m, -half, m, half, *ends),
    )


def coupled(chord: Lines, p: Array, q: Array, low: Array, high: Array, bend: tuple[Array, Array, Array], reach: Array,
            v: Signal) -> Lines:  # fmt: skip
    """Lines around s b where s = phi'(v) itself lies between lines k v + under and k v + over.

    Statement: s b <= p b + high s - p high and s b <= q b + low s - q low, and so is their mean; -(s b) = s (-b).
    """
    k, under, over = bend
    factor, m, most = (low / 2 + high / 2) * k, p / 2 + q / 2, np.maximum(np.abs(low), np.abs(high))

    def above(low: Array, high: Array) -> Array:
        first, last = (end * np.where(end >= 0, over, under) for end in (low, high))
        return np.asarray((first + last - q * low - p * high) / 2)

    slack = (
        2.0**-48 * most * (np.abs(p) + np.abs(q) + np.abs(under) + np.abs(over) + np.abs(k) * reach) + TINY
    )
    across = np.arange(len(k))
    also = mapped(
        Map((), across, len(k), factor[:, None, None], across[:, None, None]), v._replace(ends=None)
    )
    return chord._replace(
        below=m, under=-above(-high, -low) - slack, above=m, over=above(low, high) + slack, also=also
    )
