"""Constants of the logit differences over one l2 ball: LipSDP with the slopes of the ball, the most critical rival first.

Legend: m_j = f_y - f_j; L_j >= |m_j(x) - m_j(x')|_2 / |x - x'|_2 over the ball; M_j <= m_j where the shell begins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.bound import certified_functionals
from lipverify.analyzers.lipsdp.canonical import canonical_form
from lipverify.analyzers.lipsdp.solver import Settings, Solution, estimate, fast, solve
from lipverify.analyzers.lipsdp.system import BlockSystem, one_output
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph
from lipverify.linalg.rounding import Upper
from lipverify.propagation import Bounds

SETTINGS = Settings(tol=1e-2, max_iterations=12)
"""A constant to half a per cent is enough: the width of the shell costs more."""
SEARCH_WORK = 1.5e11
"""Multiplications of one step of the search beyond which only the closed form is used."""


def ball_constants(
    graph: Graph, ranges: Bounds, known: Tensor, margin: Tensor, solves: int, compute: Compute
) -> Tensor | None:
    """Constants of all outputs over the one ball of `ranges`, never above `known`: [outputs]; None where nothing is bounded.

    Statement: output j is L_j-Lipschitz in l2 on the ball.
    Source: Fazlyab et al., NeurIPS 2019 (arXiv 1906.04893), with the slopes of the ball as in Hashemi, Ruths, Fazlyab, L4DC
        2021. One search for the output whose M_j / L_j is smallest; its multipliers bound all others too
        (`certified_functionals`), then the next one that is smallest.
    Sound when: as `lipsdp` and `propagation.bounds`.

    Args:
        known: constants that hold on the ball already; infinite where there is none. margin: M_j.
        solves: searches at most.
    """
    try:
        system = canonical_form(graph, ranges, compute.device)
        quick = fast(system, compute)
    except UnsupportedModel:
        return known if bool(known.isfinite().all()) else None
    best = _with_functionals(known, system, quick)
    if not system.sizes or estimate(system)[1] > SEARCH_WORK or compute.remaining() <= 0:
        return best if bool(best.isfinite().all()) else None
    searched = set[int]()
    for _ in range(solves):
        critical = int((margin / best.clamp_min(1e-300)).argmin())
        if critical in searched or compute.remaining() <= 0:
            break
        searched.add(critical)
        single = one_output(system, critical)
        found = solve(single, compute, SETTINGS)
        if found.upper is not None:
            best[critical] = min(float(best[critical]), found.upper)
        if len(searched) < solves:
            best = _with_functionals(best, system, found)
    return best if bool(best.isfinite().all()) else None


def _with_functionals(best: Tensor, system: BlockSystem, found: Solution) -> Tensor:
    """The smaller of what is known and what these multipliers give for every output; they may give nothing."""
    rows = torch.eye(system.outputs, dtype=torch.float64, device=system.device)
    bounds = certified_functionals(system, found.multipliers, found.exponents, rows)
    if bounds is None:
        return best
    return torch.minimum(best, torch.tensor([_number(bound) for bound in bounds], dtype=torch.float64))


def _number(bound: Upper) -> float:
    try:
        return float(bound)
    except OverflowError:
        return float("inf")
