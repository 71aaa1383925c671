"""L2 attention: averages with weights softmax_j(-s |u_i - u_j|^2), Lipschitz over all inputs where values are maps of the u_j.

Legend: one head, N tokens u_i, P_ij = softmax_j(-s_i |w_ij|^2) with w_ij = u_j - u_i and any s_i >= 0, y_i = sum_j P_ij A u_j;
E_i the mean with weights P_i; W = W_0((N - 1)/e), the number with W e^W = (N - 1)/e (Lambert).

Lemma. s E_i|w|^2 <= W. With b_j = s |w_ij|^2 and b_i = 0 it is sum_j b_j exp(-b_j) / (1 + sum_{j != i} exp(-b_j)). At a maximum v
every b_j is 1 + v, from the derivative in b_j; so v e^v = (N - 1)/e. A b_j without end is a key less, and W grows with the keys.

Statement. dy_i = A (E_i du + Cov_i(dl, w)) with the logits' change dl_j = -2 s w_ij'(du_j - du_i), so |Cov_i(dl, w)| is at most
2 s (|du_i| + max_j |du_j|) E_i(|w| |w - E_i w|), and E(|w| |w - Ew|) <= E|w|^2 by Cauchy and Schwarz. Hence
    |dy_i| <= |A| (1 + 4 W) max_j |du_j|,
    |dy|   <= |A| (2 W + root N (1 + 2 W)) |du|          l2 norms of all tokens together.
Source: Kim, Papamakarios, Mnih 2021 (arXiv 2006.04710), theorem 3.2, derived again: W does not depend on s.
Sound when: queries and keys are the same vectors, every row keeps its own key, and values read nothing but their key's vector. If
one of these fails there is no constant: distant keys at equal distances from a query swap their weights at a small step of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.affine_runs import RunGain
from lipverify.analyzers.lengths import by_vectors
from lipverify.analyzers.places import Reader, Sum
from lipverify.certificates.tokens import lambert
from lipverify.ir.graph import Graph, Node
from lipverify.ir.norm import Norm
from lipverify.linalg.rounding import Upper
from lipverify.ops.embedding import embedding
from lipverify.rules import Unbounded


@dataclass(frozen=True)
class Distances:
    """One L2 attention. node: the product of weights and values; source: the node whose entries the tokens are.

    heads: groups of tokens that attend to each other, of `keys` tokens each; width: of a token; uses: how often an entry of the
    source is read as part of a token, at most; values: |A|; size: of the result.
    """

    node: str
    source: str
    heads: int
    tokens: int
    keys: int
    width: int
    uses: int
    values: Upper
    size: int

    def gain(self, norm_in: Norm, norm_out: Norm) -> RunGain:
        """From the source to the averages, as the module says."""
        w = Upper.of(lambert(self.keys - 1))
        token = self.values * (Upper.one() + w * 4.0)
        rows, width = self.heads * self.tokens, self.size // (self.heads * self.tokens)
        found = by_vectors(token, rows, self.width, width, norm_in, norm_out)
        if norm_in is not Norm.LINF:
            whole = self.values * Upper.of(self.uses).sqrt()
            whole = whole * (w * 2.0 + Upper.of(self.tokens).sqrt() * (Upper.one() + w * 2.0))
            found = min(found, whole * embedding(self.size, Norm.L2, norm_out))
        return RunGain((found,), note=f"L2 attention, 4 W_0(({self.keys} - 1)/e) + 1 for a token")


def distances(graph: Graph) -> tuple[dict[str, Distances], str | None]:
    """Every L2 attention of a graph, by the node of its averages; and why another one that compares distances has no constant:
    between different maps of the tokens, without a row's own key, or its values are no maps of the vectors compared."""
    found, reason = {}, None
    for node in graph.nodes:
        if isinstance(node.op, ops.MatMul) and isinstance(
            graph[node.inputs[0]].op, ops.Softmax | ops.MaskedSoftmax
        ):
            try:
                one = _attention(graph, node)
            except Unbounded as error:
                reason = reason or str(error)
                continue
            if one is not None:
                found[node.name] = one
    return found, reason


def _attention(graph: Graph, node: Node) -> Distances | None:
    """What averages these values, if its weights fall with squared distances; None for other weights.

    Raises:
        Unbounded: they do, but there is no constant.
    """
    reader, weights = Reader(graph), graph[node.inputs[0]]
    op = weights.op
    assert isinstance(op, ops.Softmax | ops.MaskedSoftmax)
    if op.axis != len(weights.shape) - 1:
        return None
    logits, sign = _unscaled(graph, weights.inputs[0])
    scores = reader.read(logits)
    if scores is None or scores.linear or scores.root or not scores.squares:
        return None
    found = _compared(scores, sign)
    if found is None:
        return None
    queries, keys = found
    named = weights.describe()
    if queries.shape != keys.shape or not torch.equal(queries, keys):
        raise Unbounded(
            f"{named}: distances between different maps of the tokens have no constant over all inputs (Kim, Papamakarios, "
            "Mnih 2021); use one map for queries and keys, or give a region around points"
        )
    kept = op.kept.expand(weights.shape) if isinstance(op, ops.MaskedSoftmax) else None
    if kept is not None and not bool(kept.diagonal(dim1=-2, dim2=-1).all()):
        raise Unbounded(
            f"{named}: a token whose own key is masked may be far from all others, and its weights change without bound; "
            "keep the own key, or give a region around points"
        )
    count = keys.shape[-1] if kept is None else int(kept.sum(-1).max())
    values = _values(reader, node.inputs[1], keys)
    if values is None:
        raise Unbounded(
            f"{node.describe()}: the values {graph[node.inputs[1]].describe()} are no matrix times the vectors whose "
            "distances are taken, so what they average to has no constant over all inputs; take them from those vectors, or "
            "give a region around points (--data FILE --radius R)"
        )
    source = reader.source(keys)
    if source is None:
        return None
    uses = int(keys.flatten().unique(return_counts=True)[1].max())
    heads = math.prod(keys.shape[1:-1])
    return Distances(node.name, source, heads, keys.shape[-1], count, keys.shape[0], uses, values, node.size)


def _unscaled(graph: Graph, name: str) -> tuple[str, int]:
    """The node behind factors that are one number of one sign for every row, and that sign."""
    sign = 1
    while True:
        node = graph[name]
        if isinstance(node.op, ops.Scale) and node.op.shift is None and node.op.scale is not None:
            factor = node.op.scale
        elif isinstance(node.op, ops.DivideBy):
            factor = node.op.divisor
        else:
            return name, sign
        rows = factor.ndim == 0 or factor.shape[-1] == 1
        if not rows or not (bool((factor > 0).all()) or bool((factor < 0).all())):
            return name, sign
        sign, name = sign if bool((factor > 0).all()) else -sign, node.inputs[0]


def _values(reader: Reader, name: str, keys: Tensor) -> Upper | None:
    """|A| for values [*heads, tokens, entries] that are A u_j + a with the same A and a for all tokens of a head; else None.

    keys [width, *heads, tokens]: the places of u_j.
    """
    found = reader.mapped(name)
    if found is None:
        whole = reader.read(name)
        if whole is None or len(whole.linear) != 1 or whole.squares:
            return None
        ((factor, places),) = whole.linear
        return Upper.of(abs(factor)) if torch.equal(places.movedim(-1, 0), keys) else None
    vectors, labels = found.vectors, found.labels
    if vectors.shape[:-1] != keys.shape or not torch.equal(vectors, keys.unsqueeze(-1).expand(vectors.shape)):
        return None
    if bool((labels != labels[..., :1, :]).any()):
        return None
    return Upper.largest(found.norm(row) for row in labels[..., 0, :].reshape(-1, labels.shape[-1]))


def _compared(scores: Sum, sign: int) -> tuple[Tensor, Tensor] | None:
    """Places [width, *heads, tokens] of queries q_i and keys k_j where scores are -c |q_i - k_j|^2 + (something of i), c > 0.

    Squares of a row's own query are the same for all its entries, and a softmax does not see them.
    """
    dots, squares = Fraction(0), Fraction(0)
    queries: Tensor | None = None
    found: list[Tensor] = []
    for c, a, b in scores.squares:
        if a.ndim < 3:
            return None
        if _constant(a, -1) and _constant(b, -1):
            continue  # of the row alone
        if torch.equal(a, b):
            if not _constant(a, -2):
                return None
            squares, key = squares + c, a[..., 0, :]
        else:
            # Of a product of two entries either may be the query's.
            of_row, of_key = (a, b) if _constant(a, -1) and _constant(b, -2) else (b, a)
            if not (_constant(of_row, -1) and _constant(of_key, -2)):
                return None
            dots, key, query = dots + c, of_key[..., 0, :], of_row[..., 0]
            if queries is not None and not torch.equal(queries, query):
                return None
            queries = query
        found.append(key)
    if queries is None or not all(torch.equal(key, found[0]) for key in found):
        return None
    return (queries, found[0]) if sign * dots > 0 and 2 * squares == -dots else None


def _constant(places: Tensor, axis: int) -> bool:
    return bool((places == places.narrow(axis, 0, 1)).all())
