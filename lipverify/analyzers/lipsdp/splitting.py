"""LipSDP on pieces of a network, where the whole is too large or too deep for the budget; the bounds of the pieces multiply.

A product of bounds of pieces is a bound of the whole, looser with every cut. At an activation the cut is free: with slopes in
[0, 1] neither piece gains anything from an activation at its very end or beginning, so it stands between them with its own gain.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from lipverify.analyzers.lipsdp.canonical import available, canonical_form
from lipverify.analyzers.lipsdp.cutting import Need, between, contracts, cut_points, need
from lipverify.analyzers.lipsdp.evidence import Multipliers, Part, Parts, Proofs
from lipverify.analyzers.lipsdp.norms import answer
from lipverify.analyzers.lipsdp.solver import Settings
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.deadline import within
from lipverify.errors import BudgetEnded, UnsupportedModel
from lipverify.ir.certificate import Certificate, Rigour
from lipverify.ir.graph import Graph, Node
from lipverify.ir.norm import Norm
from lipverify.ir.region import Query
from lipverify.linalg.rounding import Upper
from lipverify.rules import gain_of

RATE = {"cpu": 5e10, "cuda": 2e12}
"""Multiplications a second that a search does, about, as `estimate` counts them; it only decides where to cut."""
DEFAULT_SECONDS = 300.0
"""What the searches of the pieces may take where no budget is given."""
_STEPS = 8
"""Steps below which the search of a piece is not worth its name: then the closed form is taken."""
_WHOLE_STEPS = 2
"""Steps below which pieces are preferred to the whole network: its search is valid, and gains, from the first step on."""
_OWED = 5.0
"""Seconds that a bound may take whatever the budget says."""
_CLOSED = 4.0
"""Efforts of one piece below which the closed form is taken rather than the product."""


_RANK = {"lipsdp": 0, "lipsdp-fast": 1, "product": 2}


@dataclass(frozen=True)
class Piece:
    """A part of the graph from one cut to the next. `activation`: the node between it and the piece behind."""

    graph: Graph
    activation: Node | None
    method: str
    """`lipsdp`, `lipsdp-fast` or `product`."""
    settings: Settings | None
    needs: Need
    why: str = ""


def fits_memory(graph: Graph) -> bool:
    """Whether LipSDP on the whole graph has the memory it needs."""
    return need(graph).bytes <= available()


def whole_fits(graph: Graph, compute: Compute) -> bool:
    """Whether LipSDP on the whole graph has the memory and, within the budget, the time for a few steps."""
    return fits_memory(graph) and _WHOLE_STEPS * need(graph).work <= _rate(compute) * _seconds(compute)


def _seconds(compute: Compute) -> float:
    # A closed form of seconds is given even where the budget is spent: it is what an anytime method owes.
    return max(compute.remaining(), _OWED)


def _rate(compute: Compute) -> float:
    return RATE.get(compute.device.type, RATE["cpu"])


def pieces(graph: Graph, effort: float, settings: Settings, about: int = 1) -> list[Piece]:
    """The graph cut into the longest pieces that fit, found from the output backwards.

    Args:
        effort: multiplications that the search of one piece may take.
        about: how many pieces there are at least, nearly; a piece reaches over two cuts or more, so that it holds neurons.

    Raises:
        UnsupportedModel: no piece fits; the size of the smallest one is named.
    """
    ends = [graph.input, *cut_points(graph), graph.output]
    segments = len(ends) - 1
    longest = max(2, math.ceil(segments / about))
    found: list[Piece] = []
    last = segments
    while last > 0:
        first, piece = _longest(graph, ends, last, effort, settings, longest)
        found.append(piece)
        last = first
    found.reverse()
    merged = list(_merged(graph, found))
    if all(piece.method == "product" for piece in merged):
        small = min((p for p in found if p.needs.neurons), key=lambda p: p.needs.bytes, default=None)
        if small is None:
            raise UnsupportedModel("no piece of the network holds a neuron; ask product")
        raise UnsupportedModel(
            f"LipSDP does not fit, not even on a piece between two cuts: the smallest ({small.needs.neurons} neurons, up to "
            f"{small.graph.output.describe()}) {small.why}"
        )
    return merged


def _longest(
    graph: Graph, ends: list[Node], last: int, effort: float, settings: Settings, longest: int
) -> tuple[int, Piece]:
    """The longest piece before `last` that can be searched, else with a closed form, else one segment by the product."""
    best: tuple[int, Piece] | None = None
    for first in range(last - 1, max(last - 1 - longest, -1), -1):
        piece = _piece(graph, ends[first], ends[last], effort, settings)
        # Needs only grow with the length; what has no neurons yet may still become part of a piece with some.
        known = _RANK[best[1].method] if best is not None and best[1].needs.neurons else _RANK["lipsdp-fast"]
        if best is not None and _RANK[piece.method] > known and piece.needs.neurons:
            if not best[1].needs.neurons:
                # One affine run alone: the size that matters is that of the piece it could not become.
                best = best[0], replace(best[1], why=piece.why, needs=piece.needs)
            break
        best = first, piece
        if piece.method == "product" and piece.needs.neurons:
            break
    assert best is not None
    return best


def _piece(graph: Graph, first: Node, last: Node, effort: float, settings: Settings) -> Piece:
    activation = last if contracts(last) and last.name != graph.output.name else None
    # Without the activation at its end, where there is one.
    part = between(graph, first, last if activation is None else graph[last.inputs[0]])
    needs = need(part)
    if not needs.neurons:
        return Piece(part, activation, "product", None, needs, "has no neurons")
    if needs.bytes > available():
        why = f"needs about {needs.bytes / 2**30:.1f} GiB, {available() / 2**30:.1f} GiB are available"
        return Piece(part, activation, "product", None, needs, why)
    steps = int(effort / max(needs.work, 1.0))
    if steps >= _STEPS:
        chosen = replace(settings, max_iterations=min(settings.max_iterations, steps))
        return Piece(part, activation, "lipsdp", chosen, needs)
    why = f"one step takes {needs.work:.0e} multiplications"
    if needs.work <= _CLOSED * effort:
        return Piece(part, activation, "lipsdp-fast", None, needs, why)
    return Piece(part, activation, "product", None, needs, why)


def _merged(graph: Graph, found: list[Piece]) -> Iterator[Piece]:
    """Neighbours that are both answered by the product as one piece."""
    waiting: Piece | None = None
    for piece in found:
        if waiting is not None and waiting.method == piece.method == "product":
            first = graph[waiting.graph.input.name]
            part = between(graph, first, graph[piece.graph.output.name])
            why = waiting.why if waiting.needs.neurons else piece.why
            waiting = replace(piece, graph=part, why=why, needs=max(waiting.needs, piece.needs, key=_size))
            continue
        if waiting is not None:
            yield waiting
        waiting = piece
    if waiting is not None:
        yield waiting


def _size(needs: Need) -> float:
    return needs.bytes


def effort_of(compute: Compute, count: int) -> float:
    """Multiplications that each of `count` searches may take."""
    return _rate(compute) * min(_seconds(compute), DEFAULT_SECONDS) / max(count, 1)


def bound_pieces(
    analyzer: object, graph: Graph, query: Query, compute: Compute, parts: list[Piece]
) -> Certificate:
    """The product of the bounds of all pieces; for each the smaller of LipSDP and the product of its layers.

    Statement: |f(x) - f(y)|_out <= upper |x - y|_in for all x, y: the Lipschitz constant of a composition is at most the
        product of the constants of its pieces; between two pieces values are measured in l2.
    Sound when: every path from the input to the output passes the cuts, and every piece has its bound.

    Raises:
        UnsupportedModel: a piece has neither bound.
    """
    total = Upper.one()
    found: list[Part] = []
    interrupted = False
    for index, piece in enumerate(parts):
        norms = _norms(query, index, len(parts))
        share = compute.share(len(parts) - index)
        part, upper, stopped = _part(piece, norms, replace(compute, deadline=share), interrupted)
        interrupted |= stopped
        found.append(part)
        total = total * upper
        if piece.activation is not None:
            factor = _activation(piece, norms[1])
            found.append(_single(piece.activation, factor))
            total = total * factor
    whole = None
    if not query.norm_in is query.norm_out is Norm.L2:
        # In l2 the product of the pieces is that of the whole; in other norms the whole may go through better ones.
        known = _product(graph, Query(query.norm_in, query.norm_out), compute)
        whole = known if known is not None and known < total else None
    return _certificate(analyzer, graph, query, total, found, whole, interrupted)


def _norms(query: Query, index: int, count: int) -> tuple[Norm, Norm]:
    return query.norm_in if index == 0 else Norm.L2, query.norm_out if index == count - 1 else Norm.L2


def _activation(piece: Piece, norm: Norm) -> Upper:
    assert piece.activation is not None
    found = gain_of(piece.activation, (piece.graph.output.shape,), norm, norm)
    return Upper.of(found.factors[0])


def _single(node: Node, factor: Upper) -> Part:
    return Part(node.inputs[0], node.name, _log10(factor), "activation")


def _log10(value: Upper) -> float:
    return value.log10() if value else -math.inf


def _part(
    piece: Piece, norms: tuple[Norm, Norm], compute: Compute, interrupted: bool
) -> tuple[Part, Upper, bool]:
    """A piece's smaller bound, with its evidence and whether its search was stopped."""
    query = Query(*norms)
    known, reason = _product(piece.graph, query, compute), piece.why
    best, by, evidence, stopped = known, "product", None, False
    if piece.method != "product" and not interrupted:
        # What certifies takes a little longer at times than was left for it.
        wall = None if compute.deadline is None else compute.deadline + 0.25 * compute.remaining()
        try:
            with within(wall):
                system = canonical_form(piece.graph, None, compute.device)
                result = answer(system, *norms, compute, piece.settings)
        except UnsupportedModel as error:
            reason = str(error)
        except BudgetEnded:
            reason = "not run: the budget ended before it had a bound"
        else:
            stopped = result.interrupted
            if result.upper is not None and (best is None or Upper.of(result.upper) < best):
                best, by, reason = Upper.of(result.upper), piece.method, "; ".join(result.notes)
                proof = result.proofs[0]
                single = norms[0] is Norm.L2 and len(result.proofs) == 1 and proof.outputs is None
                evidence = (
                    Multipliers(system.names, (proof.diagonals,), (proof.exponents,))
                    if single
                    else Proofs(norms[0], system.names, (result.proofs,))
                )
            elif by == "product":
                reason = "the product of the layers is smaller than the LipSDP bound found"
    if best is None:
        raise UnsupportedModel(f"the piece up to {piece.graph.output.describe()} {reason}")
    part = Part(
        piece.graph.input.name,
        piece.graph.output.name,
        _log10(best),
        by,
        evidence,
        reason if by == "product" else "",
    )
    return part, best, stopped


def _product(graph: Graph, query: Query, compute: Compute) -> Upper | None:
    if Product().reject(graph, query) is not None:
        return None
    found = Product().bound(graph, query, compute)
    return None if found.upper is None else Upper.of(float(found.upper))


def _certificate(
    analyzer: object,
    graph: Graph,
    query: Query,
    total: Upper,
    parts: list[Part],
    whole: Upper | None,
    interrupted: bool,
) -> Certificate:
    note = words(parts)
    if whole is not None:
        note = f"LipSDP on pieces is above the product of all layers, which is given instead; {note}"
        parts, total = [Part(graph.input.name, graph.output.name, _log10(whole), "product")], whole
    upper: torch.Tensor | None = None
    with contextlib.suppress(OverflowError):
        upper = torch.tensor(float(total), dtype=torch.float64)
    return Certificate(
        upper=upper,
        log10_upper=total.log10() if upper is None else None,
        query=query,
        rigour=Rigour.REAL,
        evidence=Parts(
            tuple(parts), (note, *(("interrupted: the best bound so far",) if interrupted else ()))
        ),
        made_by=repr(analyzer),
        graph_digest=graph.digest,
        interrupted=interrupted,
    )


def words(parts: list[Part]) -> str:
    """How the network was cut, as one sentence."""
    proper = [part for part in parts if part.by != "activation"]
    said = [f"{part.first} to {part.last}: {_shown(part)}" for part in proper]
    return f"product over {len(proper)} pieces of the network, looser than LipSDP on the whole: " + "; ".join(
        said
    )


def _shown(part: Part) -> str:
    value = f"{10.0**part.log10_upper:.4g}" if abs(part.log10_upper) < 300 else f"10^{part.log10_upper:.1f}"
    return f"{value} by {part.by}" + (f" ({part.note})" if part.note else "")
