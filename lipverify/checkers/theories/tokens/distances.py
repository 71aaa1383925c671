"""L2 attention in a program: softmaxes whose scores fall with squared distances of tokens, however they are spelled.

Statement. u_0 .. u_(n-1) are vectors, u_o one of them, the query; P = softmax_j(-s |u_j - u_o|^2), y = sum_j P_j (A u_j + c).
With s > 0, L the largest constant of the u_j, E the mean with weights P, w_j = u_j - u_o and W e^W = (n - 1)/e:
    s E|w|^2 <= W: with b_j = s |w_j|^2 it is sum b_j exp(-b_j) / (1 + sum_(j != o) exp(-b_j)), largest where all b_j are 1 + W;
    |dz_j| = |2 s w_j'(du_j - du_o)| <= 4 s |w_j| L for scores less that of the query, so |dP|_1 <= root(E dz^2) <= 4 root(s W) L;
    dy = A (E du + Cov(dz, w)), |Cov(dz, w)| <= E|dz| |w - Ew| <= 4 s L E|w|^2, so |dy| <= |A| (1 + 4 W) L.
Of two vectors it holds whichever is the query, as one has the distance of the other.
Source: Kim, Papamakarios, Mnih 2021 (arXiv 2006.04710), theorem 3.2; W does not depend on s.

Nothing is taken from a name: scores are expanded into polynomials of degree 2 in entries of earlier steps, exactly; what is left
after -s (u_j - u_o)^2 is taken off has to be 0 or common to a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lipverify.checkers.kernel.arithmetic import Array, gamma
from lipverify.checkers.kernel.program import Affine, Softmax, Step
from lipverify.checkers.theories.tokens.forms import UP
from lipverify.checkers.theories.tokens.polynomials import Polynomials, collected


class Weights(NamedTuple):
    """A softmax over distances. keys: rows [rows, n] of the tokens that each of its rows compares; scale: s [rows] from above."""

    keys: Array
    scale: Array


@dataclass(frozen=True)
class Tokens:
    """Vectors whose distances are taken. sources: steps; places: [count, width] in what these give, side by side, each once;
    weights: softmaxes that compare them."""

    sources: tuple[int, ...]
    places: Array
    weights: Mapping[int, Weights]


def lambert(count: int) -> float:
    """At least W_0(count / e): a number w with w exp(w + 1) >= count."""
    w = math.log1p(count)
    for _ in range(60):
        w -= (w * math.exp(w + 1.0) - count) / ((w + 1.0) * math.exp(w + 1.0))
    w = w * (1.0 + 2.0**-40)
    while w * math.exp(w + 1.0) < count * (1.0 + 2.0**-44):
        w = w * (1.0 + 2.0**-40) + 2.0**-1000
    return w


def compared(polynomials: Polynomials) -> list[Tokens]:
    """All tokens whose distances a softmax takes. Sets of tokens that share a step but not all vectors are left out."""
    steps = polynomials.steps
    found: dict[tuple[int, ...], list[tuple[int, Array, Array]]] = {}
    for k, step in enumerate(steps):
        if isinstance(step, Softmax) and step.groups.shape[1] > 1:
            known = _distances(steps, polynomials, step)
            if known is not None:
                found.setdefault(known[0], []).append((k, *known[1:]))
    if len({s for sources in found for s in sources}) != sum(map(len, found)):
        return []
    return [one for sources, every in found.items() if (one := _joined(sources, every)) is not None]


def _joined(sources: tuple[int, ...], every: Sequence[tuple[int, Array, Array]]) -> Tokens | None:
    """The vectors that some softmaxes compare: step, places [rows, n, width] and s [rows] of each."""
    width = every[0][1].shape[2]
    if any(keys.shape[2] != width for _, keys, _ in every):
        return None
    whole = np.concatenate([keys.reshape(-1, width) for _, keys, _ in every])
    places, rows = np.unique(whole, axis=0, return_inverse=True)
    # An entry in two vectors, or at two places of one: what is computed from them would be no function of one row.
    if len(np.unique(places)) != places.size:
        return None
    cuts = np.cumsum([keys.shape[0] * keys.shape[1] for _, keys, _ in every])[:-1]
    own = np.split(rows.reshape(-1), cuts)
    weights = {k: Weights(r.reshape(keys.shape[:2]), s) for (k, keys, s), r in zip(every, own, strict=True)}
    return Tokens(sources, places, weights)


def _distances(
    steps: Sequence[Step], p: Polynomials, softmax: Softmax
) -> tuple[tuple[int, ...], Array, Array] | None:
    """Sources, places [rows, n, width] of the vectors that a softmax compares with one of them, and s [rows]; else None."""
    rows, n = softmax.groups.shape
    peeled = _peeled(steps, softmax)
    if peeled is None:
        return None
    step, entries, sign, scale = peeled
    found = p.quadratic(step) if p.squared(step) else None
    if found is None:
        return None
    factor, one, two = (v[entries.reshape(-1)] for v in found)
    entry = np.broadcast_to(np.arange(rows * n)[:, None], factor.shape)[factor != 0]
    e, a, b, c = collected(entry, one[factor != 0], two[factor != 0], factor[factor != 0])
    cross = a != b
    count = np.bincount(e[cross], minlength=rows * n).reshape(rows, n)
    width = int(count.max())
    own = count == 0
    # The query of a row is the entry without products: its distance is 0.
    if not width or not (own.sum(1) == 1).all() or not (own | (count == width)).all():
        return None
    query = own.argmax(1)
    row = e // n
    # -s |u_j - u_o|^2 = sum of c (xy - xx/2 - yy/2), c = 2 s the same along the row; less that, an entry is what its query is.
    each = c[cross].reshape(-1) * sign[row[cross]]
    weight = np.zeros(rows)
    weight[row[cross]] = each
    if not (each > 0).all() or not (each == weight[row[cross]]).all():
        return None
    of_query = ~cross & (e % n == query[row])
    others = np.flatnonzero(~own.reshape(-1))
    repeated = [np.repeat(v[of_query], n) for v in (row, a, c)]
    copies = repeated[0] * n + np.tile(np.arange(n), int(of_query.sum()))
    squares = ~cross & ~own.reshape(-1)[e]
    kept = np.isin(copies, others)
    rest = collected(
        *(
            np.concatenate(v)
            for v in (
                (e[squares], copies[kept], e[cross], e[cross]),
                (a[squares], repeated[1][kept], a[cross], b[cross]),
                (a[squares], repeated[1][kept], a[cross], b[cross]),
                (c[squares], -repeated[2][kept], c[cross] / 2, c[cross] / 2),
            )
        )
    )
    if len(rest[0]):
        return None
    keys = _vectors(row[cross], e[cross] % n, a[cross], b[cross], query, n, width)
    if keys is None:
        return None
    used = np.searchsorted(p.starts, keys, side="right") - 1
    sources = tuple(int(s) for s in np.unique(used))
    begin = np.cumsum([0, *(steps[s].size for s in sources)])
    local = keys - p.starts[used] + begin[np.searchsorted(np.array(sources), used)]
    return sources, local, scale * weight / 2 * UP


def _vectors(row: Array, key: Array, a: Array, b: Array, query: Array, n: int, width: int) -> Array | None:
    """Variables [rows, n, width] of the vectors of every row, from pairs (a, b) of entries of key and query; else None."""
    rows = len(query)
    # The query's entries are those that meet every key; of two vectors either may be it.
    names, times = np.unique(
        np.stack([np.tile(row, 2), np.concatenate([a, b])], 1), axis=0, return_counts=True
    )
    met = names[times == n - 1]
    span = int(max(a.max(), b.max())) + 1
    known = met[:, 0] * span + met[:, 1]
    first, second = (np.isin(row * span + v, known) for v in (a, b))
    if n == 2:
        second[:] = False
    if not (first ^ second).all():
        return None
    asked, other = np.where(first, a, b), np.where(first, b, a)
    order = np.lexsort([asked, key, row])
    asked, other = (v[order].reshape(rows, n - 1, width) for v in (asked, other))
    if (asked != asked[:, :1]).any() or (asked[:, 0, 1:] <= asked[:, 0, :-1]).any():
        return None
    keys = np.empty((rows, n, width), dtype=np.int64)
    line = np.arange(rows)
    mine = np.arange(n) != query[:, None]
    keys[mine] = other.reshape(-1, width)
    keys[line, query] = asked[:, 0]
    return keys


def _bounded(scale: Array) -> bool:
    """A product with one more factor of a kernel underflows nowhere."""
    return bool(((scale > 2.0**-400) & (scale < 2.0**400)).all())


def _peeled(steps: Sequence[Step], softmax: Softmax) -> tuple[int, Array, Array, Array] | None:
    """The step and its entries [rows, n] behind factors that are one number for a row, their sign, and size from above [rows]."""
    places, view = softmax.groups, softmax.view
    sign, scale = np.ones(len(places)), np.ones(len(places))
    while True:
        places = view.places[places]
        if len(view.sources) != 1 or (places < 0).any() or not _bounded(scale):
            return None
        k = view.sources[0]
        step = steps[k]
        if not isinstance(step, Affine) or step.kernel.shape[2] > 1 or step.offset is not None:
            return k, places, sign, scale
        out, positions = step.kernel.shape[1], step.index.shape[1]
        g, o, p = places // (out * positions), places // positions % out, places % positions
        factor = step.kernel[g, o, 0]
        one_number = step.kernel.size == 1 or not step.rounded
        if not one_number or (factor != factor[:, :1]).any() or not factor.all():
            return None
        sign = sign * np.sign(factor[:, 0])
        scale = scale * np.abs(factor[:, 0]) * (1 + gamma(step.rounded + 4))
        places, view = step.index[g, p, 0], step.view
        if (places < 0).any():
            return None
