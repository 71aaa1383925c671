"""Answers about chunks of the points of one question, joined to the answer about all of them.

A bound over a ball is about that ball alone, so bounds of chunks stand one behind the other. Their evidence is kept chunk by
chunk, and the checker proves the joined certificate like any other.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lipverify import memory
from lipverify.analyzers.protocol import Analyzer
from lipverify.certificates.pending import keepable
from lipverify.ir.certificate import Certificate, Evidence, Gains, Witness
from lipverify.ir.region import Query
from lipverify.results import Lower, Row

if TYPE_CHECKING:
    from lipverify.certificates import writing


@keepable
@dataclass(frozen=True)
class Chunks:
    """Evidence of a bound over balls that was found for some of them at a time: chunks of as many balls, in their order."""

    parts: tuple[Evidence, ...]
    counts: tuple[int, ...]

    @property
    def lowered(self) -> bool:
        """Whether what the checker proves may be the smaller bound; all chunks are of one method."""
        return all(getattr(part, "lowered", False) for part in self.parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the chunks, each once."""
        return tuple(dict.fromkeys(note for part in self.parts for note in getattr(part, "notes", ())))

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "chunks",
            "counts": list(self.counts),
            "parts": [part.to_json() for part in self.parts],
        }

    def proof(self, writer: writing.Writer, part: writing.Part) -> int:
        """That of the chunk that the centre is in, where it has a place of its own."""
        centre = part.centre
        for evidence, count in zip(self.parts, self.counts, strict=True):
            if centre < count:
                chunk: Any = evidence
                found: int = chunk.proof(writer, replace(part, centre=centre))
                return found
            centre -= count
        raise IndexError(part.centre)


def joined_rows(method: Analyzer, query: Query, rows: Sequence[Row], counts: Sequence[int]) -> Row:
    """One analyzer's row about all balls of the query. There is one number for each ball, or none: a chunk without a bound, which
    is named, leaves the row without one.

    Args:
        rows: its rows about the chunks, in order. counts: how many balls each chunk has.
    """
    seconds = sum(row.seconds for row in rows)
    hurried = any(row.hurried for row in rows)
    without = [k for k, row in enumerate(rows) if row.certificate is None]
    if without:
        k, first = without[0], sum(counts[: without[0]])
        reason = rows[k].refused
        if any(row.refused != reason for row in rows):
            reason = f"points {first} to {first + counts[k] - 1}: {reason}"
        told: dict[str, Any] = {
            name: any(getattr(rows[k], name) for k in without)
            for name in ("undecided", "stopped", "failed", "refuted", "cut")
        }
        return Row(method, seconds, refused=reason, hurried=hurried, **told)
    certificates = [row.certificate for row in rows if row.certificate is not None]
    return Row(method, seconds, _certificate(query, certificates, counts), hurried=hurried)


def _certificate(query: Query, found: Sequence[Certificate], counts: Sequence[int]) -> Certificate:
    uppers = [certificate.upper for certificate in found]
    known = [upper for upper in uppers if upper is not None]
    sizes = [c.log10_upper if c.upper is None else float(c.upper.max().log10()) for c in found]
    whole = len(known) == len(uppers)
    evidence = tuple(certificate.evidence for certificate in found)
    return replace(
        found[0],
        upper=torch.cat(known) if whole else None,
        log10_upper=None if whole else max(size for size in sizes if size is not None),
        query=query,
        rigour=min(certificate.rigour for certificate in found),
        # A product is that of the whole space, in every chunk the same.
        evidence=evidence[0] if isinstance(evidence[0], Gains) else Chunks(evidence, tuple(counts)),
        assumptions=tuple(dict.fromkeys(text for c in found for text in c.assumptions)),
        notes=tuple(dict.fromkeys(note for c in found for note in c.notes)),
        trace=(),
        interrupted=any(certificate.interrupted for certificate in found),
    )


def joined_lower(lowers: Iterable[Lower], counts: Sequence[int]) -> Lower:
    """The lower bounds of all balls. A chunk for which nothing was shown has 0, which is one, and its note says so; one that
    was not run is missing.

    Args:
        lowers: those of the chunks, in order; none is kept. counts: how many balls each chunk has.
    """
    value = torch.zeros(sum(counts), dtype=torch.float64)
    both, let_go = torch.empty(0), None
    notes: list[tuple[int, int, str]] = []
    nothing: list[slice] = []
    missing = torch.zeros(len(value), dtype=torch.bool)
    failed, method, along, start = False, "none", False, 0
    for lower, count in zip(lowers, counts, strict=True):
        found, rows = lower.witness, slice(start, start + count)
        if start == 0:
            both, let_go = _room(found.points, len(value))
        value[rows], both[0][rows] = found.value, found.points
        # What belongs to each point; that of a chunk that shows nothing is the point itself, or no direction.
        other = found.partner if found.direction is None else found.direction
        both[1][rows] = found.points if other is None else other
        if found.method == "none":
            nothing.append(rows)
        elif method == "none":
            method, along = found.method, found.direction is not None
        first = notes.pop()[0] if notes and notes[-1][2] == found.note else start
        failed, start = failed or lower.failed, rows.stop
        missing[rows] = lower.cut if lower.missing is None else lower.missing
        notes.append((first, start - 1, found.note))
        if let_go is not None:
            let_go()
    points, others = both
    for rows in nothing if along else ():
        others[rows] = 0.0
    said = [f"points {first} to {last}: {note}" for first, last, note in notes if note]
    note = notes[0][2] if len(notes) == 1 else "; ".join(said)
    pairs = {"direction": others} if along else {"partner": others}
    witness = Witness(value, points, method, note=note, let_go=let_go, **pairs)
    return Lower(value, witness, failed=failed, cut=bool(missing.all()), missing=missing)


def _room(points: torch.Tensor, count: int) -> tuple[torch.Tensor, Callable[[], object] | None]:
    """Room for both ends of pairs, [2, count, *input shape], in a file where they are many; and what lets its pages go."""
    shape = 2, count, *points.shape[1:]
    plain = points.device.type == "cpu" and points.dtype == torch.float64
    held = memory.aside(8 * math.prod(shape)) if plain else None
    if held is None:
        return points.new_empty(shape), None
    let_go = partial(held.madvise, mmap.MADV_DONTNEED)
    return torch.frombuffer(held, dtype=torch.float64).reshape(shape), let_go
