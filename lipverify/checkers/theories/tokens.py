"""How fast sequences of tokens change, measured by the largest change of a token: attention, normalisation, residual blocks.

A value is followed as a form: every entry is a linear functional of rows of families, plus a constant. A family is a set of
vectors (the tokens of a value) of which two numbers are known for every input: their l2 norm, and how fast they change.
Affine steps are composed; where two rows meet (a residual sum, the heads of attention), at activations, normalisation, products
and softmax a new family begins. With |.|_2 of a token, u a token's vector, X, Y, V matrices and s, L a row's size and constant:

    sum_k C_k u_k + c        L <= sum_k |C_k| L_k, or sqrt(m) |[L_1 C_1 .. L_m C_m]| for m rows;      size: s for L, and |c|
    K (V_1 u_1, .., V_m u_m) L <= |K| root(sum_k (|V_k| L_k)^2)
    (X u_i + x)'(Y u_j + y)  L <= |X'Y| (L_i s_j + s_i L_j) + |Y'x| L_j + |X'y| L_i, or the same with |X| |Y|; for a softmax along
                             j the last term is the same for all entries and changes nothing, if y is the same for all j
    p = softmax(z)           |dp|_1 <= (max dz - min dz)/2 <= max |dz_j|: l_inf to l1 has the constant max_S 4 P_S (1 - P_S) <= 1
    sum_j p_j (V u_j + c)    = V (sum_j p_j u_j) + c, whose average has L <= |dp|_1 max s_j + max L_j and size max s_j
    n(u), variance + eps     |n(u)| <= sqrt d, L_n <= L / sqrt(eps)

Source: Newhouse, Hess, Cesista et al. 2025 (arXiv 2507.13338) for the geometry; Kim, Papamakarios, Mnih 2021 (arXiv 2006.04710)
for what has no constant. Masks and rotations are covered as what they are: fewer keys, matrices that differ from token to token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, NamedTuple

import numpy as np

from lipverify.checkers.kernel import language as is_
from lipverify.checkers.kernel.account import STEP, charge
from lipverify.checkers.kernel.arithmetic import (
    TINY,
    Array,
    above,
    gamma,
    interpolated,
    need,
    norms_at_most,
    sums,
    trimmed,
)
from lipverify.checkers.kernel.curves import curve
from lipverify.checkers.kernel.language import Rows, Scope
from lipverify.checkers.kernel.program import (
    Affine,
    Constant,
    Input,
    Normalise,
    Product,
    Program,
    Scalar,
    Softmax,
    Step,
    View,
)
from lipverify.checkers.kernel.theorems import Constant as Proved
from lipverify.checkers.kernel.theorems import Facts, shown, theorem
from lipverify.checkers.kernel.theorems import Part as Whole
from lipverify.checkers.norms import Norm, Tokens, norm_of
from lipverify.errors import NotCovered

_UP = 1.0 + 2.0**-46
"""More than the few roundings of any one line below."""
_PAIRS = 1024
"""Of matrices of which products are looked at; beyond, norms are multiplied."""
_WITHIN = ("Relu", "Abs", "LeakyRelu", "PRelu", "Gelu", "GeluTanh", "Silu", "Mish", "Tanh", "Softsign", "Atan", "Asinh", "Sin",
           "Tanhshrink", "HardSwish", "ErfGate")  # fmt: skip
"""Laws with |f(x)| <= |x|; for LeakyRelu and PRelu times the largest slope, for x (1 + erf) times 2."""
_BOUNDED = ("Tanh", "Sigmoid", "Softsign", "Sin", "Cos", "Erf")
"""Laws with |f(x)| <= 1."""
_RAW = (
    "its factors are not bounded over all inputs, so its slope has no bound: dot-product attention on raw tokens is not "
    "Lipschitz, nor with soft-capped scores (at 0 the slope is still |k|), nor is linear attention; say how large tokens are, or "
    "normalise them"
)
_BEYOND = "a constant beyond float64"
_VALUES = (
    "the values that it averages are not bounded over all inputs: scores that are bounded (query and key normalisation, soft "
    "capping) are not enough; say how large tokens are, or normalise the values"
)


class NoConstant(NotCovered):
    """A step has no constant over the inputs that are spoken of."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step, self.reason = step, reason


class Shared(NamedTuple):
    """Of scores (X u + x)'(Y v + y), for both factors: numbers of their vectors, numbers of their constants, and slopes without
    what is common to all scores that share the vector of this factor, where the constants of the other are equal."""

    vectors: tuple[Array, Array]
    constants: tuple[Array, Array]
    slopes: tuple[Array, Array]


@dataclass(frozen=True)
class Family:
    """Vectors of one width: of each its largest l2 norm, [count], and its constant, slope 2^power, [count].

    average: each holds weights that are not negative and sum to 1, and slope bounds the l1 norm of its change.
    """

    width: int
    slope: Array
    size: Array
    power: int = 0
    average: bool = False
    shared: Shared | None = None


class Part(NamedTuple):
    """What entries read of one family, in up to S rows each: the rows [size, S], -1 for none, and the places [size, S] of
    coefficients among base [places, width], which are known within `error` of the same shape."""

    family: int
    rows: Array
    places: Array
    base: Array
    error: Array


class Form(NamedTuple):
    """Entries as functionals of rows, plus constants: places [size] among numbers that are known within `error`, -1 for 0.

    One place is one real number, whatever rounding did to it, and one place of a part one real vector: entries of the same rows
    and places are the same functional. Stored numbers that are rounded have places of their own: equal ones may stand for others.
    """

    parts: tuple[Part, ...]
    places: Array
    base: Array
    error: Array

    @property
    def most(self) -> Array:
        """The largest they can be in size: [size]."""
        known = np.append((np.abs(self.base) + self.error) * _UP, 0.0)
        return np.where(self.places < 0, 0.0, known[self.places])

    def take(self, entries: Array) -> Form:
        """Some entries, -1 the number 0: [any shape] flat."""
        e = entries.reshape(-1)
        gone = e < 0
        parts = []
        for p in self.parts:
            rows, places = np.where(gone[:, None], -1, p.rows[e]), np.where(gone[:, None], -1, p.places[e])
            if (rows >= 0).any():
                parts.append(p._replace(rows=rows, places=places))
        return Form(tuple(parts), np.where(gone, -1, self.places[e]), self.base, self.error)


class Stage(NamedTuple):
    """What is known of a new family, for people: the step, what it does, its largest size and constant (m 2^power)."""

    step: int
    kind: str
    width: int
    size: float
    slope: float
    power: int


class Sequences:
    """The forms of a program's steps, from tokens of the input on. variance: a lower bound of that of what is normalised.

    Raises:
        NotCovered: something has no constant, with the reason, or no rule.
    """

    def __init__(self, program: Program, width: int, most: float, variance: float = 0.0) -> None:
        self.families: list[Family] = []
        self.stages: list[Stage] = []
        self.variance = variance
        self._forms: list[Form] = []
        self._steps = program.steps
        self._norms: dict[bytes, float] = {}
        for k, step in enumerate(program.steps):
            charge(0, STEP)
            self._at = k
            if isinstance(step, Input):
                if step.size % width:
                    raise NotCovered(f"an input of {step.size} numbers has no tokens of {width}")
                count = step.size // width
                self._forms.append(self._family(np.arange(step.size).reshape(count, width), np.ones(count),
                                                np.full(count, most), 0, "input"))  # fmt: skip
            else:
                self._forms.append(self._step(step))

    # -- what is asked

    def constant(self, norm: str, width: int) -> tuple[float, int]:
        """(m, e): no token of the last step changes by more than m 2^e times the largest l2 change of an input token.

        norm: `linf`, of single numbers, or one of tokens, in l2 here.
        """
        size = self._steps[-1].size
        if size % width:
            raise NotCovered(f"an output of {size} numbers has no tokens of {width}")
        slope, _, power = self._bounds(self._forms[-1], np.arange(size).reshape(-1, width))
        self._finite(slope, _BEYOND)
        return float(slope.max()), power

    # -- steps

    def _step(self, step: Step) -> Form:
        if isinstance(step, Constant):
            values, places = np.unique(step.values, return_inverse=True)
            return Form((), np.where(step.values == 0, -1, places.reshape(-1)), values, np.zeros(len(values)))
        if isinstance(step, Affine):
            product = self._steps[step.reads[0]] if len(step.reads) == 1 else None
            if isinstance(product, Product) and step.kernel.shape[:2] == (1, 1) and step.index.shape[2] > 1:
                found = self._bilinear(step, product)
                if found is not None:
                    return found
            return self._affine(step, self._seen(step.view))
        if isinstance(step, Product):
            later = [s for s in self._steps if self._at in s.reads]
            summed = all(
                isinstance(s, Affine) and s.kernel.shape[:2] == (1, 1) and s.index.shape[2] > 1 for s in later
            )
            return _bare((), 0) if summed and later else self._gated(step)
        x = self._seen(step.view)
        if isinstance(step, Scalar):
            return self._activation(step, x)
        if isinstance(step, Normalise):
            return self._normalised(step, x)
        if isinstance(step, Softmax):
            return self._softmax(step, x)
        raise NoConstant(self._at, f"there is no rule for norms of tokens ({type(step).__name__})")

    def _seen(self, view: View) -> Form:
        """The entries of a view."""
        if not view.sources or not len(view.places):
            return _bare((), max(len(view.places), 1))
        sources = list(dict.fromkeys(view.sources))
        start = dict(zip(sources, np.cumsum([0, *(self._steps[s].size for s in sources)]), strict=False))
        ends = np.cumsum([self._steps[s].size for s in view.sources])
        owner = np.searchsorted(ends, view.places, side="right").clip(max=len(view.sources) - 1)
        moved = np.array(
            [start[s] - (e - self._steps[s].size) for s, e in zip(view.sources, ends, strict=True)],
            dtype=np.int64,
        )
        places = np.where(view.places < 0, -1, view.places + moved[owner])
        charge(0, 32 * len(places))
        return self._joined([self._form(s) for s in sources]).take(places)

    def _form(self, step: int) -> Form:
        found = self._forms[step]
        if len(found.places) != self._steps[step].size:
            product = self._steps[step]
            assert isinstance(product, Product)
            found = self._forms[step] = self._gated(product)
        return found

    @staticmethod
    def _joined(forms: Sequence[Form]) -> Form:
        if len(forms) == 1:
            return forms[0]
        sizes = [len(f.places) for f in forms]
        parts = []
        for family in dict.fromkeys(p.family for f in forms for p in f.parts):
            own = [next((p for p in f.parts if p.family == family), None) for f in forms]
            most = max(p.rows.shape[1] for p in own if p is not None)
            base = np.cumsum([0, *(0 if p is None else len(p.base) for p in own)])
            rows, places = (np.full((sum(sizes), most), -1, dtype=np.int64) for _ in range(2))
            start = 0
            for p, n, b in zip(own, sizes, base, strict=False):
                if p is not None:
                    rows[start : start + n, : p.rows.shape[1]] = p.rows
                    places[start : start + n, : p.rows.shape[1]] = np.where(p.places < 0, -1, p.places + b)
                start += n
            there = [p for p in own if p is not None]
            parts.append(
                Part(
                    family,
                    rows,
                    places,
                    *(np.concatenate([getattr(p, name) for p in there]) for name in ("base", "error")),
                )
            )
        starts = np.cumsum([0, *(len(f.base) for f in forms)])
        of = [np.where(f.places < 0, -1, f.places + start) for f, start in zip(forms, starts, strict=False)]
        return Form(
            tuple(parts), np.concatenate(of), *(np.concatenate([f[k] for f in forms]) for k in (2, 3))
        )

    def _affine(self, step: Affine, x: Form) -> Form:
        groups, out, terms = step.kernel.shape
        positions = step.index.shape[1]
        x = x.take(step.index)  # [groups * positions * terms]
        whole = groups * positions
        kernels, own = step.kernel, np.arange(groups)
        if not step.rounded:
            flat, own = np.unique(kernels.reshape(groups, -1), axis=0, return_inverse=True)
            kernels = flat.reshape(-1, out, terms)
        own = np.repeat(own.reshape(-1), positions)
        unit = gamma(terms + 4 + step.rounded)
        constants = self._offset(step, x, own, kernels, unit)
        parts, alone = [], []
        for p in x.parts:
            rows, places = (v.reshape(whole, -1) for v in (p.rows, p.places))
            slots = _distinct(rows)
            found_rows, found_places, base, error = [], [], [], []
            start = 0
            for s in range(slots.shape[1]):
                mine = (rows == slots[:, s : s + 1]) & (rows >= 0)
                picked = np.where(mine, places, -1).reshape(whole, terms, -1).max(2)
                keys, which = np.unique(
                    np.concatenate([own[:, None], picked], 1), axis=0, return_inverse=True
                )
                which = which.reshape(-1)
                charge(
                    8 * keys.shape[0] * (terms + out) * p.base.shape[1],
                    keys.shape[0] * terms * out * p.base.shape[1],
                )
                there = (keys[:, 1:] >= 0)[:, :, None]
                values = np.where(there, p.base[keys[:, 1:]], 0.0)
                errors = np.where(there, p.error[keys[:, 1:]], 0.0)
                k = kernels[keys[:, 0]]
                self._kept(k, values, errors)
                base.append((k @ values).reshape(-1, p.base.shape[1]))
                error.append(
                    (np.abs(k) @ (errors + unit * np.abs(values)) * (1 + gamma(terms + 8))).reshape(
                        -1, p.base.shape[1]
                    )
                )
                there_too = slots[:, s] >= 0
                found_rows.append(np.where(there_too, slots[:, s], -1))
                found_places.append(np.where(there_too, start + which * out, -1))
                alone.append((p.family, slots[:, s], which, values, errors))
                self._finite(error[-1], _BEYOND)
                start += len(keys) * out
            stacked = np.stack(found_rows, 1), np.stack(found_places, 1)
            each = [
                np.broadcast_to(v.reshape(groups, 1, positions, -1), (groups, out, positions, v.shape[1]))
                for v in stacked
            ]
            first = np.where(each[1] < 0, -1, each[1] + np.arange(out)[:, None, None])
            parts.append(
                Part(p.family, _lines(each[0]), _lines(first), np.concatenate(base), np.concatenate(error))
            )
        found = Form(tuple(parts), *constants)
        if sum(p.rows.shape[1] for p in parts) < 2:
            return found
        return self._cut(found, "sum", self._separate(step, own, kernels, alone))

    def _offset(
        self, step: Affine, x: Form, own: Array, kernels: Array, unit: float
    ) -> tuple[Array, Array, Array]:
        """The constants behind an affine step: places, numbers and their errors."""
        groups, out, terms = step.kernel.shape
        positions = step.index.shape[1]
        places = np.full(step.size, -1)
        base, error = np.zeros(0), np.zeros(0)
        if (x.places >= 0).any():
            keys, which = np.unique(
                np.concatenate([own[:, None], x.places.reshape(-1, terms)], 1), axis=0, return_inverse=True
            )
            there = keys[:, 1:] >= 0
            values, errors = (
                np.where(there, np.append(v, 0.0)[keys[:, 1:]], 0.0)[:, :, None] for v in (x.base, x.error)
            )
            k = kernels[keys[:, 0]]
            self._kept(k, values, errors)
            base = (k @ values).reshape(-1)
            error = (np.abs(k) @ (errors + unit * np.abs(values))).reshape(-1) * (1 + gamma(terms + 8))
            self._finite(error, _BEYOND)
            none = np.repeat(~there.any(1), out)
            at = (which.reshape(groups, 1, positions) * out + np.arange(out)[:, None]).reshape(-1)
            places = np.where(none[at], -1, at)
        if step.offset is None or not step.offset.any():
            return places, base, error
        # One number for each constant and offset that meet, unless they are rounded.
        keys, which = np.stack([places.astype(np.float64), step.offset], 1), np.arange(step.size)
        if not step.rounded:
            keys, which = np.unique(keys, axis=0, return_inverse=True)
        before = keys[:, 0].astype(np.int64)
        start, off = (np.where(before < 0, 0.0, np.append(v, 0.0)[before]) for v in (base, error))
        whole = start + keys[:, 1]
        # Alone an offset is exact, of rounded numbers it may be one of them.
        more = np.where(before < 0, 0.0, gamma(4) * (np.abs(start) + np.abs(keys[:, 1])))
        more = more + (unit * np.abs(keys[:, 1]) if step.rounded else 0.0)
        return which.reshape(-1), whole, (off + more) * _UP

    def _separate(self, step: Affine, own: Array, kernels: Array, alone: Sequence[tuple[int, Array, Array, Array, Array]]) -> (
        tuple[Array, Array, int, Array]
    ):  # fmt: skip
        """|K| root(sum of (|V_k| L_k)^2) for every position: slopes, sizes, their power, and the entries [positions, out].

        Every term reads one row, so the squares add up.
        """
        groups, out, _ = step.kernel.shape
        power = max(self.families[f].power for f, *_ in alone)
        unit = gamma(step.rounded)
        outer = np.array([self._norm(k, unit * np.abs(k) * _UP) for k in kernels])[own]
        squares = np.zeros((2, len(own)))
        for f, rows, which, values, errors in alone:
            inner = np.array([self._norm(v, e) for v, e in zip(values, errors, strict=True)])[which]
            slope, size = self._of(f, rows, power)
            squares += np.square(np.stack([_times(inner, slope), _times(inner, size)]))
        slope, size = _times(outer, np.sqrt(squares * (1 + gamma(len(alone) + 8))) * _UP)
        entries = (
            np.arange(groups * out * step.index.shape[1])
            .reshape(groups, out, -1)
            .swapaxes(1, 2)
            .reshape(-1, out)
        )
        return slope, size, power, entries

    def _activation(self, step: Scalar, x: Form) -> Form:
        f = curve(step.law, step.settings, step.slopes)
        steepest = f.steepest or max(float(np.abs(end).max()) for end in f.everywhere)
        if not math.isfinite(steepest):
            raise NoConstant(
                self._at, f"the activation {step.law[:40]!a} has no bound of its slopes over all inputs"
            )
        sets, slope, size, power = self._by_row(x)
        width = (sets >= 0).sum(1)
        if step.law in _WITHIN:
            most = {"LeakyRelu": max(1.0, steepest), "PRelu": max(1.0, steepest), "ErfGate": 2.0}
            size = _times(most.get(step.law, 1.0), size)
        else:
            size = (
                _times(steepest, size) + (abs(float(f.value(np.zeros(1))[0])) + 2.0**-45) * np.sqrt(width)
            ) * _UP
        if step.law in _BOUNDED:
            size = np.minimum(size, np.sqrt(width) * _UP)
        return self._family(sets, _times(steepest, slope), size, power, step.law)

    def _normalised(self, step: Normalise, x: Form) -> Form:
        count = step.groups.shape[1]
        slope, _, power = self._bounds(x, step.groups)
        root = math.sqrt(step.epsilon + self.variance) * (1 - 2.0**-50)
        order = np.arange(step.size).reshape(step.groups.shape)
        size = np.full(len(order), math.sqrt(count) * _UP)
        found = self._family(order, slope / root * _UP, size, power, "normalised")
        (part,) = found.parts
        weight, bias = step.weight.reshape(-1), step.bias.reshape(-1)
        # Coefficients weight_k e_k, once for each place and weight.
        keys, places = np.unique(
            np.stack([part.places[:, 0].astype(np.float64), weight], 1), axis=0, return_inverse=True
        )
        base = np.zeros((len(keys), count))
        base[np.arange(len(keys)), keys[:, 0].astype(np.int64)] = keys[:, 1]
        part = part._replace(places=places.reshape(-1, 1), base=base, error=np.zeros_like(base))
        values, at = np.unique(bias, return_inverse=True)
        return Form((part,), np.where(bias == 0, -1, at.reshape(-1)), values, np.zeros(len(values)))

    def _softmax(self, step: Softmax, x: Form) -> Form:
        slope, _, power = self._bounds(x, np.arange(len(x.places))[:, None])
        slope = slope[step.groups].max(1)
        free = self._free(x, step.groups, power)
        if free is not None:
            slope = np.minimum(slope, free)
        self._finite(slope, _RAW)
        order = np.arange(step.size).reshape(step.groups.shape)
        return self._family(order, slope, np.ones(len(order)), power, "softmax", average=True)

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
                own = _shifted(family.shared.slopes[side][rows].max(1) * factor * _UP, family.power - power)
                best = own if best is None else np.minimum(best, own)
        return best

    # -- products

    def _gated(self, step: Product) -> Form:
        """Entry by entry: |d(xy)| <= |dx| |y| + |x| |dy|, with the largest entries at most the norm of a row."""
        x, y = self._seen(step.view), self._seen(step.other)
        marks = np.concatenate(
            [p.rows for f in (x, y) for p in f.parts] or [np.zeros((step.size, 1), dtype=np.int64)], 1
        )
        sets = _sets(marks)
        (lx, sx, px), (ly, sy, py) = (self._bounds(f, sets) for f in (x, y))
        power = max(px, py)
        slope = (_times(_shifted(lx, px - power), sy) + _times(_shifted(ly, py - power), sx)) * _UP
        self._finite(slope, _RAW)
        return self._family(sets, slope, _times(sx, sy), power, "product")

    def _bilinear(self, step: Affine, product: Product) -> Form | None:
        """Sums of products of the entries of two values: an average with weights of a softmax, or scores."""
        x, y = self._seen(product.view), self._seen(product.other)
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
        whole: list[tuple[Array, Array, int, Array]] = []
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
            whole.append((used, family.slope[row], family.power, met))
            rows = np.where(used, row + start, rows)
            there |= mine
            start, power = start + len(family.slope), max(power, family.power)
        if (rows < 0).any():
            return None
        values = self._alike(values, index, there)
        v = values.parts[0]
        names = np.full((count, 1 + max(met.shape[1] for *_, met in whole)), -1)
        names[:, 0] = rows
        for used, slope, own, met in whole:
            moves = np.where(used, _shifted(slope, own - power), moves)
            names[used, 1 : 1 + met.shape[1]] = np.take_along_axis(v.rows[index, 0], met, 1)[used]
        known = self.families[v.family]
        first, line = there.argmax(1), np.arange(count)
        slope, size = (np.where(there, n[v.rows[index, 0]], 0.0).max(1) for n in (known.slope, known.size))
        self._finite(size, _VALUES)
        ids, at = np.unique(names, axis=0, return_inverse=True)
        at, joint = at.reshape(-1), max(power, known.power)
        joined = (_times(_shifted(moves, power - joint), size) + _shifted(slope, known.power - joint)) * _UP
        most, largest = np.zeros(len(ids)), np.zeros(len(ids))
        np.maximum.at(most, at, joined)
        np.maximum.at(largest, at, size)
        number = self._new(Family(known.width, most, largest, joint), "average")
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
            ids = _identities(f)[index]
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
        lx, ly = _shifted(lx, px - power), _shifted(ly, py - power)
        nx, ny = (np.array([self._norm(*m[:2]) for m in keys[0]])[keys[1]] for keys in (kx, ky))
        both, of_x, of_y = _times(nx[i], ny[j]), _times(x0[i], ny[j]), _times(y0[j], nx[i])
        pairs, which = np.unique(kx[1][i] * len(ky[0]) + ky[1][j], return_inverse=True)
        if even and len(pairs) <= _PAIRS:
            joint = [self._product(kx[0][k // len(ky[0])], ky[0][k % len(ky[0])]) for k in pairs]
            close = (np.array(column)[which.reshape(-1)] for column in zip(*joint, strict=True))
            both, of_x, of_y = (np.minimum(a, b) for a, b in zip((both, of_x, of_y), close, strict=True))
        main = _times(both, _times(lx[i], sy[j]) + _times(sx[i], ly[j]))
        of_x, of_y = _times(of_x, ly[j]), _times(of_y, lx[i])
        size = _times((_times(nx, sx) + x0)[i], (_times(ny, sy) + y0)[j])
        slopes = [_times(factor, main + more) for more in (of_x + of_y, of_x, of_y)]
        self._finite(slopes[0], _RAW)
        size = _times(factor, size)
        order = np.arange(len(index))[:, None]
        # What all scores of a row of x have in common is (X du)'y with the same y, and the other way round.
        constants = _constants(x, left)[i], _constants(y, right)[j]
        return self._family(
            order, slopes[0], size, power, "scores", shared=Shared((i, j), constants, (slopes[1], slopes[2]))
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

    # -- rows

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
        offsets = np.array([_length(np.abs(x) + ex) for _, _, x, ex in found])[which.reshape(-1)]
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
        offset = np.sqrt(sums(constant * constant * _UP, 1)) * _UP if constant.any() else np.zeros(count)
        blocks: list[tuple[int, Array, Array, Part]] = []  # family, row [count], places [count, width]
        power = max((self.families[p.family].power for p in f.parts), default=0)
        for p in f.parts:
            rows = np.where(gone[:, :, None], -1, p.rows[sets])
            places = np.where(gone[:, :, None], -1, p.places[sets])
            slots = _distinct(rows.reshape(count, -1))
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
            added = [_weighed(norms, n[:, mine]) for n in (ls, ss)]
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
                        joint = self._norm(*wide) * math.sqrt((most > 0).sum()) * _UP + TINY
                        added[n] = np.minimum(added[n], joint)
            slope[mine], size[mine] = added[0], (added[1] + offset[mine]) * _UP
        return slope, size, power

    def _of(self, family: int, rows: Array, power: int) -> tuple[Array, Array]:
        """Slopes (times 2^power) and sizes of rows, 0 for none."""
        f = self.families[family]
        there = rows >= 0
        return np.where(there, _shifted(f.slope[rows], f.power - power), 0.0), np.where(
            there, f.size[rows], 0.0
        )

    def _by_row(self, f: Form) -> tuple[Array, Array, Array, int]:
        marks = np.concatenate([p.rows for p in f.parts] or [np.zeros((len(f.places), 1), dtype=np.int64)], 1)
        sets = _sets(marks)
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
            offset = np.sqrt(sums(offset * offset * _UP, 1)) * _UP
            slope = np.where(mine, np.minimum(slope, _shifted(other[0][one], other[2] - power) * _UP), slope)
            size = np.where(mine, np.minimum(size, (other[1][one] + offset) * _UP), size)
        return self._family(sets, slope, size, power, kind)

    def _family(self, sets: Array, slope: Array, size: Array, power: int, kind: str, average: bool = False,
                shared: Shared | None = None) -> Form:  # fmt: skip
        """New rows of entries [count, width], -1 for none, as a form of their own."""
        count, width = sets.shape
        charge(8 * width * width)
        number = self._new(Family(width, slope, size, power, average, shared), kind)
        n = int((sets >= 0).sum())
        rows, places = (np.full((n, 1), -1, dtype=np.int64) for _ in range(2))
        there = sets >= 0
        rows[sets[there], 0] = np.broadcast_to(np.arange(count)[:, None], sets.shape)[there]
        places[sets[there], 0] = np.broadcast_to(np.arange(width), sets.shape)[there]
        base = np.eye(width)
        return _bare((Part(number, rows, places, base, np.zeros_like(base)),), n)

    def _new(self, family: Family, kind: str) -> int:
        most = float(family.slope.max())
        if not math.isfinite(most):
            raise NoConstant(self._at, _BEYOND)
        if most > 2.0**200 or 0 < most < 2.0**-200:
            shift = math.frexp(most)[1]
            scaled = _shifted(family.slope, -shift)
            shared = family.shared
            if shared is not None:
                one, two = (_shifted(v, -shift) for v in shared.slopes)
                shared = shared._replace(slopes=(one, two))
            family = Family(family.width, scaled, family.size, family.power + shift, family.average, shared)
        self.families.append(family)
        self.stages.append(
            Stage(
                self._at,
                kind,
                family.width,
                float(family.size.max()),
                float(family.slope.max()),
                family.power,
            )
        )
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
    rough = float(interpolated(np.abs(w))) * _UP + apart
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


def _weighed(norms: Array, values: Array) -> Array:
    """sum_b norms_b values_b [blocks, count] -> [count], rounded up; a norm of 0 times what has no bound is 0."""
    return np.asarray(_times(norms[:, None], values).sum(0) * (1 + gamma(len(norms) + 4)))


def _lines(v: Array) -> Array:
    return np.ascontiguousarray(v).reshape(-1, v.shape[-1])


def _length(v: Array) -> float:
    return float(np.sqrt(sums(v * v * _UP, None)) * _UP) if v.any() else 0.0


def _distinct(rows: Array) -> Array:
    """The distinct numbers >= 0 of every line [n, m], in order, -1 behind them: [n, most]."""
    ordered = np.sort(rows, 1)
    new = (ordered >= 0) & np.concatenate(
        [np.ones((len(rows), 1), dtype=bool), ordered[:, 1:] != ordered[:, :-1]], 1
    )
    most = max(int(new.sum(1).max(initial=0)), 1)
    place = np.cumsum(new, 1) - 1
    found = np.full((len(rows), most), -1, dtype=np.int64)
    line, column = np.nonzero(new)
    found[line, place[line, column]] = ordered[line, column]
    return found


def _sets(marks: Array) -> Array:
    """Entries with equal marks [size, m], as sets [count, most] with -1 behind the shorter ones."""
    _, which = np.unique(marks, axis=0, return_inverse=True)
    which = which.reshape(-1)
    order = np.argsort(which, kind="stable")
    counts = np.bincount(which)
    starts = np.cumsum(counts) - counts
    found = np.full((len(counts), int(counts.max())), -1, dtype=np.int64)
    found[which[order], np.arange(len(order)) - starts[which[order]]] = order
    return found


def _identities(f: Form) -> Array:
    """A number for every entry, the same for entries that are the same functional."""
    table = np.concatenate([*(v for p in f.parts for v in (p.rows, p.places)), f.places[:, None]], 1)
    return np.asarray(np.unique(table, axis=0, return_inverse=True)[1]).reshape(-1)


def _constants(f: Form, sets: Array) -> Array:
    """A number for every vector, the same for those whose constants are the same real numbers."""
    return np.asarray(np.unique(f.places[sets], axis=0, return_inverse=True)[1]).reshape(-1)


def _bare(parts: tuple[Part, ...], size: int) -> Form:
    """A form without constants."""
    return Form(parts, np.full(size, -1), np.zeros(0), np.zeros(0))


def _shifted(values: Array, power: int) -> Array:
    """values 2^power from above, where small ones underflow; what is no number stays none."""
    return np.asarray(np.where(values != 0, np.ldexp(values, power) + TINY, 0.0))


def _times(factor: Array | float, value: Array) -> Array:
    """A product of numbers >= 0 that broadcast, rounded up, never to 0; 0 times what has no bound is 0."""
    factor = np.asarray(factor)
    there = (factor != 0) & (value != 0)
    return np.asarray(
        np.where(there, np.where(there, factor, 0.0) * np.where(there, value, 0.0) * _UP + TINY, 0.0)
    )


def sequences(program: Program, domain: Tokens | None, width: int, variance: float = 0.0) -> Sequences:
    """The program over all inputs of tokens of this width, or over those of the domain.

    Raises:
        NotCovered: as `Sequences`; a domain of tokens of another width.
    """
    most = math.inf
    if domain is not None:
        if domain.width != width:
            raise NotCovered("a domain of tokens of another width")
        most = above(Fraction(domain.most) * _root(domain.width if domain.norm == "token-rms" else 1))
    with np.errstate(all="ignore"):
        return Sequences(program, width, most, variance)


def constant_of(program: Program, domain: Tokens | None, norms: tuple[Norm, Norm | str]) -> Fraction:
    """A constant of the program from a norm of input tokens to a norm of output tokens, or to `linf`.

    Raises:
        NotCovered: as `sequences`.
    """
    return norm_between(sequences(program, domain, norms[0].width), norms)


def norm_between(found: Sequences, norms: tuple[Norm, Norm | str]) -> Fraction:
    """The constant between these norms: |x|_2 = root(width) |x|_rms on either side."""
    start, end = norms
    with np.errstate(all="ignore"):
        slope, power = found.constant(*(("linf", 1) if isinstance(end, str) else end))
    value = Fraction(slope) * Fraction(2) ** power
    before = _root(start.width) if start.name == "token-rms" else Fraction(1)
    behind = (
        _root(end.width, below=True) if isinstance(end, Norm) and end.name == "token-rms" else Fraction(1)
    )
    return trimmed(value * before / behind)


def _root(width: int, below: bool = False) -> Fraction:
    """The root of a whole number, from above or from below; exact for squares."""
    root = math.isqrt(width << 128)
    exact = root * root == width << 128
    return Fraction(root + (0 if exact or below else 1), 1 << 64)


# -- the step


def norms_read(scope: Scope, value: Any) -> tuple[Norm, Norm | str]:
    """A norm of tokens, and another one or `linf`."""
    need(isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value), "two norms")
    first, last = norm_of(value[0]), norm_of(value[1])
    need(first is not None and (last is not None or value[1] == "linf"), "norms of tokens")
    assert first is not None
    return first, value[1] if last is None else last


def bound_read(scope: Scope, value: Any) -> Tokens | None:
    """[norm, number]: the tokens of the input have at most this norm."""
    if value is None:
        return None
    need(isinstance(value, list) and len(value) == 2 and isinstance(value[0], str), "a bound of tokens")
    norm, most = norm_of(value[0]), scope.limit(value[1])
    need(norm is not None and 0 < most < 2.0**100, "a bound of tokens")
    assert norm is not None
    return Tokens(norm.name, norm.width, most)


Within = Annotated[Tokens | None, bound_read]
TokenNorms = Annotated[tuple[Norm, Norm | str], norms_read]


@theorem
def tokens(facts: Facts, *, within: Within, norms: TokenNorms, limit: is_.Limit) -> Proved:
    """Attention, normalisation and residual blocks by norms of tokens; computed anew."""
    if facts.subject.exact:
        raise NotCovered("exact checking covers no norms of tokens")
    steps = facts.subject.program.steps
    found = constant_of(facts.subject.program, within, norms)
    shown(found <= Fraction(limit), f"norms of tokens prove {above(found)!r}, not {limit!r}")
    names = str(norms[0]), str(norms[1])
    return Proved(Whole(within=within), Fraction(limit), 0, len(steps) - 1, Rows(0, steps[-1].size), names)
