"""Vectors over their own length, as cosine attention has them: x / max(|x|, e), x / (|x| + e), x / sqrt(|x|^2 + e^2).

Statement: x over l(|x|), where l is a root of |x|^2 in front of and behind which numbers >= 0 may be added, or taken as a least
value: its length is at most 1, its constant in l2 at most 1/l(0).
Proof: l rises, l(r) >= r and l(r)/r falls: this holds of r, and each part keeps it. With g = 1/l the Jacobian of x g(r) is g
across x and (r g)' = g + r g' in [0, g] along x, and g(r) <= g(0).

A mean under the root, factors f_t in front of its squares, is |Dx|^2 for D^2 = diag(f): x is D^-1 times Dx over its length.

Nothing is taken from a name: the sum under the root is the polynomial sum of squares of the entries that it divides, each once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lipverify.checkers.kernel.arithmetic import Array, gamma
from lipverify.checkers.kernel.program import Affine, Product, Scalar, Step, View, by_source, sizes_of
from lipverify.checkers.theories.tokens.forms import DOWN, UP, sets_of
from lipverify.checkers.theories.tokens.polynomials import Polynomials, collected

Laws = list[tuple[str, Array | float]]
"""Roots, least values and what is added, with their numbers."""


class Units(NamedTuple):
    """A product that is vectors over their lengths. view: the vectors; sets: the entries of each [count, width], -1 behind
    shorter ones; slope: their constants, 1/l(0) [count]; size: how long they are at most."""

    view: View
    sets: Array
    slope: Array
    size: float


def unit_vectors(p: Polynomials, variance: float) -> dict[int, Units]:
    """The products of a program that are vectors over their own length. variance: what is known of the least mean square."""
    found = {}
    for k, step in enumerate(p.steps):
        if isinstance(step, Product):
            one = _units(p, step.view, step.other, variance) or _units(p, step.other, step.view, variance)
            if one is not None:
                found[k] = one
    return found


def _units(p: Polynomials, x: View, inverse: View, variance: float) -> Units | None:
    under = _under(p.steps, inverse)
    if under is None:
        return None
    k, entries, laws = under
    squares, (total, factor) = p.multiplied(x, x), p.alike(k)
    if squares is None or total is None:
        return None
    # Entries over one length are a vector, and what is under its root are their squares.
    sets = sets_of(entries[:, None])
    row, column = np.nonzero(sets >= 0)
    own, whole = (
        collected(np.broadcast_to(e[:, None], f.shape)[f != 0], one[f != 0], two[f != 0], f[f != 0])
        for e, (f, one, two) in (
            (row, [v[sets[row, column]] for v in squares]),
            (np.arange(len(sets)), [v[entries[sets[:, 0]]] for v in total]),
        )
    )
    if not all(np.array_equal(a, b) for a, b in zip(own, whole, strict=True)):
        return None
    step = p.steps[k]
    off = 1.0 + 2.0 * gamma(4 + (step.rounded if isinstance(step, Affine) else 0))
    least = _least(laws, (sets >= 0).sum(1) * (factor * variance / off * DOWN), sets)
    return None if least is None else Units(x, sets, off / least * UP, math.sqrt(off / factor) * UP)


def _under(steps: Sequence[Step], view: View) -> tuple[int, Array, Laws] | None:
    """For 1/l(|x|), entry by entry: the step and its entries that hold |x|^2, and the parts of l; None for anything else."""
    entries, laws = np.arange(len(view.places)), Laws()
    inverse = root = False
    while True:
        shown = list(by_source(View(view.sources, view.places[entries]), sizes_of(view, steps)))
        if len(shown) != 1 or len(shown[0][1]) != len(entries):
            return None
        k, _, entries = shown[0]
        step = steps[k]
        law = step.law if isinstance(step, Scalar) and not step.rounded and step.slopes is None else ""
        settings = dict(step.settings) if isinstance(step, Scalar) else {}
        both = law == "Power" and settings == {"exponent": -0.5}
        if (
            (law == "Reciprocal" and not inverse)
            or (law == "Sqrt" and not root)
            or (both and not (inverse or root))
        ):
            inverse, root = inverse or law != "Sqrt", root or law != "Reciprocal"
            laws += [("Sqrt", 0.0)] if law != "Reciprocal" else []
        elif inverse and law == "Clip" and settings.keys() == {"min"}:
            laws.append(("Clip", settings["min"]))
        elif inverse and isinstance(step, Affine) and _shifted(step):
            if step.offset is not None:
                laws.append(("Add", step.offset[entries]))
            out, positions = step.kernel.shape[1], step.index.shape[1]
            entries = step.index[entries // (out * positions), entries % positions, 0]
            if (entries < 0).any():
                return None
        else:
            break
        view = step.view
    return (k, entries, laws[::-1]) if inverse and root else None


def _least(laws: Laws, square: Array, sets: Array) -> Array | None:
    """l from below for every vector, where |x|^2 is at least `square`; None where it may be 0, or is not one l of all entries."""
    least = square
    for name, number in laws:
        if name == "Sqrt":
            least = np.sqrt(least)
        elif name == "Clip":
            least = np.maximum(least, number)
        else:
            each = np.asarray(number)[sets]
            if ((each != each[:, :1]) & (sets >= 0)).any() or (each[:, 0] < 0).any():
                return None
            least = least + each[:, 0]
        least = least * DOWN
    return least if bool(((least > 2.0**-200) & (least < 2.0**200)).all()) else None


def _shifted(step: Affine) -> bool:
    """x + offset, entry by entry."""
    return step.kernel.shape[2] == 1 and not step.rounded and bool((step.kernel == 1.0).all())
