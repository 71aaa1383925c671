"""Which labels survive the step from one network to another: differences of outputs of f, g and f - g against each other.

Legend: n classes; pairs (i, j) with i < j in the order of `pairs`; c the label of f at a point (its largest output).
Statement: where f_c - f_j > (f - g)_c - (f - g)_j for every j, g_c - g_j > 0: both networks give the label c.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute
from lipverify.combine import Difference
from lipverify.falsify import multiplications
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.region import Ball
from lipverify.propagation.points import values
from lipverify.questions.climb import Climb, climb

MOST_CLASSES = 100
"""Beyond, there are too many differences of two outputs."""
SHOWN = 24
"""Points of the picture."""
CHANGES = Climb(starts=8, steps=30)


def pairs(size: int) -> Tensor:
    """The rows e_i - e_j, i < j: [pairs, size]."""
    i, j = torch.triu_indices(size, size, 1)
    rows = torch.zeros(len(i), size, dtype=torch.float64)
    index = torch.arange(len(i))
    rows[index, i], rows[index, j] = 1.0, -1.0
    return rows


def table(box: Interval, size: int) -> Interval:
    """Ranges of v_i - v_j for all i, j from those of the pairs: [count, pairs] -> [count, size, size]; 0 on the diagonal."""
    i, j = torch.triu_indices(size, size, 1)
    lower, upper = (torch.zeros(len(box.lower), size, size, dtype=torch.float64) for _ in "lu")
    lower[:, i, j], upper[:, i, j] = box.lower, box.upper
    lower[:, j, i], upper[:, j, i] = -box.upper, -box.lower
    return Interval(lower, upper)


def labels(graph: Graph, x: Tensor) -> Tensor:
    """The label at every point, evaluated in float64: [points]."""
    return evaluate(graph.to(dtype=torch.float64), x.double()).flatten(1).argmax(1)


def kept_above(found: Difference, graph: Graph, tau: Tensor, x: Tensor) -> dict[str, Any]:
    """Points of a region whose label is kept because their margins exceed tau.

    Args:
        graph: as `Difference.functionals` with all pairs. tau [size, size]: upper bounds of (f - g)_c - (f - g)_j on the region.
    """
    first, second = (table(box, len(tau)) for box in _at(graph, x.double()))
    c, agree = _labels_of(found, x)
    rows = torch.arange(len(x))
    kept = _all_but(first.lower[rows, c] > tau[c].clamp(min=0.0), c)
    document = _document(kept, agree, _apart(first, second), x)
    return document | {"closest": _closest(first, second, tau[c], c)}


def kept_within(
    found: Difference,
    graph: Graph,
    apart: Interval,
    margins: tuple[Interval, Interval] | None,
    ball: Ball,
    compute: Compute,
) -> dict[str, Any]:
    """Balls everywhere in which both networks give one label, or in which an input with two labels was found.

    Args:
        apart, margins: ranges over each ball of the pairs of f - g, and of those of f and of g; None where both networks
            are the same function, so that no label can differ.
    """
    size, x = found.graph[found.first].size, ball.center
    c, agree = _labels_of(found, x)
    rows = torch.arange(len(x))
    apart = table(apart, size)
    kept, shown, points = (
        torch.ones(len(x), dtype=torch.bool),
        torch.zeros(len(x), dtype=torch.bool),
        x.clone(),
    )
    if margins is not None:
        first, second = (table(box, size) for box in margins)
        lead = first.lower[rows, c]
        # The second network's lead by its own ranges, or by that of the first minus the difference; rounded down.
        through = torch.nextafter(lead - apart.upper[rows, c], torch.full_like(lead, -torch.inf))
        kept = _all_but(lead > 0, c) & _all_but(torch.maximum(second.lower[rows, c], through) > 0, c)
    open_balls = (~kept).nonzero().flatten()
    if len(open_balls):
        some = ball[open_balls]
        points[open_balls] = _search(found, some, c[open_balls], compute)
        shown[open_balls] = _apart(*(table(box, size) for box in _at(graph, points[open_balls])))
    document = _document(kept, agree, shown, points)
    first, second = (table(box, size) for box in _at(graph, x))
    document["closest"] = _closest(first, second, apart.upper[rows, c], c)
    verdict = torch.where(kept, 1, torch.where(shown, 0, -1)).tolist()
    document["label_kept"] = [{1: True, 0: False, -1: None}[value] for value in verdict]
    return document


def _closest(first: Interval, second: Interval, tau: Tensor, c: Tensor) -> list[dict[str, Any]]:
    """The points whose margin exceeds the bound of the difference by least, each with the rival where it does: at most `SHOWN`.

    tau [points, size]: bounds of (f - g)_c - (f - g)_j. here: that difference at the point; margin: f_c - f_j there.
    """
    rows = torch.arange(len(c))
    margin, other = first.lower[rows, c], second.upper[rows, c]
    slack = (margin - tau).scatter(1, c[:, None], torch.inf)
    least, rival = slack.min(1)
    found = []
    for row in least.argsort()[:SHOWN].tolist():
        j = int(rival[row])
        found.append(
            {
                "point": row,
                "label": int(c[row]),
                "rival": j,
                "here": max(float(margin[row, j] - other[row, j]), 0.0),
                "bound": float(tau[row, j]),
                "margin": float(margin[row, j]),
            }
        )
    return found


def _all_but(flags: Tensor, c: Tensor) -> Tensor:
    """Whether all flags [points, size] are set, whatever stands at the label itself."""
    return flags.scatter(1, c[:, None], True).all(1)


def _labels_of(found: Difference, x: Tensor) -> tuple[Tensor, Tensor]:
    """The labels of f, and where g gives the same at the point itself."""
    graphs = [Graph(found.graph.nodes, (name,)).pruned() for name in (found.first, found.second)]
    c, other = (labels(graph, x) for graph in graphs)
    return c, c == other


def _at(graph: Graph, x: Tensor) -> tuple[Interval, Interval]:
    """Pairs of f and of g at stored points, every rounding accounted for."""
    return values(graph.select(1), x, enough=1e-9), values(graph.select(2), x, enough=1e-9)


def _apart(first: Interval, second: Interval) -> Tensor:
    """Points where the labels differ for sure: a class beats all others in one network and is beaten by one in the other."""

    def differs(one: Interval, other: Interval) -> Tensor:
        size = one.lower.shape[1]
        own = torch.eye(size, dtype=torch.bool)
        wins = ((one.lower > 0) | own).all(2)
        loses = ((other.upper < 0) & ~own).any(2)
        return (wins & loses).any(1)

    return differs(first, second) | differs(second, first)


def _search(found: Difference, ball: Ball, c: Tensor, compute: Compute) -> Tensor:
    """Inputs where one network is likely to give the label c and the other one not."""
    graph = Graph(found.graph.nodes, (found.first, found.second)).pruned().to(device=compute.device)
    label = c.to(compute.device)
    best: list[Tensor] = []
    for sign in (1.0, -1.0):

        def value(x: Tensor, sign: float = sign) -> Tensor:
            rows = len(x) // len(label)
            own = label.repeat(rows)
            m, n = (_margin(graph, place, x, own) for place in (0, 1))
            return torch.minimum(sign * m, -sign * n)

        best.append(climb(value, ball, compute, multiplications(graph), CHANGES))
    with torch.no_grad():
        score = []
        for points in best:
            m, n = (_margin(graph, place, points.to(compute.device), label) for place in (0, 1))
            score.append(torch.maximum(torch.minimum(m, -n), torch.minimum(-m, n)).cpu())
    take = (score[0] >= score[1]).reshape(-1, *[1] * (ball.center.ndim - 1))
    return torch.where(take, best[0], best[1])


def _margin(graph: Graph, output: int, x: Tensor, c: Tensor) -> Tensor:
    y = evaluate(Graph(graph.nodes, graph.outputs, output), x).flatten(1)
    rest = y.scatter(1, c[:, None], -torch.inf)
    return y.gather(1, c[:, None])[:, 0] - rest.amax(1)


def _document(kept: Tensor, agree: Tensor, shown: Tensor, points: Tensor) -> dict[str, Any]:
    count = len(kept)
    changed = shown.nonzero().flatten()
    return {
        "points": count,
        "same_label_now": float(agree.double().mean()),
        "certified": float(kept.double().mean()),
        "undecided": (~kept & ~shown).nonzero().flatten().tolist(),
        "changed": changed.tolist(),
        "inputs": points[changed],
    }


def split(document: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """The fields of a document, and the inputs with two labels for the witness file."""
    return {name: value for name, value in document.items() if name != "inputs"}, document["inputs"]
