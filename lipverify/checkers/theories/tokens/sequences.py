"""The forms of a program, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lipverify.checkers.kernel.account import STEP, charge
from lipverify.checkers.kernel.arithmetic import Array, gamma
from lipverify.checkers.kernel.curves import curve
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
from lipverify.checkers.theories.tokens.distances import Tokens, compared, lambert
from lipverify.checkers.theories.tokens.families import BEYOND, NoConstant
from lipverify.checkers.theories.tokens.forms import (
    UP,
    Form,
    Part,
    bare,
    distinct,
    joined,
    lines,
    times,
)
from lipverify.checkers.theories.tokens.lengths import unit_vectors
from lipverify.checkers.theories.tokens.polynomials import Polynomials
from lipverify.checkers.theories.tokens.products import RAW, Products
from lipverify.errors import NotCovered

_WITHIN = ("Relu", "Abs", "LeakyRelu", "PRelu", "Gelu", "GeluTanh", "Silu", "Mish", "Tanh", "Softsign", "Atan", "Asinh", "Sin",
           "Tanhshrink", "HardSwish", "ErfGate", "TanhGate")  # fmt: skip
"""Laws with |f(x)| <= |x|; for LeakyRelu and PRelu times the largest slope, for x (1 + erf) and x (1 + tanh) times 2."""
_BOUNDED = ("Tanh", "Sigmoid", "Softsign", "Sin", "Cos", "Erf")
"""Laws with |f(x)| <= 1."""


class Sequences(Products):
    """The forms of a program's steps, from tokens of the input on. variance: a lower bound of that of what is normalised.

    Raises:
        NotCovered: something has no constant, with the reason, or no rule.
    """

    def __init__(self, program: Program, width: int, most: float, variance: float = 0.0) -> None:
        super().__init__()
        self.variance = variance
        self._forms: list[Form] = []
        self._steps = program.steps
        polynomials = Polynomials(program.steps)
        near, self._units = compared(polynomials), unit_vectors(polynomials, variance)
        self._distances = {k: (tokens, number) for number, tokens in enumerate(near) for k in tokens.weights}
        used = self._needed()
        self._tokens: dict[int, int] = {}
        for k, step in enumerate(program.steps):
            charge(0, STEP)
            self._at = k
            if k not in used:
                self._forms.append(bare((), 0))
            elif isinstance(step, Input):
                if step.size % width:
                    raise NotCovered(f"an input of {step.size} numbers has no tokens of {width}")
                count = step.size // width
                self._forms.append(self._family(np.arange(step.size).reshape(count, width), np.ones(count),
                                                np.full(count, most), 0, "input"))  # fmt: skip
            else:
                self._forms.append(self._step(step))
            for number, tokens in enumerate(near):
                if k == max(tokens.sources) and used & tokens.weights.keys():
                    self._tokens[number] = self._begin(tokens)

    def _needed(self) -> set[int]:
        """The steps behind the last one, where weights by distances read their tokens alone, unit vectors themselves, and a
        softmax of one number nothing."""
        found, left = {0}, [len(self._steps) - 1]
        while left:
            k = left.pop()
            if k not in found:
                found.add(k)
                step = self._steps[k]
                if k in self._distances:
                    left += self._distances[k][0].sources
                elif k in self._units:
                    left += self._units[k].view.sources
                elif not (isinstance(step, Softmax) and step.groups.shape[1] == 1):
                    left += step.reads
        return found

    def _begin(self, tokens: Tokens) -> int:
        """Begins a family of vectors whose distances are taken: what is computed from them is a function of its rows."""
        sizes = [self._steps[s].size for s in tokens.sources]
        whole = joined([self._form(s) for s in tokens.sources])
        count, width = tokens.places.shape
        rest = np.setdiff1d(np.arange(sum(sizes)), tokens.places)
        sets = np.full((count + len(rest), width), -1, dtype=np.int64)
        sets[:count], sets[count:, 0] = tokens.places, rest
        form = self._family(sets, *self._bounds(whole, sets), "compared")
        for source, start, size in zip(tokens.sources, np.cumsum([0, *sizes]), sizes, strict=False):
            self._forms[source] = form.take(np.arange(start, start + size))
        return form.parts[0].family

    # -- what is asked

    def constant(self, norm: str, width: int) -> tuple[float, int]:
        """(m, e): no token of the last step changes by more than m 2^e times the largest l2 change of an input token.

        norm: `linf`, of single numbers, or one of tokens, in l2 here.
        """
        size = self._steps[-1].size
        if size % width:
            raise NotCovered(f"an output of {size} numbers has no tokens of {width}")
        slope, _, power = self._bounds(self._forms[-1], np.arange(size).reshape(-1, width))
        self._finite(slope, BEYOND)
        return float(slope.max()), power

    # -- steps

    def _step(self, step: Step) -> Form:
        if isinstance(step, Constant):
            values, places = np.unique(step.values, return_inverse=True)
            return Form((), np.where(step.values == 0, -1, places.reshape(-1)), values, np.zeros(len(values)))
        if isinstance(step, Affine):
            product = self._steps[step.reads[0]] if len(step.reads) == 1 else None
            summing = step.kernel.shape[:2] == (1, 1) and step.index.shape[2] > 1
            if isinstance(product, Product) and summing and step.reads[0] not in self._units:
                found = self._bilinear(step, self._seen(product.view), self._seen(product.other))
                if found is not None:
                    return found
            return self._affine(step, self._seen(step.view))
        if self._at in self._units:
            view, sets, most, longest = self._units[self._at]
            slope, _, power = self._bounds(self._seen(view), sets)
            size = np.full(len(sets), longest)
            return self._family(sets, times(most, slope), size, power, "normalised")
        if isinstance(step, Product):
            later = [s for s in self._steps if self._at in s.reads]
            summed = all(
                isinstance(s, Affine) and s.kernel.shape[:2] == (1, 1) and s.index.shape[2] > 1 for s in later
            )
            return bare((), 0) if summed and later else self._product_of(step)
        if self._at in self._distances:
            return self._nearby(step)
        if isinstance(step, Softmax) and step.groups.shape[1] == 1:
            order = np.arange(step.size)[:, None]
            return self._family(order, np.zeros(len(order)), np.ones(len(order)), 0, "softmax", average=True)
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
            return bare((), max(len(view.places), 1))
        charge(0, 32 * len(view.places))
        return joined([self._form(s) for s in view.sources]).take(view.places)

    def _form(self, step: int) -> Form:
        found = self._forms[step]
        if len(found.places) != self._steps[step].size:
            product = self._steps[step]
            assert isinstance(product, Product)
            found = self._forms[step] = self._product_of(product)
        return found

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
            slots = distinct(rows)
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
                error.append(_off(k, values, errors, unit).reshape(-1, p.base.shape[1]))
                there_too = slots[:, s] >= 0
                found_rows.append(np.where(there_too, slots[:, s], -1))
                found_places.append(np.where(there_too, start + which * out, -1))
                alone.append((p.family, slots[:, s], which, values, errors))
                self._finite(error[-1], BEYOND)
                start += len(keys) * out
            stacked = np.stack(found_rows, 1), np.stack(found_places, 1)
            each = [
                np.broadcast_to(v.reshape(groups, 1, positions, -1), (groups, out, positions, v.shape[1]))
                for v in stacked
            ]
            first = np.where(each[1] < 0, -1, each[1] + np.arange(out)[:, None, None])
            parts.append(
                Part(p.family, lines(each[0]), lines(first), np.concatenate(base), np.concatenate(error))
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
            error = _off(k, values, errors, unit).reshape(-1)
            self._finite(error, BEYOND)
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
        return which.reshape(-1), whole, (off + more) * UP

    def _separate(self, step: Affine, own: Array, kernels: Array, alone: Sequence[tuple[int, Array, Array, Array, Array]]) -> (
        tuple[Array, Array, int, Array]
    ):  # fmt: skip
        """|K| root(sum of (|V_k| L_k)^2) for every position: slopes, sizes, their power, and the entries [positions, out].

        Every term reads one row, so the squares add up.
        """
        groups, out, _ = step.kernel.shape
        power = max(self.families[f].power for f, *_ in alone)
        unit = gamma(step.rounded)
        outer = np.array([self._norm(k, unit * np.abs(k) * UP) for k in kernels])[own]
        squares = np.zeros((2, len(own)))
        for f, rows, which, values, errors in alone:
            inner = np.array([self._norm(v, e) for v, e in zip(values, errors, strict=True)])[which]
            slope, size = self._of(f, rows, power)
            squares += np.square(np.stack([times(inner, slope), times(inner, size)]))
        slope, size = times(outer, np.sqrt(squares * (1 + gamma(len(alone) + 8))) * UP)
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
            most = {
                "LeakyRelu": max(1.0, steepest),
                "PRelu": max(1.0, steepest),
                "ErfGate": 2.0,
                "TanhGate": 2.0,
            }
            size = times(most.get(step.law, 1.0), size)
        else:
            size = (
                times(steepest, size) + (abs(float(f.value(np.zeros(1))[0])) + 2.0**-45) * np.sqrt(width)
            ) * UP
        if step.law in _BOUNDED:
            size = np.minimum(size, np.sqrt(width) * UP)
        return self._family(sets, times(steepest, slope), size, power, step.law)

    def _normalised(self, step: Normalise, x: Form) -> Form:
        count = step.groups.shape[1]
        slope, _, power = self._bounds(x, step.groups)
        root = math.sqrt(step.epsilon + self.variance) * (1 - 2.0**-50)
        order = np.arange(step.size).reshape(step.groups.shape)
        size = np.full(len(order), math.sqrt(count) * UP)
        found = self._family(order, slope / root * UP, size, power, "normalised")
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

    def _nearby(self, step: Step) -> Form:
        """A softmax that falls with distances: |dP|_1 <= 4 root(s W) L (`distances`)."""
        assert isinstance(step, Softmax)
        tokens, number = self._distances[self._at]
        keys, scale = tokens.weights[self._at]
        family = self.families[self._tokens[number]]
        w = lambert(keys.shape[1] - 1)
        slope = times(4.0 * np.sqrt(scale * w) * UP, family.slope[keys].max(1))
        order = np.arange(step.size).reshape(step.groups.shape)
        return self._family(order, slope, np.ones(len(order)), family.power, "softmax", average=True,
                            nearby=(self._tokens[number], keys))  # fmt: skip

    def _softmax(self, step: Softmax, x: Form) -> Form:
        slope, _, power = self._bounds(x, np.arange(len(x.places))[:, None])
        slope = slope[step.groups].max(1)
        free = self._free(x, step.groups, power)
        if free is not None:
            slope = np.minimum(slope, free)
        self._finite(slope, RAW)
        order = np.arange(step.size).reshape(step.groups.shape)
        return self._family(order, slope, np.ones(len(order)), power, "softmax", average=True)

    def _product_of(self, step: Product) -> Form:
        return self._gated(self._seen(step.view), self._seen(step.other))


def _off(kernel: Array, values: Array, errors: Array, unit: float) -> Array:
    """How far K V may be from what float64 makes of it: K within `unit` of kernel, relatively, and V within errors of values.

    kernel: [.., out, terms]; values, errors: [.., terms, width]. Both are off at once: where values cancel, errors are all.
    """
    rounding = 1 + gamma(kernel.shape[-1] + 8)
    return np.asarray(np.abs(kernel) @ (errors + unit * (np.abs(values) + errors)) * rounding)
