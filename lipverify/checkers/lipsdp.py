"""Proof of a LipSDP bound from multipliers alone: the block system is assembled from the graph, then one Cholesky decides."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from lipverify.checkers import arithmetic as arith
from lipverify.checkers.affine import INPUT, Signal, add, apply, lowered
from lipverify.checkers.arithmetic import Array
from lipverify.checkers.graph import LINEAR, Graph, Node, NotCovered, need
from lipverify.errors import RefutedCertificate

MAX_ROWS = 10_000


class System:
    """Blocks of neurons w = phi(v), slopes in [0, 1], with v as signals of the input and earlier blocks."""

    def __init__(self, graph: Graph) -> None:
        self.blocks: list[Signal] = []
        self.sizes: list[int] = []
        signals: dict[str, Signal] = {}
        for node in graph.nodes.values():
            signals[node.name] = self._encode(graph, node, [signals[name] for name in node.inputs])
        self.output = signals[graph.output]
        self.outputs = graph.nodes[graph.output].size
        self.inputs = graph.input.size

    def _encode(self, graph: Graph, node: Node, inputs: list[Signal]) -> Signal:
        if node.op == "Input":
            return Signal.identity(INPUT, node.size)
        if node.op in LINEAR:
            return apply(graph, node, inputs)
        slopes = node.slopes(node.shape)
        if slopes is not None:
            return self._sloped(inputs[0], slopes[0].ravel(), slopes[1].ravel())
        if node.op == "GroupSort" and node.group == 2:
            return self._pairs(node, inputs[0])
        raise NotCovered(f"no form of {node.op} as neurons in the checker")

    def _sloped(self, v: Signal, low: Array, high: Array) -> Signal:
        """phi(v) = low v + span w with slopes of w in [0, 1]; no neuron where low = high."""
        free = np.flatnonzero(high > low)
        if len(free) == 0:
            return v.scaled(low)
        # low + span >= high exactly: the difference is rounded up.
        span = np.where(high > low, np.nextafter(high - low, np.where(low == 0, high, np.inf)), 0.0)
        key, spread = len(self.blocks), np.zeros((len(low), len(free)))
        spread[free, np.arange(len(free))] = span[free]
        self.blocks.append(v.rows(free))
        self.sizes.append(len(free))
        w = Signal({key: spread}, {key: spread}, 0, bool((span[free] == 1).all()), lowered(0, span))
        return w if not low.any() else add(v.scaled(low), w)

    def _pairs(self, node: Node, v: Signal) -> Signal:
        """Sorted pairs: max = q + r, min = p - r with r = relu(p - q)."""
        index = np.moveaxis(np.arange(node.size).reshape(node.shape), node.axis, -1)
        p, q = (index[..., place::2].ravel() for place in (0, 1))
        r = self._sloped(add(v.rows(p), v.rows(q), -1.0), np.zeros(len(p)), np.ones(len(p)))
        high, low = add(v.rows(q), r), add(v.rows(p), r, -1.0)
        first, second = (high, low) if node.descending else (low, high)
        order = np.empty(node.size, dtype=np.int64)
        order[np.concatenate([p, q])] = np.arange(node.size)
        stacked = {
            k: np.concatenate([s.parts.get(k, np.zeros_like(m)) for s in (first, second)])
            for k, m in high.parts.items()
        }
        sizes = {
            k: np.concatenate([s.sizes.get(k, np.zeros_like(m)) for s in (first, second)])
            for k, m in high.sizes.items()
        }
        return Signal(stacked, sizes, max(high.count, low.count), power=min(high.power, low.power)).rows(
            order
        )


def prove_lipsdp(graph: Graph, multipliers: Sequence[Array], upper: float, exact: bool = False) -> None:
    """|f(x) - f(y)|_2 <= upper |x - y|_2, or RefutedCertificate.

    Statement: with D > 0 diagonal, J'g = V0'g + U'c, b = V'g + C'c, c_i between 0 and b_i, the matrix

            | I   U'               V0'   |
        M = | U   2D - DC' - CD   -DV'   |  >= 0   gives   |J'g|^2 <= |V0'g + U'c|^2 + 2 c'D(b - c) <= upper^2 |g|^2.
            | V0  -VD            upper^2 |

    Source: LipSDP-Neuron (Fazlyab et al., NeurIPS 2019) in reverse mode, by the Schur complement of I.
    """
    system = System(graph)
    sizes = [system.inputs, *system.sizes, system.outputs]
    need([len(d) for d in multipliers] == system.sizes, "multipliers of another network")
    need(
        all(d.ndim == 1 and np.isfinite(d).all() and (d > 0).all() for d in multipliers),
        "multipliers that are not positive",
    )
    if sum(sizes) > MAX_ROWS:
        raise NotCovered(f"a matrix of {sum(sizes)} rows is too large for the checker")
    ends = np.cumsum([0, *sizes])
    place = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
    d = [np.ones(system.inputs), *multipliers, np.ones(system.outputs)]
    rho = arith.below(Fraction(upper) ** 2)
    diagonal = np.concatenate([d[0], *(2.0 * m for m in multipliers), np.full(system.outputs, rho)])
    if not bool((diagonal > 2.0**-400).all() and (diagonal < 2.0**400).all()):
        raise NotCovered("multipliers or a bound near the ends of float64 are not covered by the checker")
    # Powers of two on both sides: exact, and the diagonal becomes 1/2 to 2.
    half = np.ldexp(1.0, -(np.frexp(diagonal)[1] // 2))
    matrix, slack = np.zeros((ends[-1], ends[-1])), np.zeros(ends[-1])
    exactly = True
    for row, signal in enumerate([*system.blocks, system.output], start=1):
        for key, part in signal.parts.items():
            column = key + 1
            factor = 1.0 if key == INPUT else -d[column]
            here, there = place[row], place[column]
            block = (half[here][:, None] * (part * factor)) * half[there]
            error = (
                half[here][:, None] * ((signal.errors(key) + 2.0**-52 * np.abs(part)) * np.abs(factor))
            ) * half[there]
            matrix[here, there] += block
            matrix[there, here] += block.T
            exactly &= signal.count == 0
            slack[here] += arith.sums(error, 1)
            slack[there] += arith.sums(error, 0)
    places = np.arange(len(matrix))
    matrix[places, places] += half * diagonal * half
    slack = slack * (1 + 2.0**-30) + 2.0**-50 * np.diagonal(matrix)
    if exact:
        if not exactly:
            raise NotCovered("exact checking covers chains whose matrices are stored as they are")
        proved = arith.exactly_definite(_integers(system, d, place, rho))
    else:
        proved = arith.positive_definite(matrix, slack)
    if not proved:
        raise RefutedCertificate(f"the multipliers do not prove {upper!r}")


def _integers(system: System, d: Sequence[Array], place: Sequence[slice], rho: float) -> Array:
    """M in exact integers, rows and columns times powers of two."""
    diagonal = np.concatenate([d[0], *(2.0 * m for m in d[1:-1]), np.full(system.outputs, rho)])
    values, fine = arith.integers(diagonal)
    pieces = [(slice(i, i + 1), slice(i, i + 1), values[i : i + 1, None], fine) for i in range(len(diagonal))]
    for row, signal in enumerate([*system.blocks, system.output], start=1):
        for key, part in signal.parts.items():
            (w, a), (f, b) = arith.integers(part), arith.integers(d[key + 1])
            pieces.append((place[row], place[key + 1], w * (f if key == INPUT else -f), a + b))
    finest = max(scale for *_, scale in pieces)
    half = -(np.frexp(diagonal)[1] // 2)
    powers = np.array([2 ** int(h) for h in half - half.min()], dtype=object)
    matrix = np.zeros((len(diagonal), len(diagonal)), dtype=object)
    for here, there, entries, scale in pieces:
        block = entries * 2 ** (finest - scale) * powers[here][:, None] * powers[there]
        matrix[here, there] = block
        matrix[there, here] = block.T
    return matrix
