"""Multipliers of a cone solver, raised, scaled and evaluated again: its own objective is never a bound."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from lipverify.analyzers.lipsdp.bound import certified_upper
from lipverify.analyzers.lipsdp.reference import ReferenceSolution, certified_dense
from lipverify.analyzers.lipsdp.solver import Solution, fast
from lipverify.analyzers.lipsdp.system import LoopedSystem
from lipverify.analyzers.protocol import Compute
from lipverify.errors import Undecided
from lipverify.linalg.rounding import Upper

FLOORS = (1e-9, 1e-6, 1e-4, 1e-2)
"""Multipliers below this share of their block's median are raised to it: a zero multiplier leaves its neuron unbounded."""
FACTORS = tuple(1 + step for step in (0.0, 1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1))
"""A solver ends slightly outside the cone; a larger D is closer to its middle."""


def reciprocal(weights: tuple[Tensor, ...], rho: float, floor: float) -> list[Tensor]:
    """D = rho / lambda for every block, with small and negative lambda raised to a floor."""
    result = []
    for values in weights:
        positive = values[values > 0]
        middle = float(positive.median()) if len(positive) else 1.0
        result.append(rho / values.clamp_min(middle * floor))
    return result


def _solution(diagonals: tuple[Tensor, ...], upper: Upper, message: str) -> Solution:
    try:
        value: float | None = float(upper)
    except OverflowError:
        value = None
    return Solution(
        multipliers=diagonals,
        exponents=(0,) * len(diagonals),
        upper=value,
        log10_upper=upper.log10() if upper else -math.inf,
        trace=(),
        iterations=0,
        gap=None,
        message=message,
    )


def evaluated_again(system: LoopedSystem, found: ReferenceSolution, compute: Compute) -> Solution:
    """The best certified bound from a cone solver's multipliers; the closed form where it is better.

    Raises:
        Undecided: nothing could be certified; only for systems with loops, which have no closed form.
    """
    said = f"{found.solver}: status {found.status}, objective {found.objective!r}"
    causal = not system.loops
    best = fast(system.causal, compute) if causal else None
    if best is not None:
        best = replace(best, message=f"{said}; its multipliers could not be repaired")
    if found.objective == 0.0 and best is not None:
        return best
    for floor in FLOORS:
        diagonals = reciprocal(found.multipliers, found.objective**2, floor)
        for factor in FACTORS:
            scaled = tuple(d * factor for d in diagonals)
            upper = certified_upper(system.causal, scaled) if causal else certified_dense(system, scaled)
            if upper is None or (best is not None and best.upper is not None and not upper < best.upper):
                continue
            best = _solution(scaled, upper, f"{said}; multipliers evaluated again")
    if best is None:
        raise Undecided(
            f"{said}; its multipliers could not be repaired, and implicit layers have no closed form"
        )
    return best
