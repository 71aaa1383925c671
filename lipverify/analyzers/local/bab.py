"""The analyzer `local-bab`: branch and bound over the activations, and for few inputs over the box; anytime."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lipverify.analyzers.lipsdp.canonical import commuted
from lipverify.analyzers.local.analyzer import JacobianRows, first_bound, intervals, rejects_gradients
from lipverify.analyzers.local.comparators import elementary
from lipverify.analyzers.local.frontier import Leaf
from lipverify.analyzers.local.sdp import LocalSDP
from lipverify.analyzers.local.tree import Limits, Tree, single_rows
from lipverify.analyzers.protocol import Compute, Interruption, keeping_best
from lipverify.certificates.pending import keepable
from lipverify.errors import UnsupportedModel
from lipverify.ir.certificate import Certificate, Evidence
from lipverify.ir.graph import Graph
from lipverify.ir.region import Ball, Query

if TYPE_CHECKING:
    from lipverify.certificates import writing


@keepable
@dataclass(frozen=True)
class Trees:
    """Evidence of a bound by parts: the leaves of each centre cover its ball, and each has a bound for some rows.

    A leaf is its splits [node, entry, threshold, above]; `depth` of them were used by the method `by`: `chord` (linear
    bounds of the Jacobian), `sdp` (multipliers), `empty` (no input there; with weights of the splits where a combination of
    them shows it) or `root` (the bound of `root` for the whole ball).
    """

    root: Evidence
    centres: tuple[tuple[Leaf, ...], ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "trees",
            "root": self.root.to_json(),
            "centres": [[leaf.to_json() for leaf in leaves] for leaves in self.centres],
        }

    def proof(self, writer: writing.Writer, part: writing.Part) -> int:
        """Parts that cover the ball, each with its proof."""
        from lipverify.analyzers.local.proof import prove_trees

        return prove_trees(self, writer, part)


@dataclass(frozen=True)
class LocalBaB:
    """Norms of the Jacobians on parts of each ball, found by splitting the arguments of activations; anytime.

    Statement: |f(x) - f(y)|_out <= upper |x - y|_in for all x, y of one ball.
    Source: Bunel et al., JMLR 21 (2020); Shi et al., NeurIPS 2022 (arXiv 2210.07394); the largest bound of all parts, each
    with ranges of its own, starting from `local-sdp` and `local`. Exact when no slope is left unknown on any part.
    Sound when: as `local` and `local-sdp`; gradients almost everywhere give the constant, as the network is Lipschitz.
    Proof: lipverify/analyzers/local/parts.py:away_from_kinks
    """

    name: ClassVar[str] = "local-bab"
    leaves: int = 2000
    """Parts for each centre, where no budget ends the search earlier."""
    batch: int = 64
    sdp: bool = True
    """Semidefinite bounds of the ball, and of parts where linear bounds do not improve."""

    def reject(self, graph: Graph, query: Query) -> str | None:
        """As `local`."""
        return rejects_gradients(graph, query)

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """One number for each centre; the centres share the budget."""
        reason = self.reject(graph, query)
        if reason is not None:
            raise UnsupportedModel(reason)
        ball = query.region
        assert isinstance(ball, Ball)
        begun = time.monotonic()
        plain = first_bound(graph, query, compute)
        pace = (time.monotonic() - begun) / len(ball)
        assert isinstance(plain.evidence, JacobianRows)
        first, rows = plain, plain.evidence.rows
        if self.sdp and LocalSDP().reject(graph, query) is None:
            first = LocalSDP().improved(plain, graph, query, replace(compute, deadline=compute.share(2)))
        assert first.upper is not None
        values, found, interruption = [], [], Interruption(first.interrupted)
        for index in range(len(ball)):
            part = ball[index : index + 1]
            share = replace(compute.one_of(len(ball)), deadline=compute.share(len(ball) - index))
            tree = self._tree(graph, part, query, compute, pace)
            tree.start(float(first.upper[index]), rows[index], single_rows(query))
            # After an interrupt the centres still to come keep the bound they have.
            if not interruption.happened:
                with keeping_best(interruption), torch.no_grad():
                    tree.grow(share)
                interruption.happened |= tree.interrupted
            values.append(tree.upper)
            found.append(tuple(tree.frontier.leaves()))
        return replace(
            first,
            upper=torch.tensor(values, dtype=torch.float64),
            evidence=Trees(first.evidence, tuple(found), interruption.notes),
            made_by=repr(self),
            interrupted=interruption.happened,
        )

    def _tree(self, graph: Graph, ball: Ball, query: Query, compute: Compute, pace: float) -> Tree:
        moved = commuted(graph, None)[0]
        written = elementary(moved).to(dtype=torch.float64, device=compute.device)
        inside = None
        if len(written.nodes) != len(moved.nodes):
            inside = intervals(moved, ball, compute)
        limits = Limits(self.leaves, self.batch, self.sdp)
        return Tree(written, ball, inside, query, limits, compute.device, pace)
