"""What the kernel would find, asked while a proof is written: neurons between two steps, constants, values, multipliers.

Multipliers of the checker are all positive; for neurons that an analyzer left out, because they have no influence, some are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lipverify.checkers.kernel.elementary import Elementary
from lipverify.checkers.kernel.jacobians import jacobian_limit, moving
from lipverify.checkers.kernel.language import Rows, Subject
from lipverify.checkers.kernel.neurons import Differences, differences
from lipverify.checkers.kernel.program import Product
from lipverify.checkers.kernel.ranges import Ranges
from lipverify.checkers.kernel.signals import INPUT, ONE, Signal, mapped

Array = np.ndarray[Any, np.dtype[Any]]
_APART, _NEAR, _TINY = 2.0**40, 2.0**8, 2.0**-200


def neurons(
    subject: Subject,
    start: int,
    end: int,
    known: Ranges | None,
    wider: Mapping[int, Array],
    cut: bool = False,
) -> Differences:
    """Neurons between two steps, with slopes of some layers as given. cut: whether sums may be blocks."""
    p = subject.elements if known is None else known.program
    slopes = dict(subject.steep if known is None else known.slopes)
    slopes |= {k: (low, high) for k, (low, high) in wider.items()}
    return differences(p, p.place[start], p.place[end], slopes.get, cut=cut)


def derivatives(
    subject: Subject, start: int, end: int, known: Ranges | None, rows: Rows, norms: tuple[str, str]
) -> float:
    """What the step `jacobian` proves."""
    found = neurons(subject, start, end, known, {}, cut=True)
    return jacobian_limit(found, known, picked(found.output, rows), norms, moving(known, start))


def costliest(subject: Subject, known: Ranges, rows: Rows) -> tuple[int, int] | None:
    """The neuron with a kink in its range whose lines cost the value of a row most: its layer, and its entry there.

    With slopes in the middle of their ranges; it only decides where a part is split.
    """
    found = neurons(subject, 0, len(subject.program.steps) - 1, known, {})
    if found.sizes != [len(lines[0].over) for lines in known.chain.lines] or known.bends:
        return None
    row, best = picked(found.output, rows), (0.0, -1, -1)
    weights = {key: m[0] for key, m in row.parts.items()}
    for n in reversed(range(len(found.blocks))):
        layer, free, _ = found.layers[n]
        if n not in weights:
            continue
        cost = np.abs(weights[n]) * known.chain.lines[n][0].over
        worst = int(cost.argmax())
        best = max(best, (float(cost[worst]), layer, int(free[worst])))
        back = weights[n] * found.spans[n] / 2
        for key, m in found.blocks[n].parts.items():
            weights[key] = weights.get(key, 0.0) + back @ m
    return best[1:] if best[0] > 0 else None


def picked(x: Signal, rows: Rows) -> Signal:
    """Rows of a signal, or the difference of two."""
    if rows.minus is None:
        return x.rows(range(rows.low, rows.high))
    return mapped(np.array([[[1.0, -1.0]]]), np.array([[[rows.low, rows.minus]]]), x)


def filled(diagonals: Sequence[Array], found: Differences, weights: Array | None) -> list[Array]:
    """Positive multipliers, where some are zeros. weights: the diagonal T of the inputs, by default ones.

    In the checker's matrix neuron i meets what it reads, j, in the entry -C_ij q_j d_j (U_ij for an input, which has T_j where a
    neuron has d_j: as if d_j were 1 / T_j). Without neuron i the
    rest of the matrix loses (C_ij q_j d_j)^2 / d_i, without neuron j it loses (C_ij q_j)^2 d_j: nothing that matters when d_i is
    `_APART` above that over d_j. So neurons that drive nothing of influence are made that dear, in order, and those that nothing
    drives that cheap, backwards; among themselves `_NEAR` is enough. Not further: a zero known up to rounding stays harmless.
    """
    known = np.concatenate([d[d > 0] for d in diagonals]) if diagonals else np.empty(0)
    low = float(known.min()) if len(known) else 1.0
    reached = _driven(found)
    parts = [
        {key: m if key == INPUT else m * found.spans[key] for key, m in block.parts.items() if key != ONE}
        for block in found.blocks
    ]
    filled_in = [np.array(d) for d in diagonals]
    for k, block in enumerate(parts):
        dear = np.full(len(filled_in[k]), low)
        for key, matrix in block.items():
            if key != k and matrix.shape[1]:
                ones = np.ones(matrix.shape[1])
                read = 1.0 / (ones if weights is None else weights) if key == INPUT else filled_in[key]
                apart = _APART if key == INPUT else np.where(diagonals[key] > 0, _APART, _NEAR)
                dear = np.maximum(dear, (matrix**2 * (apart * read)).max(1))
        filled_in[k] = np.where((diagonals[k] <= 0) & reached[k], dear, filled_in[k])
    for j in reversed(range(len(filled_in))):
        cheap = np.full(len(filled_in[j]), low / _APART)
        for k in range(j + 1, len(filled_in)):
            part = parts[k].get(j)
            if part is not None and part.size:
                most = filled_in[k] / np.where(diagonals[k] > 0, _APART, _NEAR)
                cheap = np.minimum(cheap, (most[:, None] / np.maximum(part**2, _TINY)).min(0))
        last = found.output.parts.get(j)
        if last is not None and last.size:
            cheap /= np.maximum(1.0, ((last * found.spans[j]) ** 2).max(0))
        filled_in[j] = np.where((diagonals[j] <= 0) & ~reached[j], cheap, filled_in[j])
    return filled_in


def movable(p: Elementary, found: Differences) -> dict[int, Array]:
    """Of every layer with neurons, those that would be left if stored numbers were folded, as the importer does.

    Neurons that read stored numbers alone are 0 in differences, and a product with such numbers is a scaling, which has none: the
    checker knows them up to rounding, so it gives the other factor neurons of a tiny span.
    """
    moving: dict[int, Array] = {}
    for (k, own, _), on in zip(found.layers, _driven(found), strict=True):
        half = p.size(k) // 2
        scaled = isinstance(p.steps[p.layers[k]], Product) and (
            bool((~on[own < half]).all()) or bool((~on[own >= half]).all())
        )
        moving[k] = own[:0] if scaled else own[on]
    return moving


def _driven(found: Differences) -> list[Array]:
    """For every block, which neurons an input reaches."""
    reached: list[Array] = []
    for k, (block, size) in enumerate(zip(found.blocks, found.sizes, strict=True)):
        own = np.zeros(size, dtype=bool)
        for key, matrix in block.parts.items():
            if key not in (ONE, k):
                own |= (matrix[:, slice(None) if key == INPUT else reached[key]] != 0).any(1)
        reached.append(own)
    return reached
