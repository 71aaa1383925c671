"""Constants of the logit differences over one l2 ball: LipSDP with the slopes of the ball, the most critical rival first.

Legend: m_j = f_y - f_j; L_j >= |m_j(x) - m_j(x')|_2 / |x - x'|_2 over the ball; M_j <= m_j where the shell begins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.bound import certified_functionals
from lipverify.analyzers.lipsdp.canonical import canonical_form
from lipverify.analyzers.lipsdp.solver import Run, Settings, Solution, estimate, fast
from lipverify.analyzers.lipsdp.system import BlockSystem, one_output
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph
from lipverify.linalg.rounding import Upper
from lipverify.propagation import Bounds

SETTINGS = Settings(tol=1e-2, max_iterations=12, probes=32)
"""A constant to half a per cent is enough: the width of the shell costs more."""
CLOSE = 0.02
"""A second search pays where another rival ends earlier by more than this share."""
SEARCH_WORK = 1.5e11
"""Multiplications of one step of the search beyond which only the closed form is used."""


def ball_constants(
    graph: Graph,
    ranges: Bounds,
    known: Tensor,
    margin: Tensor,
    expected: Tensor,
    solves: int,
    compute: Compute,
    kept: dict[int, Solution] | None = None,
) -> Tensor | None:
    """Constants of all outputs over the one ball of `ranges`, never above `known`: [outputs]; None where nothing is bounded.

    Statement: output j is L_j-Lipschitz in l2 on the ball.
    Source: Fazlyab et al., NeurIPS 2019 (arXiv 1906.04893), with the slopes of the ball as in Hashemi, Ruths, Fazlyab, L4DC
        2021. One search for the output whose M_j / L_j is expected to be smallest; its multipliers bound all others too
        (`certified_functionals`), then the one that is smallest then.
    Sound when: as `lipsdp` and `propagation.bounds`.

    Args:
        known: constants that hold on the ball already; infinite where there is none. margin: M_j.
        expected: about what the constants will be, positive; only decides what is searched first.
        solves: searches at most. kept: takes, for every output whose constant became smaller, the multipliers that prove it.
    """
    kept = {} if kept is None else kept
    try:
        system = canonical_form(graph, ranges, compute.device)
        best, critical = known, int((margin / expected.clamp_min(1e-300)).argmin())
        if not system.sizes or estimate(system)[1] > SEARCH_WORK or compute.remaining() <= 0:
            best = _with_functionals(best, system, fast(system, compute), kept)
            solves = 0
        for left in range(solves - 1, -1, -1):
            found = _searched(one_output(system, critical), compute)
            if found.upper is not None and found.upper < float(best[critical]):
                best[critical], kept[critical] = found.upper, found
            if found.upper is None or not bool(best.isfinite().all()) or left:
                best = _with_functionals(best, system, found, kept)
            reach = margin / best.clamp_min(1e-300)
            closest = int(reach.argmin())
            if float(reach[closest]) >= (1.0 - CLOSE) * float(reach[critical]) or compute.remaining() <= 0:
                break
            critical = closest
    except UnsupportedModel:
        return known if bool(known.isfinite().all()) else None
    return best if bool(best.isfinite().all()) else None


def _searched(system: BlockSystem, compute: Compute) -> Solution:
    """`solve` with one closed form to start from: the others cost a factorisation each and are rarely better than a search."""
    with torch.inference_mode():
        return Run(system, compute, None, shares=(1.0,)).finish(SETTINGS)


def _with_functionals(
    best: Tensor, system: BlockSystem, found: Solution, kept: dict[int, Solution]
) -> Tensor:
    """The smaller of what is known and what these multipliers give for every output; they may give nothing."""
    rows = torch.eye(system.outputs, dtype=torch.float64, device=system.device)
    bounds = certified_functionals(system, found.multipliers, found.exponents, rows)
    if bounds is None:
        return best
    numbers = torch.tensor([_number(bound) for bound in bounds], dtype=torch.float64)
    kept |= dict.fromkeys((numbers < best).nonzero().flatten().tolist(), found)
    return torch.minimum(best, numbers)


def _number(bound: Upper) -> float:
    try:
        return float(bound)
    except OverflowError:
        return float("inf")
