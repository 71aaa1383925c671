"""Arithmetic of stored numbers: sizes that exporters compute, and weights that they compute from weights.

Real numbers are folded exactly, or with a count of roundings that bounds their relative error (Higham, Accuracy and Stability,
2nd edition, Lemma 3.3); where neither is possible they become steps of the program. What is not finite in the type of the file
would be an infinity in a runtime, and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lipverify.checkers.kernel.arithmetic import held
from lipverify.checkers.kernel.curves import curve
from lipverify.checkers.kernel.program import MOST_ROUNDINGS, Array, Implicit, Scalar
from lipverify.checkers.reader.building import FLOATS, Builder, Operand, Stored, size_of, stored, weights
from lipverify.checkers.reader.calls import Call
from lipverify.checkers.reader.choices import Sign, compared
from lipverify.checkers.reader.refusals import need

_LARGEST, _SLOW = 4096, 64
"""Integers in one tensor: sizes and indices of exporters, not data. They are counted one by one, which takes time."""


def fold(p: Builder, op: str, operands: Sequence[Stored]) -> Stored | None:
    """Sum, difference, product or quotient of stored real numbers; None where its rounding has no relative bound."""
    if op == "Sum" and len(operands) == 1:
        return operands[0]
    if op not in ("Add", "Sub", "Mul", "Div") or len(operands) != 2:
        return None
    p.charge(4 * size_of(np.broadcast_shapes(*(x.shape for x in operands))))
    found = _folded(op, operands)
    return None if found is None else _kept(op, operands, found)


def _folded(op: str, operands: Sequence[Stored]) -> Stored | None:
    (a, m), (b, n) = (weights(x) for x in operands)
    if op == "Div":
        need(bool(b.all()), "a division by zero")
        return finite(held(np.asarray(a / b), a), operands[0], m + 2 * n + 1)
    if op == "Mul":
        product, more = multiplied(a, b)
        return finite(product, operands[0], m + n + more)
    b = -b if op == "Sub" else b
    total = np.asarray(a + b)
    # Knuth's exact error of a sum.
    back = total - a
    exact = m == n == 0 and not bool(((a - (total - back)) + (b - back)).any())
    if exact:
        return finite(total, operands[0], 0)
    same = bool((np.sign(a) * np.sign(b) >= 0).all())  # a product of the numbers themselves may underflow
    return finite(total, operands[0], max(m, n) + 1) if same else None


def fold_one(p: Builder, op: str, x: Stored) -> Stored | None:
    """A function of stored numbers, None where it is left to a step."""
    if op not in ("Sqrt", "Reciprocal", "Abs", "Square"):
        return None
    p.charge(4 * x.array.size)
    return x.showing(np.abs(x.array)) if op == "Abs" else _kept(op, [x], _folded_one(op, x))


def _folded_one(op: str, x: Stored) -> Stored:
    values, rounded = weights(x)
    if op == "Sqrt":
        need(bool((values >= 0).all()), "a root of a negative number")
        return finite(np.sqrt(values), x, rounded + 1)
    if op == "Square":
        return finite(held(np.square(values), values), x, 2 * rounded + 1)
    need(bool(values.all()), "a division by zero")
    return finite(held(1.0 / values), x, 2 * rounded + 1)


_OWN: dict[str, Callable[..., Array]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Sqrt": np.sqrt, "Square": np.square,
    "Reciprocal": np.reciprocal,
}  # fmt: skip


def _kept(op: str, operands: Sequence[Stored], found: Stored) -> Stored:
    """What was folded, where its type keeps half of the digits: what cancels there, or is smaller than all of its normal
    numbers, is another number in every runtime, and later factors can make anything of it."""
    with np.errstate(all="ignore"):
        own = np.asarray(_OWN[op](*(x.array.astype(found.kind) for x in operands)), np.float64)
        lost = np.abs(own - found.array) > 4.0 * math.sqrt(np.finfo(found.kind).eps / 2.0) * np.abs(
            found.array
        )
    need(not bool(lost.any()), f"a number computed from stored ones ({op}) that {found.kind} does not hold")
    return found


def multiplied(a: Array, b: Array | float) -> tuple[Array, int]:
    """a b in float64, and how many roundings are behind it: none where the longest numbers of both have 53 bits together, or one
    side holds powers of 2 alone.

    What decides is the numbers: a type says nothing of those that were folded.
    """
    product, lengths = held(np.asarray(a * b), a, b), [bits(a), bits(np.asarray(b))]
    return product, int(sum(lengths) > 53 and min(lengths) > 1)


def bits(values: Array) -> int:
    """Bits of the longest of these numbers, from its first to its last 1."""
    whole = np.ldexp(np.frexp(values.astype(np.float64))[0], 53).astype(np.int64)
    whole = whole[whole != 0]
    # The last 1 of the mantissa, a power of 2, whose exponent is exact.
    last = np.frexp((whole & -whole).astype(np.float64))[1] - 1
    return int(53 - last.min(initial=53))


def finite(values: Array, like: Stored, rounded: int) -> Stored:
    need(rounded < MOST_ROUNDINGS >> 8, "stored numbers of so many roundings are not covered by the checker")
    known = np.abs(values[values != 0])
    most = float(np.finfo(like.kind).max)
    need(bool((known <= most).all()), "stored numbers beyond their type")
    need(bool((known >= 2.0**-500).all()), "numbers near the ends of float64 are not covered by the checker")
    return Stored(values, like.kind, rounded)


# -- integers and truth values


def fold_integers(p: Builder, op: str, arrays: Sequence[Array]) -> Stored:
    """Arithmetic of stored integers, exactly; quotients are cut towards 0."""
    found = [_each(op, s, t) for s, t in zip(*_pairs(p, arrays), strict=True)]
    need(all(-(2**63) <= n < 2**63 for n in found), "an integer out of range")
    return stored(np.array(found, np.int64).reshape(np.broadcast_shapes(*(a.shape for a in arrays))))


def _pairs(p: Builder, arrays: Sequence[Array]) -> tuple[list[int], list[int]]:
    need(
        len(arrays) == 2 and all(a.dtype == np.dtype("<i8") for a in arrays),
        "stored tensors that are no integers",
    )
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    need(
        p.charge(_SLOW * size_of(shape)) <= _SLOW * _LARGEST,
        "arithmetic of many stored integers is not covered by the checker",
    )
    a, b = (np.broadcast_to(x, shape).reshape(-1).tolist() for x in arrays)
    return a, b


def _each(op: str, s: int, t: int) -> int:
    if op == "Div":
        need(t != 0, "a division by zero")
        return abs(s) // abs(t) * (1 if (s < 0) == (t < 0) else -1)
    if op == "Mod":
        need(t != 0, "a division by zero")
        return s % t  # of the sign of the divisor, as in ONNX without fmod
    rules: dict[str, Callable[[int, int], int]] = {"Add": int.__add__, "Sub": int.__sub__, "Mul": int.__mul__}
    need(op in rules, f"{op} of integers is not covered by the checker")
    return rules[op](s, t)


def _compared(p: Builder, c: Call) -> list[Operand]:
    """Comparisons of stored integers, and the signs of computed tensors."""
    found = compared(c)
    if found is not None:
        return [found]
    arrays = [c.stored(0), c.stored(1)]
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    if all(a.dtype.kind == "f" for a in arrays):
        return [_compared_reals(p, c, shape)]
    rules: dict[str, Callable[[int, int], bool]] = {
        "Equal": int.__eq__, "Less": int.__lt__, "Greater": int.__gt__, "LessOrEqual": int.__le__, "GreaterOrEqual": int.__ge__,
    }  # fmt: skip
    pairs = zip(*_pairs(p, arrays), strict=True)
    return [stored(np.array([rules[c.op](s, t) for s, t in pairs], bool).reshape(shape))]


def _compared_reals(p: Builder, c: Call, shape: tuple[int, ...]) -> Stored:
    """Of real numbers that their type holds: what is folded may have more digits than a runtime compares."""
    p.charge(2 * size_of(shape))
    a, b = c.any(0), c.any(1)
    assert isinstance(a, Stored)
    assert isinstance(b, Stored)
    own = a.kind == b.kind and all(bool((x.array.astype(x.kind) == x.array).all()) for x in (a, b))
    need(own, f"{c.op} of numbers of different types, or of more digits than their type has")
    rules = {"Equal": np.equal, "Less": np.less, "Greater": np.greater, "LessOrEqual": np.less_equal,
             "GreaterOrEqual": np.greater_equal}  # fmt: skip
    return stored(np.asarray(rules[c.op](a.array, b.array), bool))


def _no_number(p: Builder, c: Call) -> list[Operand]:
    """IsNaN: of real numbers nothing is, where there are numbers for all inputs."""
    x = c.any(0)
    need(x.kind in FLOATS, "integers where real numbers are expected")
    if isinstance(x, Stored):
        weights(x)
    else:
        found, waiting = set(x.sources), list(x.sources)
        p.charge(len(p.steps))
        while waiting:
            step = p.steps[waiting.pop()]
            whole = not isinstance(step, Implicit)
            whole = whole and not (
                isinstance(step, Scalar) and curve(step.law, step.settings, step.slopes).positive
            )
            need(whole, "IsNaN of what may have no value is not covered by the checker")
            waiting += [s for s in step.reads if s not in found]
            found.update(step.reads)
    p.charge(size_of(x.shape))
    return [stored(np.zeros(x.shape, bool))]


def _negated(p: Builder, c: Call) -> list[Operand]:
    by = c.marked(0, Sign)
    if by is not None:
        return [replace(by, above=not by.above)]
    x = c.stored(0)
    need(x.dtype == np.dtype("?"), "a negation of numbers")
    p.charge(x.size)
    return [stored(~x)]


def _joined(p: Builder, c: Call) -> list[Operand]:
    a, b = c.stored(0), c.stored(1)
    need(a.dtype == b.dtype == np.dtype("?"), f"{c.op} of numbers")
    p.charge(size_of(np.broadcast_shapes(a.shape, b.shape)))
    return [stored(a & b if c.op == "And" else a | b)]


def _remainder(p: Builder, c: Call) -> list[Operand]:
    need(not c.flag("fmod", 0), "remainders with the sign of what is divided are not covered by the checker")
    return [fold_integers(p, c.op, [c.stored(0), c.stored(1)])]


def _filled(p: Builder, c: Call) -> list[Operand]:
    """ConstantOfShape: one number, everywhere."""
    shape = c.integers_at(0)
    value = c.array("value", np.zeros(1, np.float32))
    need(value.size == 1 and value.ndim == 1, "a constant of several numbers")
    p.charge(size_of(shape))
    return [stored(np.full(shape, value[0], value.dtype))]


def _range(p: Builder, c: Call) -> list[Operand]:
    ends = [c.stored(k) for k in range(3)]
    need(all(e.dtype == np.dtype("<i8") and e.ndim == 0 for e in ends), "a range of other numbers")
    start, stop, step = (int(e) for e in ends)
    need(step != 0, "a range that never ends")
    count = max(0, math.ceil((stop - start) / step)) if abs(stop - start) < 1 << 52 else 1 << 62
    need(p.charge(min(count, 1 << 40)) <= 1 << 20, "a range too long to check")
    return [stored(np.arange(start, stop, step, dtype=np.int64))]


def _size(p: Builder, c: Call) -> list[Operand]:
    return [stored(np.array(math.prod(c.any(0).shape), np.int64))]


FOLDED: dict[str, tuple[str, Callable[[Builder, Call], list[Operand]]]] = {
    **dict.fromkeys(("Less", "Greater"), ("7 9 13", _compared)),
    **dict.fromkeys(("LessOrEqual", "GreaterOrEqual"), ("12 16", _compared)),
    "Mod": ("10 13 28", _remainder),
    "Equal": ("7 11 13 19", _compared),
    "Not": ("1", _negated),
    "IsNaN": ("9 13 20", _no_number),
    **dict.fromkeys(("And", "Or"), ("7", _joined)),
    "ConstantOfShape": ("9 20 21 23 24 25", _filled),
    "Range": ("11 27", _range),
    "Size": ("1 13 19 21 23 24 25", _size),
}
"""Operators of stored tensors alone."""
