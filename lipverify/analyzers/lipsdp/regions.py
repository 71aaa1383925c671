"""One certificate for a region: a block system for the whole space, or one with the slopes of its ball for every centre."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lipverify.analyzers.lipsdp.batched import deadline_of, pays
from lipverify.analyzers.lipsdp.canonical import (
    canonical_form,
    looped_form,
    refuse_loops,
    refuse_too_large,
    refuse_unbounded,
    refuse_unencodable,
)
from lipverify.analyzers.lipsdp.evidence import Multipliers, Proofs
from lipverify.analyzers.lipsdp.norms import Answer, refuse_norms
from lipverify.analyzers.lipsdp.solver import available_memory
from lipverify.analyzers.lipsdp.system import Couplings, LoopedSystem
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel
from lipverify.ir.certificate import Certificate, Evidence, Rigour
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.propagation import bounds
from lipverify.propagation.magnitudes import SMALLER

Method = Callable[[Any, Compute], Answer]
Together = Callable[[Sequence[Couplings], Compute], list[Answer]]
Form = Callable[..., Couplings] | Callable[..., LoopedSystem]

# Centres that are searched together, and the share of the memory their matrices may take.
_TOGETHER, _SHARE = 256, 8


def coupled_form(
    graph: Graph, boxes: Mapping[str, Interval] | None = None, device: torch.device | None = None
) -> Couplings:
    """The block system of any graph; blocks of implicit layers feed themselves."""
    return looped_form(graph, boxes, device).couplings


def refusal(graph: Graph, query: Query, loops: bool = False, large: bool = False) -> str | None:
    """Why no block system answers the query: its norms, a node without neurons, a loop, or the memory needed."""
    reason = refuse_norms(query.norm_in, query.norm_out, graph.output.size)
    if reason is not None:
        return reason
    try:
        refuse_unencodable(graph)
        if not loops or not (query.norm_in is query.norm_out is Norm.L2):
            refuse_loops(graph)
        if not isinstance(query.region, Ball):
            refuse_unbounded(graph)
        if not large:
            refuse_too_large(graph)
    except UnsupportedModel as error:
        return str(error)
    return None


@dataclass
class Pace:
    """Seconds that the last centre took for its system, and for its bound without any search."""

    system: float = 0.0
    least: float = 0.0


def systems(
    graph: Graph, query: Query, compute: Compute, form: Form, pace: Pace | None = None
) -> Iterator[Couplings | LoopedSystem]:
    """One block system for the whole space, or one with the slopes of its ball for every centre.

    Args:
        pace: given, centres behind the first are left out when they would not end before the deadline at this pace.
    """
    if not isinstance(query.region, Ball):
        yield form(graph, None, compute.device)
        return
    ball = query.region
    for index in range(len(ball)):
        if pace is not None and index and compute.remaining() <= pace.system + pace.least:
            return
        begun = time.monotonic()
        around = ball[index : index + 1]
        ranges = bounds(graph, around, device=compute.device, expired=compute.expired)
        system = form(graph, ranges, compute.device)
        if pace is not None:
            pace.system = time.monotonic() - begun
        yield system


def over_region(
    analyzer: object,
    graph: Graph,
    query: Query,
    compute: Compute,
    method: Method,
    form: Form = canonical_form,
    together: Together | None = None,
    optional: bool = False,
) -> Certificate:
    """The certificate of one method on every system of the region; `together` answers several small ones at once.

    Args:
        optional: centres that would not end before the deadline, or come after an interrupt, are left out; there is one
            number for each of those before, and for the first in any case.

    Raises:
        UnsupportedModel: what `refusal` says, or a centre's bound exceeds float64.
    """
    reason = refusal(graph, query, form is not canonical_form)
    if reason is not None:
        raise UnsupportedModel(reason)
    ball = query.region if isinstance(query.region, Ball) else None
    centres = 1 if ball is None else len(ball)
    answers: list[Answer] = []
    names: tuple[str, ...] = ()
    pace = Pace() if optional else None
    for batch in _batches(systems(graph, query, compute, form, pace), together is not None):
        # What is left of the budget is shared evenly by the centres still to come; after an interrupt nothing is left.
        stopped = any(answer.interrupted for answer in answers)
        if stopped and optional:
            break
        share = time.monotonic() if stopped else deadline_of(compute, len(batch), centres - len(answers))
        within = replace(compute.one_of(centres), deadline=share)
        small = [system for system in batch if isinstance(system, Couplings)]
        if together is not None and len(small) == len(batch) > 1:
            answers += together(small, within)
        else:
            answers += [method(system, within) for system in batch]
        if pace is not None:
            pace.least = answers[-1].least_seconds
        last = batch[-1]
        names = (last.causal if isinstance(last, LoopedSystem) else last).names
    uppers = [answer.upper for answer in answers]
    finite = [value for value in uppers if value is not None]
    if len(finite) < len(uppers) and ball is not None:
        raise UnsupportedModel(f"a bound of some centre exceeds the largest float64; {SMALLER}")
    upper = torch.tensor(finite if ball is not None else finite[0], dtype=torch.float64) if finite else None
    return Certificate(
        upper=upper,
        log10_upper=None if finite else answers[0].log10_upper,
        query=query,
        rigour=Rigour.REAL,
        evidence=_evidence(query, names, answers),
        made_by=repr(analyzer),
        graph_digest=graph.digest,
        trace=answers[0].trace if ball is None else (),
        interrupted=any(answer.interrupted for answer in answers),
    )


def _batches(
    found: Iterator[Couplings | LoopedSystem], together: bool
) -> Iterator[list[Couplings | LoopedSystem]]:
    """In their order: small systems together as far as the memory goes, each of the others alone."""
    waiting: list[Couplings | LoopedSystem] = []
    held = 0
    for system in found:
        alone = not together or isinstance(system, LoopedSystem) or not pays(system)
        size = 0 if isinstance(system, LoopedSystem) else sum(8 * m.numel() for m in system.matrices)
        full = len(waiting) == _TOGETHER or (waiting and held + size > _room(system))
        if waiting and (alone or full):
            yield waiting
            waiting, held = [], 0
        if alone:
            yield [system]
        else:
            waiting.append(system)
            held += size
    if waiting:
        yield waiting


def _room(system: Couplings | LoopedSystem) -> int:
    plain = system.causal if isinstance(system, LoopedSystem) else system
    return available_memory(plain.device) // _SHARE


def _evidence(query: Query, names: tuple[str, ...], answers: list[Answer]) -> Evidence:
    notes = tuple(dict.fromkeys(note for answer in answers for note in answer.notes))
    proofs = [answer.proofs for answer in answers]
    if query.norm_in is Norm.L2 and all(len(p) == 1 and p[0].outputs is None for p in proofs):
        return Multipliers(
            blocks=names,
            diagonals=tuple(p[0].diagonals for p in proofs),
            exponents=tuple(p[0].exponents for p in proofs),
            notes=notes,
        )
    return Proofs(query.norm_in, names, tuple(proofs), notes)
