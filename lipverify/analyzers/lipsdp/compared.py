"""Named variants of `lipsdp-cvxpy`: another solver, and the published constraints of sorting and reflecting layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lipverify.analyzers.lipsdp.analyzer import LipSDPReference
from lipverify.analyzers.lipsdp.published import Constraints


@dataclass(frozen=True)
class LipSDPBySCS(LipSDPReference):
    """`lipsdp-cvxpy` with the first-order solver SCS; its objective may lie below the optimum and is not used.

    Statement: |f(x) - f(y)|_2 <= upper |x - y|_2 for all x, y of the region.
    Source: as `lipsdp`; O'Donoghue, Chu, Parikh, Boyd, JOTA 2016 (arXiv 1312.3039) for the solver.
    Sound when: as `lipsdp-cvxpy`.
    Proof: lipverify/analyzers/lipsdp/bound.py:certified_upper
    """

    name: ClassVar[str] = "lipsdp-cvxpy:scs"
    solver: str = "SCS"


@dataclass(frozen=True)
class LipSDPGroup(LipSDPReference):
    """The published constraints of GroupSort, MaxMin and Householder layers, with all their multipliers; for comparison.

    Statement: |f(x) - f(y)|_2 <= upper |x - y|_2 for all x, y.
    Source: Pauli, Havens, Araujo, Garg, Khorrami, Allgoewer, Hu, ICLR 2024 (arXiv 2401.14033), with S and P free.
    Sound when: as `lipsdp-cvxpy`; chains of dense layers with sorting or reflecting layers between them, the whole space.
    Proof: lipverify/analyzers/lipsdp/published.py:certified_published
    """

    name: ClassVar[str] = "lipsdp-cvxpy:group"
    constraints: Constraints = "group"
    largest: int = 64


@dataclass(frozen=True)
class LipSDPGroupDiagonal(LipSDPReference):
    """As `lipsdp-cvxpy:group` with S = P = 0, as the authors' software computes it; for comparison.

    Statement: |f(x) - f(y)|_2 <= upper |x - y|_2 for all x, y.
    Source: as `lipsdp-cvxpy:group`.
    Sound when: as `lipsdp-cvxpy:group`.
    Proof: lipverify/analyzers/lipsdp/published.py:certified_published
    """

    name: ClassVar[str] = "lipsdp-cvxpy:group-diagonal"
    constraints: Constraints = "group-diagonal"
