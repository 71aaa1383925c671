"""Rows of families: constants and sizes of vectors of entries, from proved norms of the matrices between."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.arithmetic import TINY, Array, gamma, interpolated, norms_at_most, sums
from lipverify.checkers.theories.tokens.forms import (
    UP,
    Family,
    Form,
    Part,
    Shared,
    bare,
    distinct,
    length,
    sets_of,
    shifted,
    times,
)
from lipverify.errors import NotCovered


class NoConstant(NotCovered):
    """A step has no constant over the inputs that are spoken of."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step, self.reason = step, reason


BEYOND = "a constant beyond float64"


class Families:
    """The families so far. _at: the step in hand."""

    def __init__(self) -> None:
        self.families: list[Family] = []
        self._at = 0
        self._norms: dict[bytes, float] = {}

    def _apart(
        self, f: Form, sets: Array
    ) -> tuple[Array, Array, Array, int, tuple[list[tuple[Array, ...]], Array]]:
        """Of vectors A u + x, one row u each: slopes and sizes of u, |x|, the power, and the distinct (A, error, x, slack)."""
        if not f.parts:
            raise NoConstant(self._at, "a factor that no input moves")
        p = f.parts[0]
        family = self.families[p.family]
        rows = p.rows[sets, 0].max(1)
        places = p.places[sets, 0]
        keys, which = np.unique(np.concatenate([places, f.places[sets]], 1), axis=0, return_inverse=True)
        width = sets.shape[1]
        found = []
        for key in keys:
            at, of = key[:width], key[width:]
            there = (at >= 0)[:, None]
            off = [np.where(of < 0, 0.0, np.append(v, 0.0)[of]) for v in (f.base, f.error)]
            found.append((np.where(there, p.base[at], 0.0), np.where(there, p.error[at], 0.0), *off))
        offsets = np.array([length(np.abs(x) + ex) for _, _, x, ex in found])[which.reshape(-1)]
        return family.slope[rows], family.size[rows], offsets, family.power, (found, which.reshape(-1))

    def _one(self, f: Form, sets: Array) -> bool:
        """Whether each set of entries reads one row of one family."""
        if len(f.parts) != 1 or f.parts[0].rows.shape[1] != 1:
            return False
        rows = f.parts[0].rows[sets, 0]
        return bool(((rows == rows.max(1, keepdims=True)) | (rows < 0)).all()) and bool(
            (rows.max(1) >= 0).all()
        )

    def _bounds(self, f: Form, sets: Array) -> tuple[Array, Array, int]:
        """Constants and sizes of vectors of entries [count, width], -1 for none: (slopes, sizes, power) [count] each."""
        count = len(sets)
        charge(16 * sets.size * (1 + sum(p.rows.shape[1] for p in f.parts)))
        gone = sets < 0
        constant = np.where(gone, 0.0, f.most[sets])
        offset = np.sqrt(sums(constant * constant * UP, 1)) * UP if constant.any() else np.zeros(count)
        blocks: list[tuple[int, Array, Array, Part]] = []  # family, row [count], places [count, width]
        power = max((self.families[p.family].power for p in f.parts), default=0)
        for p in f.parts:
            rows = np.where(gone[:, :, None], -1, p.rows[sets])
            places = np.where(gone[:, :, None], -1, p.places[sets])
            slots = distinct(rows.reshape(count, -1))
            for s in range(slots.shape[1]):
                mine = (rows == slots[:, s][:, None, None]) & (rows >= 0)
                blocks.append((p.family, slots[:, s], np.where(mine, places, -1).max(2), p))
        slope, size = np.zeros(count), offset
        if not blocks:
            return slope, size, power
        keys, which = np.unique(np.concatenate([b[2] for b in blocks], 1), axis=0, return_inverse=True)
        which, width = which.reshape(-1), sets.shape[1]
        known = [self._of(family, rows, power) for family, rows, _, _ in blocks]
        ls, ss = (np.stack(column) for column in zip(*known, strict=True))  # [blocks, count]
        for k, key in enumerate(keys):
            mine = which == k
            matrices = []
            for b, (*_, p) in enumerate(blocks):
                at = key[b * width : (b + 1) * width]
                there = (at >= 0)[:, None]
                matrices.append((np.where(there, p.base[at], 0.0), np.where(there, p.error[at], 0.0)))
            norms = np.array([self._norm(*m) for m in matrices])
            added = [weighed(norms, n[:, mine]) for n in (ls, ss)]
            if len(blocks) > 1:
                for n, values in enumerate((ls, ss)):
                    most = values[:, mine].max(1)
                    if np.isfinite(most).all():
                        wide = [
                            np.concatenate([m[e] * w for m, w in zip(matrices, most, strict=True)], 1)
                            for e in (0, 1)
                        ]
                        wide[1] = wide[1] + gamma(4) * np.abs(wide[0])
                        # The products above may underflow.
                        joint = self._norm(*wide) * math.sqrt((most > 0).sum()) * UP + TINY
                        added[n] = np.minimum(added[n], joint)
            slope[mine], size[mine] = added[0], (added[1] + offset[mine]) * UP
        return slope, size, power

    def _of(self, family: int, rows: Array, power: int) -> tuple[Array, Array]:
        """Slopes (times 2^power) and sizes of rows, 0 for none."""
        f = self.families[family]
        there = rows >= 0
        return np.where(there, shifted(f.slope[rows], f.power - power), 0.0), np.where(
            there, f.size[rows], 0.0
        )

    def _by_row(self, f: Form) -> tuple[Array, Array, Array, int]:
        marks = np.concatenate([p.rows for p in f.parts] or [np.zeros((len(f.places), 1), dtype=np.int64)], 1)
        sets = sets_of(marks)
        return sets, *self._bounds(f, sets)

    def _cut(self, f: Form, kind: str, other: tuple[Array, Array, int, Array] | None = None) -> Form:
        """The same entries as tokens of their own. other: slopes, sizes, power and entries that hold as well."""
        sets, slope, size, power = self._by_row(f)
        if other is not None:
            known = np.full(len(f.places), -1)
            known[other[3]] = np.arange(len(other[3]))[:, None]
            at = np.where(sets < 0, -1, known[sets])
            whole = (at == at.max(1, keepdims=True)) | (at < 0)
            mine = whole.all(1)
            one = at.max(1)
            offset = np.where(sets < 0, 0.0, f.most[sets])
            offset = np.sqrt(sums(offset * offset * UP, 1)) * UP
            slope = np.where(mine, np.minimum(slope, shifted(other[0][one], other[2] - power) * UP), slope)
            size = np.where(mine, np.minimum(size, (other[1][one] + offset) * UP), size)
        return self._family(sets, slope, size, power, kind)

    def _family(self, sets: Array, slope: Array, size: Array, power: int, kind: str, average: bool = False,
                shared: Shared | None = None, nearby: tuple[int, Array] | None = None) -> Form:  # fmt: skip
        """New rows of entries [count, width], -1 for none, as a form of their own."""
        count, width = sets.shape
        charge(8 * width * width)
        number = self._new(Family(self._at, kind, width, slope, size, power, average, shared, nearby))
        n = int((sets >= 0).sum())
        rows, places = (np.full((n, 1), -1, dtype=np.int64) for _ in range(2))
        there = sets >= 0
        rows[sets[there], 0] = np.broadcast_to(np.arange(count)[:, None], sets.shape)[there]
        places[sets[there], 0] = np.broadcast_to(np.arange(width), sets.shape)[there]
        base = np.eye(width)
        return bare((Part(number, rows, places, base, np.zeros_like(base)),), n)

    def _new(self, family: Family) -> int:
        most = float(family.slope.max())
        if not math.isfinite(most):
            raise NoConstant(self._at, BEYOND)
        if most > 2.0**200 or 0 < most < 2.0**-200:
            shift = math.frexp(most)[1]
            scaled = shifted(family.slope, -shift)
            shared = family.shared
            if shared is not None:
                one, two = (shifted(v, -shift) for v in shared.slopes)
                shared = shared._replace(slopes=(one, two))
            family = replace(family, slope=scaled, power=family.power + shift, shared=shared)
        self.families.append(family)
        return len(self.families) - 1

    def _kept(self, factor: Array, *others: Array) -> None:
        """Refuses factors some of whose products float64 rounds to 0, or nearly so: no relative error bounds those."""
        least = [np.abs(v).min(initial=1.0, where=v != 0) for v in (factor, *others)]
        if not math.frexp(least[0])[1] + math.frexp(min(least[1:]))[1] > -900:
            raise NoConstant(self._at, "products of matrices that float64 rounds to 0, or nearly so")

    def _finite(self, values: Array, reason: str) -> None:
        if not np.isfinite(values).all():
            raise NoConstant(self._at, reason)

    def _norm(self, w: Array, error: Array) -> float:
        """A bound of the l2 norm of every matrix within `error` of w, entry by entry: the first of a few that is proved."""
        if not w.any() and not error.any():
            return 0.0
        key = w.tobytes() + error.tobytes() + bytes(str(w.shape), "ascii")
        if key not in self._norms:
            self._norms[key] = _proved_norm(w, error)
        return self._norms[key]


def _proved_norm(w: Array, error: Array) -> float:
    apart = float(interpolated(error)) if error.any() else 0.0
    rough = float(interpolated(np.abs(w))) * UP + apart
    if not math.isfinite(rough) or rough == 0.0:
        return rough
    # An untrusted guess, and a little more of it, until one is proved.
    charge(0, 8 * w.size * min(w.shape))
    guess = float(np.linalg.svd(w, compute_uv=False)[0]) + apart
    for room in (2.0**-40, 2.0**-30, 2.0**-20):
        limit = guess * (1.0 + room)
        if limit < rough and norms_at_most(w[None], apart, np.array([limit])):
            return limit
    return rough


def weighed(norms: Array, values: Array) -> Array:
    """sum_b norms_b values_b [blocks, count] -> [count], rounded up; a norm of 0 times what has no bound is 0."""
    return np.asarray(times(norms[:, None], values).sum(0) * (1 + gamma(len(norms) + 4)))
