"""Where two values meet: gates, averages with weights of a softmax, scores."""

from __future__ import annotations

import numpy as np

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.arithmetic import Array, gamma
from lipverify.checkers.kernel.program import Affine
from lipverify.checkers.theories.tokens.distances import lambert
from lipverify.checkers.theories.tokens.families import Families, NoConstant
from lipverify.checkers.theories.tokens.forms import (
    UP,
    Family,
    Form,
    Part,
    Shared,
    constants,
    identities,
    sets_of,
    shifted,
    times,
)

_PAIRS = 1024
"""Of matrices of which products are looked at; beyond, norms are multiplied."""
RAW = (
    "its factors are not bounded over all inputs, so its slope has no bound: dot-product attention on raw tokens is not "
    "Lipschitz, nor with soft-capped scores (at 0 the slope is still |k|), nor is linear attention; say how large tokens are "
    "(--within A, lv.Bounded(A)), or normalise them"
)
VALUES = (
    "the values that it averages are not bounded over all inputs: scores that are bounded (query and key normalisation, soft "
    "capping) are not enough; say how large tokens are (--within A, lv.Bounded(A)), or normalise the values"
)


class Products(Families):
    """Products of entries, and sums of them."""

    def _gated(self, x: Form, y: Form) -> Form:
        """Entry by entry: |d(xy)| <= |dx| |y| + |x| |dy|, with the largest entries at most the norm of a row."""
        marks = np.concatenate(
            [p.rows for f in (x, y) for p in f.parts] or [np.zeros((len(x.places), 1), dtype=np.int64)], 1
        )
        sets = sets_of(marks)
        (lx, sx, px), (ly, sy, py) = (self._bounds(f, sets) for f in (x, y))
        power = max(px, py)
        slope = (times(shifted(lx, px - power), sy) + times(shifted(ly, py - power), sx)) * UP
        self._finite(slope, RAW)
        return self._family(sets, slope, times(sx, sy), power, "product")

    def _bilinear(self, step: Affine, x: Form, y: Form) -> Form | None:
        """Sums of products of the entries of two values: an average with weights of a softmax, or scores."""
        shown = step.index[0]
        if (shown < 0).any() or step.offset is not None or step.rounded:
            return None
        # What the sum reads of its view, as places of the product.
        index = step.view.places[shown]
        if (index < 0).any():
            return None
        for weights, values in ((x, y), (y, x)):
            if any(self.families[p.family].average for p in weights.parts) and bool(
                (step.kernel == 1.0).all()
            ):
                found = self._average(weights, values, index)
                if found is not None:
                    return found
        return self._scores(x, y, index, step.kernel[0, 0])

    def _average(self, weights: Form, values: Form, index: Array) -> Form | None:
        """sum_j p_j v_j, where each sum takes a whole row of weights and values that are one function of different rows.

        Averages are the same vector where the row of weights is, and the row of values that each weight meets.
        """
        bare = not weights.most.any()
        count = len(index)
        there = np.zeros(index.shape, dtype=bool)
        moves, rows, start, power = np.zeros(count), np.full(count, -1, dtype=np.int64), 0, -(1 << 30)
        whole: list[tuple[Array, Family, Array, Array]] = []
        for p in weights.parts:
            family = self.families[p.family]
            one = p.rows.shape[1] == 1 and family.average and not p.error.any()
            # Weights as the softmax gives them; what is none of them is the number 0.
            unit = ((p.base == 1.0).sum(1) == 1) & ((p.base != 0).sum(1) == 1)
            shown, places = p.rows[index, 0], p.places[index, 0]
            mine = shown >= 0
            used, row = mine.any(1), shown.max(1)
            entry = np.where(mine, p.base.argmax(1)[places], family.width)
            met = np.argsort(entry, 1, kind="stable")[:, : family.width]
            entry = np.sort(entry, 1)
            if not one or not bare or not bool(unit[places[mine]].all()) or entry.shape[1] < family.width:
                return None
            full = (mine.sum(1) == family.width) & (entry[:, : family.width] == np.arange(family.width)).all(
                1
            )
            if (
                not (full | ~used).all()
                or bool((mine & (shown != row[:, None])).any())
                or bool((used & (rows >= 0)).any())
            ):
                return None
            whole.append((used, family, row, met))
            rows = np.where(used, row + start, rows)
            there |= mine
            start, power = start + len(family.slope), max(power, family.power)
        if (rows < 0).any():
            return None
        values = self._alike(values, index, there)
        v = values.parts[0]
        names = np.full((count, 1 + max(met.shape[1] for *_, met in whole)), -1)
        names[:, 0] = rows
        close = np.full(count, np.inf)  # what an average by distances multiplies the slope of its tokens by
        for used, family, row, met in whole:
            moves = np.where(used, shifted(family.slope[row], family.power - power), moves)
            read = np.take_along_axis(v.rows[index, 0], met, 1)
            names[used, 1 : 1 + met.shape[1]] = read[used]
            if family.nearby is not None and family.nearby[0] == v.family:
                keys = family.nearby[1][row]
                if keys.shape[1] == 2:  # either is the query
                    keys, read = np.sort(keys, 1), np.sort(read, 1)
                factor = (1.0 + 4.0 * lambert(keys.shape[1] - 1)) * UP
                close = np.where(used & (keys == read).all(1), factor, close)
        known = self.families[v.family]
        first, line = there.argmax(1), np.arange(count)
        slope, size = (np.where(there, n[v.rows[index, 0]], 0.0).max(1) for n in (known.slope, known.size))
        ids, at = np.unique(names, axis=0, return_inverse=True)
        at, joint = at.reshape(-1), max(power, known.power)
        own = shifted(slope, known.power - joint)
        near = np.where(close < np.inf, times(close, own), np.inf)
        joined = np.minimum((times(shifted(moves, power - joint), size) + own) * UP, near)
        self._finite(joined, VALUES)
        most, largest = np.zeros(len(ids)), np.zeros(len(ids))
        np.maximum.at(most, at, joined)
        np.maximum.at(largest, at, size)
        number = self._new(Family(self._at, "average", known.width, most, largest, joint))
        first = index[line, first]
        part = Part(number, at[:, None], v.places[first], v.base, v.error)
        return Form((part,), values.places[first], values.base, values.error)

    def _alike(self, values: Form, index: Array, there: Array) -> Form:
        """The values as one function of different rows: as they are, or as tokens of their own."""

        def alike(f: Form) -> bool:
            if len(f.parts) != 1 or f.parts[0].rows.shape[1] != 1:
                return False
            first = there.argmax(1)[:, None]
            places, rows = f.parts[0].places[index, 0], f.parts[0].rows[index, 0]
            same = places == np.take_along_axis(places, first, 1)
            same &= f.places[index] == np.take_along_axis(f.places[index], first, 1)
            return bool((same | ~there).all()) and not bool((there & (rows < 0)).any())

        if alike(values):
            return values
        cut = self._cut(values, "values")
        if not alike(cut):
            raise NoConstant(self._at, "what attention averages has no tokens of one form")
        return cut

    def _scores(self, x: Form, y: Form, index: Array, kernel: Array) -> Form:
        """Sums of products, weighed by kernel: a constant for every one of them."""
        charge(32 * index.size)
        factor, even = float(np.abs(kernel).max()), bool((kernel == kernel[0]).all())
        ends = []
        for f in (x, y):
            # The same vector may be shown many times: entries by what they are.
            ids = identities(f)[index]
            sets, which = np.unique(ids, axis=0, return_inverse=True)
            first = np.full(int(ids.max()) + 1, -1)
            first[ids.reshape(-1)] = index.reshape(-1)
            sets = first[sets]
            if not self._one(f, sets):
                slope, size, power = self._bounds(f, sets)
                f = self._family(np.arange(sets.size).reshape(sets.shape), slope, size, power, "factor")
                sets = np.arange(sets.size).reshape(sets.shape)
            ends.append((f, sets, which.reshape(-1)))
        (x, left, i), (y, right, j) = ends
        (lx, sx, x0, px, kx), (ly, sy, y0, py, ky) = (self._apart(f, s) for f, s in ((x, left), (y, right)))
        power = max(px, py)
        lx, ly = shifted(lx, px - power), shifted(ly, py - power)
        nx, ny = (np.array([self._norm(*m[:2]) for m in keys[0]])[keys[1]] for keys in (kx, ky))
        both, of_x, of_y = times(nx[i], ny[j]), times(x0[i], ny[j]), times(y0[j], nx[i])
        pairs, which = np.unique(kx[1][i] * len(ky[0]) + ky[1][j], return_inverse=True)
        if even and len(pairs) <= _PAIRS:
            joint = [self._product(kx[0][k // len(ky[0])], ky[0][k % len(ky[0])]) for k in pairs]
            close = (np.array(column)[which.reshape(-1)] for column in zip(*joint, strict=True))
            both, of_x, of_y = (np.minimum(a, b) for a, b in zip((both, of_x, of_y), close, strict=True))
        main = times(both, times(lx[i], sy[j]) + times(sx[i], ly[j]))
        of_x, of_y = times(of_x, ly[j]), times(of_y, lx[i])
        size = times((times(nx, sx) + x0)[i], (times(ny, sy) + y0)[j])
        slopes = [times(factor, main + more) for more in (of_x + of_y, of_x, of_y)]
        self._finite(slopes[0], RAW)
        size = times(factor, size)
        order = np.arange(len(index))[:, None]
        # What all scores of a row of x have in common is (X du)'y with the same y, and the other way round.
        fixed = constants(x, left)[i], constants(y, right)[j]
        return self._family(
            order, slopes[0], size, power, "scores", shared=Shared((i, j), fixed, (slopes[1], slopes[2]))
        )

    def _product(self, a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[float, float, float]:
        """|A'B|, |B'x| and |A'y| for factors A u + x and B u + y, each (matrix, error, constant, slack)."""
        (m, e, x, ex), (n, f, y, ey) = a, b
        unit = gamma(len(m) + 4)

        def norm(p: Array, ep: Array, q: Array, eq: Array) -> float:
            off = np.abs(p).T @ (eq + unit * np.abs(q)) + ep.T @ (np.abs(q) + eq)
            self._kept(p.T, q, eq)
            self._kept(ep.T, q, eq)
            return self._norm(p.T @ q, off * (1 + gamma(len(m) + 8)))

        return norm(m, e, n, f), norm(n, f, x[:, None], ex[:, None]), norm(m, e, y[:, None], ey[:, None])

    def _free(self, x: Form, groups: Array, power: int) -> Array | None:
        """Constants of scores without what all entries of a group have in common: they share a row of one factor."""
        if len(x.parts) != 1 or x.parts[0].rows.shape[1] != 1:
            return None
        part = x.parts[0]
        family = self.families[part.family]
        rows = part.rows[groups, 0]
        if family.shared is None or (rows < 0).any():
            return None
        places = part.places[groups, 0]
        # One factor in front of all scores of a group: what is common stays common.
        if (part.base[places] != part.base[places[:, :1]]).any() or part.error[places].any():
            return None
        factor = np.abs(part.base[places[:, 0], 0])
        best: Array | None = None
        for side in (0, 1):
            ids, others = family.shared.vectors[side][rows], family.shared.constants[1 - side][rows]
            if (ids == ids[:, :1]).all() and (others == others[:, :1]).all():
                own = shifted(family.shared.slopes[side][rows].max(1) * factor * UP, family.power - power)
                best = own if best is None else np.minimum(best, own)
        return best
