"""Loops by sectors: every derivative of the policy lies between two numbers, and one quadratic form falls at every corner."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lipverify.analyzers.local.entries import entry_ranges
from lipverify.checkers.closed_forms import FREE
from lipverify.checkers.quantities import slopes
from lipverify.derived.computed import OfNetwork, program_of, rounded
from lipverify.derived.derivation import Derived, certificate_of, derive
from lipverify.derived.networks import audited
from lipverify.errors import NotCovered, Undecided, UnreadableCertificate, UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.results import Audit

Array = NDArray[np.float64]


def sector(policy: Graph, radius: float) -> tuple[Array, Array]:
    """Matrices [outputs, inputs] between which the derivatives of a policy lie where entries are at most `radius` in size.

    Statement: low <= dp_i/dx_j <= high almost everywhere in the box; if p(0) = 0, p(x) = S x with low <= S <= high there.
    Source: the analyzer `local`; the mean value theorem. For a policy of one state: low <= p(x) / x <= high.
    """
    shape = policy.input_shape
    if not 0.0 <= radius < math.inf:
        raise UsageError(f"a radius is a finite number >= 0, not {radius!r}")
    found = entry_ranges(policy, Ball(torch.zeros(1, *shape, dtype=torch.float64), radius, Norm.LINF))
    return found.lower[0].cpu().numpy(), found.upper[0].cpu().numpy()


def certified_sector(policy: Graph, radius: float) -> tuple[Audit, Array, Array] | None:
    """A policy's audit in the box, and the ends of its derivatives there as the checker has them; None where it has none."""
    ball = Ball(torch.zeros(1, *policy.input_shape, dtype=torch.float64), radius, Norm.LINF)
    try:
        found = audited(policy, ("product", "local"), ball)
        program = program_of(certificate_of(found), found.graph)
        ends = None if program is None else slopes(program, Fraction(radius))
    except (NotCovered, Undecided, UnreadableCertificate, UsageError):
        return None
    if ends is None:
        return None
    low, high = (
        np.array([[rounded(Fraction(x), side) for x in row] for row in end.tolist()])
        for end, side in zip(ends, ("lower", "upper"), strict=True)
    )
    return found, low, high


def closed_by_sector(
    dynamics: Array, control: Array, low: Array, high: Array, radius: float, policy: Audit | None = None
) -> Derived:
    """x+ = A x + B p(x) with the derivatives of p between `low` and `high` in the box. policy: the audit of the network p.

    Raises:
        Undecided: no shape was found.
    """
    n, m = control.shape
    if dynamics.shape != (n, n) or not low.shape == high.shape == (m, n):
        raise UsageError(
            f"dynamics {dynamics.shape}, control {control.shape} and a sector {low.shape} do not fit"
        )
    if not bool((low <= high).all()):
        raise UsageError("a sector has its lower ends first")
    free = int((low < high).sum())
    if free > FREE:
        raise UsageError(
            f"a sector with {free} derivatives that are not known exactly; at most {FREE} are covered"
        )
    corners = np.stack([dynamics + control @ each for each in _corners(low, high)])
    shape, rate = _shape(corners)
    if not rate < 1.0:
        raise Undecided(
            f"no quadratic form was found that falls for all derivatives of the sector; the best one grows by {rate:.6g} a step. "
            "A smaller radius has a narrower sector"
        )
    level = radius**2 / float(np.linalg.inv(shape).diagonal().max()) * (1.0 - 1e-9)
    given: dict[str, Any] = {
        "dynamics": dynamics,
        "control": control,
        "low": low,
        "high": high,
        "shape": shape,
    }
    details = {"shape": shape.tolist(), "level": level, "low": low.tolist(), "high": high.tolist()}
    if policy is not None:
        given["low"], given["high"] = OfNetwork(lambda: low), OfNetwork(lambda: high)
        return derive(
            "loop-sector-network",
            details,
            **given,
            constant=policy,
            rate=rate,
            level=level,
            radius=float(radius),
        )
    return derive("loop-sector", details, **given, rate=rate, level=level, radius=radius)


def _corners(low: Array, high: Array) -> list[Array]:
    ends = [(a, b) if a < b else (a,) for a, b in zip(low.flat, high.flat, strict=True)]
    return [np.array(each).reshape(low.shape) for each in itertools.product(*ends)]


def _shape(corners: Array) -> tuple[Array, float]:
    """A form P = L L' with the smallest largest growth over all corners [corners, n, n] that a search finds, and that growth."""
    from scipy.optimize import minimize

    n = corners.shape[1]
    rows, columns = np.tril_indices(n)

    def factor(entries: Array) -> Array:
        found = np.zeros((n, n))
        found[rows, columns] = entries
        found[np.diag_indices(n)] = np.exp(found.diagonal())
        return found

    def growth(entries: Array) -> float:
        # |M x|_P / |x|_P at most: the norm of L' M L'^-1.
        root = factor(entries)
        with np.errstate(all="ignore"):
            moved = np.linalg.solve(root, (root.T @ corners).swapaxes(1, 2)).swapaxes(1, 2)
        return float(np.linalg.norm(moved, 2, axis=(1, 2)).max()) if np.isfinite(moved).all() else math.inf

    best = np.zeros(len(rows))
    for _ in range(4):
        found = minimize(
            growth,
            best,
            method="Nelder-Mead",
            options={"maxiter": 400 * len(rows), "xatol": 1e-9, "fatol": 1e-12},
        )
        best = found.x if growth(found.x) <= growth(best) else best
    root = factor(best)
    shape = root @ root.T
    return (shape + shape.T) / 2.0, growth(best) * (1.0 + 1e-7) + 1e-12
