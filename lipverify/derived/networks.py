"""Networks made for a derivation, and their audits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lipverify import ops
from lipverify.errors import Undecided
from lipverify.falsify import Search
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input
from lipverify.ir.region import Region
from lipverify.pipeline import audit
from lipverify.results import Audit

SHORT = Search(seconds=0.2)
"""Witnesses are shown beside, and decide nothing here."""


def linear(matrix: Tensor) -> Graph:
    """x -> matrix x, for a matrix [m, n]."""
    m, n = matrix.shape
    return Graph(
        (Node("x", Input(), (), (n,)), Node("linear", ops.Linear(matrix), ("x",), (m,))), ("linear",)
    )


def audited(graph: Graph, analyzers: Sequence[str], region: Region | None = None) -> Audit:
    """The audit in l2.

    Raises:
        Undecided: no analyzer has a bound; each says why.
    """
    found = audit(graph, norm="l2", region=region, analyzers=analyzers, search=SHORT)
    if found.best is None:
        raise Undecided("; ".join(f"{row.analyzer}: {row.refused}" for row in found.rows))
    return found
