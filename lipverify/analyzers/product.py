"""The product of layer gains, along every path of the graph at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

from lipverify import ops
from lipverify.analyzers.affine_runs import Run, RunGain, rough_gain, run_gain, runs
from lipverify.analyzers.distances import Distances, distances
from lipverify.analyzers.lengths import Lengths, roots, unit_vectors
from lipverify.analyzers.protocol import Compute, certificate
from lipverify.analyzers.sizes import Sizes
from lipverify.deadline import within
from lipverify.errors import BudgetEnded, UnsupportedModel
from lipverify.ir.certificate import Certificate, Gains, Step
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.op import Constant, Input
from lipverify.ir.region import Query
from lipverify.linalg.rounding import Upper
from lipverify.ops.embedding import embedding
from lipverify.rules import Gain, Unbounded, gain

Reach = dict[Norm, Upper]
"""Certified constants from the input (in the query's input norm) to one node, for each norm at the node."""


Known = Distances | Lengths
"""A node whose constant from a node further in front is known: what lies between them counts where others read it."""


@dataclass(frozen=True)
class Product:
    """Product of layer gains along paths, joined where paths meet; runs of affine layers are one layer.

    Behind the deadline gains are rough: of an affine layer in l2 the root of its largest row sum times its largest column sum.

    Statement: |f(x) - f(y)|_out <= upper |x - y|_in for all x, y.
    Source: Szegedy et al. 2014 (arXiv 1312.6199), section 4.3; at merges the triangle inequality, or the joint gain of the
    merging operator where that is smaller (concatenation in l2: root of the sum of squares).
    Products of two computed values: where both are bounded over all inputs (`analyzers.sizes`), as in attention on normalised
    tokens. Attention by squared distances of tokens: as Kim, Papamakarios, Mnih 2021 (`analyzers.distances`). Vectors over
    their own length (`analyzers.lengths`).
    Sound when: every operator has a gain rule for the queried norms.
    Proof: lipverify/analyzers/product.py:advance
    """

    name: ClassVar[str] = "product"

    def reject(self, graph: Graph, query: Query) -> str | None:
        """Names the nodes without a gain rule."""
        missing = gain.missing(node for node in graph.nodes if not isinstance(node.op, Input))
        if missing:
            return f"no gain rule for {', '.join(node.describe() for node in missing[:3])}"
        return None

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """A bound for the whole input space; for balls the same number holds around every centre."""
        reason = self.reject(graph, query)
        if reason:
            raise UnsupportedModel(reason)
        kept, norms = _FOUND.setdefault(graph, {}), (query.norm_in, query.norm_out)
        if norms in kept:
            return certificate(self, graph, query, *kept[norms])
        found, evidence, rough = self._anew(graph, query, compute)
        if not rough:
            kept[norms] = found, evidence
        return certificate(self, graph, query, found, evidence)

    def _anew(self, graph: Graph, query: Query, compute: Compute) -> tuple[Upper, Gains, bool]:
        """The bound, and whether some gain is rough."""
        averages, reason = distances(graph)
        try:
            return self._bound(graph, query, compute, {**roots(graph), **unit_vectors(graph), **averages})
        except UnsupportedModel:
            if reason is not None:
                raise Unbounded(reason) from None
            raise

    def _bound(
        self, graph: Graph, query: Query, compute: Compute, known: Mapping[str, Known]
    ) -> tuple[Upper, Gains, bool]:
        # In l1 and linf a detour through another norm is often far tighter (sqrt(n) times the l2 product); in l2 hardly ever.
        norms = (Norm.L2,) if query.norm_in is query.norm_out is Norm.L2 else tuple(Norm)
        reach: dict[str, Reach] = {}
        steps = []
        sizes = Sizes.everywhere(graph)
        counts = _read_by(graph, known) if known else None
        rough = False
        for run in runs(graph):
            if counts is not None and run.last.name not in counts:
                continue
            compute.report(run.last.name, None)
            try:
                step = None
                if not rough:
                    try:
                        with within(compute.deadline):
                            step = advance(run, reach, query, norms, sizes, known=known)
                    except BudgetEnded:
                        rough = True
                if rough:
                    step = advance(run, reach, query, norms, sizes, rough_gain, known)
            except OverflowError:
                raise UnsupportedModel(
                    f"the norm of {run.first.describe()} exceeds the largest float64"
                ) from None
            if step is not None:
                steps.append(step)
        found = reach[graph.output.name][query.norm_out]
        return found, Gains(tuple(steps)), rough


_FOUND: WeakKeyDictionary[Graph, dict[tuple[Norm, Norm], tuple[Upper, Gains]]] = WeakKeyDictionary()
"""Products of graphs without a rough gain: methods for balls and for pieces ask again for the same ones."""


def _read_by(graph: Graph, known: Mapping[str, Known]) -> set[str]:
    """The nodes that count where every known one is a function of its source alone."""
    wanted = [graph.output.name, *graph.outputs]
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in seen:
            seen.add(name)
            wanted += [known[name].source] if name in known else graph[name].inputs
    return seen


def advance(
    run: Run,
    reach: dict[str, Reach],
    query: Query,
    norms: tuple[Norm, ...],
    sizes: Sizes | None = None,
    gain_of_run: Callable[[Run, Norm, Norm], RunGain] = run_gain,
    known: Mapping[str, Known] | None = None,
) -> Step | None:
    """Constants at the end of a run from those at its inputs.

    sizes: of values, for products of two computed ones; known: nodes with constants from nodes further in front.
    """
    name, norm_out = run.last.name, query.norm_out
    if isinstance(run.first.op, Input):
        # From the input to itself: 1 in its own norm, the embedding constants in the others.
        reach[name] = {norm: embedding(run.last.size, query.norm_in, norm) for norm in norms}
        return None
    if isinstance(run.first.op, Constant):
        reach[name] = {norm: Upper.zero() for norm in norms}
        return None
    whole = (known or {}).get(run.first.name)
    inputs = [reach[source] for source in ([whole.source] if whole else run.first.inputs)]
    chosen: dict[Norm, RunGain] = {}
    reach[name] = {}
    for after in norms:
        totals: list[tuple[Upper, RunGain]] = []
        for before in norms:
            if whole is not None:
                found = whole.gain(before, after)
            elif sizes is not None and isinstance(run.first.op, ops.Mul | ops.MatMul):
                found = sizes.product(run.first, before, after)
            elif sizes is not None and (scalar := sizes.scalar(run.first, before, after)) is not None:
                found = RunGain(tuple(map(Upper.of, scalar.factors)), note="slopes where its argument can be")
            else:
                found = gain_of_run(run, before, after)
            totals.append((joined(found, [source[before] for source in inputs]), found))
        reach[name][after], chosen[after] = min(totals, key=lambda pair: pair[0])
    at_end, used = reach[name][norm_out], chosen[norm_out]
    return Step(
        tuple(node.name for node in run.nodes),
        _as_float(used.factors[0]) if len(used.factors) == 1 else None,
        at_end.log10() if at_end else float("-inf"),
        used.note,
    )


def _as_float(value: Upper) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


def joined(found: RunGain | Gain, incoming: list[Upper]) -> Upper:
    """joint_i(factors[i] * incoming[i])."""
    factors: Sequence[float | Upper] = found.factors
    terms = [Upper.of(factor) * value for factor, value in zip(factors, incoming, strict=True)]
    if found.joint is Norm.LINF:
        return Upper.largest(terms)
    return Upper.root_sum_squares(terms) if found.joint is Norm.L2 else Upper.sum(terms)
