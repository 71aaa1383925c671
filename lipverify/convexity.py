"""Is an output a convex function of the input? Proved by construction, or refuted by three points on a line."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from lipverify import ops
from lipverify.certificates import Issued
from lipverify.certificates.format import Author
from lipverify.certificates.issuing import subject_of, written
from lipverify.certificates.writing import Writer
from lipverify.checkers.claims import Convex
from lipverify.documents import envelope, model_document
from lipverify.errors import LipverifyError, UnsupportedModel, UsageError
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Constant, Input, Op
from lipverify.ir.region import Everywhere
from lipverify.monotonicity.signs import through_affine
from lipverify.propagation.adjoint import adjoint
from lipverify.propagation.knowledge import is_affine
from lipverify.propagation.points import values
from lipverify.reporting.notebook import Result
from lipverify.rules import slopes as slope_rule

CERTIFICATE = "convex.json"
TRIES = 512
"""Lines on which a refutation is looked for, at each of `SPREADS`."""
SPREADS = (0.1, 1.0, 10.0)
_BENT: dict[type[Op], Any] = {
    ops.ReLU: lambda op: 1,
    ops.Abs: lambda op: 1,
    ops.Exp: lambda op: 1,
    ops.Softplus: lambda op: 1 if op.beta > 0 else -1,
    ops.LogSigmoid: lambda op: -1,
    ops.LeakyReLU: lambda op: 1 if op.slope <= 1 else -1,
    ops.ELU: lambda op: 1 if 0 <= op.alpha <= 1 else 0,
    ops.CELU: lambda op: 1 if op.alpha > 0 else 0,
    ops.Clip: lambda op: 1 if op.high == float("inf") else -1 if op.low == -float("inf") else 0,
    ops.Power: lambda op: 1 if op.exponent == 2.0 else 0,
}
"""Whether a function is convex (1) or concave (-1) everywhere; 0: neither."""


class Verdict(Enum):
    """What holds everywhere; the value is the word of the documents."""

    CONVEX = "convex"
    CONCAVE = "concave"
    AFFINE = "affine"
    """Both (proved)."""
    NEITHER = "neither"
    """Two triples show that it is not convex and not concave."""
    UNDECIDED = "undecided"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Edge:
    """The first place where the construction breaks, from the output on: an entry of a node that would have to be convex."""

    node: str
    entry: int
    wanted: str
    reader: str
    weight: float | None
    """The largest weight, in size, with which a matrix `reader` takes the entry where that has the sign that breaks it."""

    def __str__(self) -> str:
        by = "" if self.weight is None else f" with weight {self.weight:.6g}"
        return f"entry {self.entry} of {self.node} would have to be {self.wanted}: {self.reader} takes it{by}"

    def to_json(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "entry": self.entry,
            "wanted": self.wanted,
            "reader": self.reader,
            "weight": self.weight,
        }


@dataclass(frozen=True)
class Triple:
    """Three points on a line, middle = (first + last) / 2 exactly, and ranges that hold the exact outputs there.

    excess: how far the output in the middle is above (below, where negative) the mean of the ends, at least.
    """

    first: Tensor
    middle: Tensor
    last: Tensor
    excess: float

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name).flatten().tolist() for name in ("first", "middle", "last")} | {
            "excess": self.excess
        }


@dataclass(frozen=True)
class Finding:
    """The answer for one entry of the output. edges: where convexity, and where concavity by construction breaks; triples:
    what refutes convexity, and concavity."""

    output: int
    verdict: Verdict
    edges: tuple[Edge | None, Edge | None]
    triples: tuple[Triple | None, Triple | None]
    checked: bool = False
    unchecked: str = ""

    def to_json(self) -> dict[str, Any]:
        words = ("convex", "concave")
        return {
            "output": self.output,
            "verdict": str(self.verdict),
            "rigour": "checked" if self.checked else "real",
            **({"unchecked": self.unchecked} if self.unchecked else {}),
            "breaks": {w: None if e is None else e.to_json() for w, e in zip(words, self.edges, strict=True)},
            "refutes": {
                w: None if t is None else t.to_json() for w, t in zip(words, self.triples, strict=True)
            },
        }


@dataclass(frozen=True)
class Convexity(Result):
    """All findings of one call, by entry of the output."""

    graph: Graph
    findings: tuple[Finding, ...]
    seconds: float
    seed: int
    command: str | None = None
    issued: Issued | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        said = ", ".join(f"{f.output}: {f.verdict}" for f in self.findings[:8])
        return f"Convexity({said}{', ...' if len(self.findings) > 8 else ''})"

    @property
    def decided(self) -> bool:
        """Whether every entry got a verdict other than `undecided`."""
        return all(f.verdict is not Verdict.UNDECIDED for f in self.findings)

    def certificate_files(self) -> dict[str, bytes]:
        """The files of the certificate under their places in a folder."""
        if self.issued is None:
            return {}
        return {f"certificates/{name}": data for name, data in self.issued.files(CERTIFICATE).items()}

    def to_json(self) -> dict[str, Any]:
        """The document of `audit --convex --json`."""
        return envelope(
            "lipverify.convex/1",
            self.command,
            self.seconds,
            model=model_document(self.graph),
            outputs=[f.to_json() for f in self.findings],
            certificate=None if self.issued is None else f"certificates/{CERTIFICATE}",
            witness="witness.npz",
            seed=self.seed,
        )

    def witness_file(self) -> bytes:
        """An .npz with the triples: `not_convex_K` and `not_concave_K` [3, *input shape] for entry K."""
        arrays: dict[str, Any] = {
            f"not_{word}_{f.output}": np.stack([t.first.numpy(), t.middle.numpy(), t.last.numpy()])
            for f in self.findings
            for word, t in zip(("convex", "concave"), f.triples, strict=True)
            if t is not None
        }
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    def show(self, document: dict[str, Any], file: TextIO | None = None) -> None:
        """What a person at a terminal sees."""
        for f in self.findings:
            said = f"output {f.output}: {f.verdict} ({'checked' if f.checked else 'proved'})"
            if f.verdict in (Verdict.NEITHER, Verdict.UNDECIDED):
                edge = f.edges[0]
                said = f"output {f.output}: {f.verdict}" + (
                    "" if edge is None else f"; not convex by construction: {edge}"
                )
            print(said, file=file)

    def page(self, document: dict[str, Any]) -> str:
        """The self-contained page."""
        from lipverify.reporting.convexity import render_convexity

        return render_convexity(document)


def convex(graph: Graph, *, outputs: Sequence[int] | None = None, seed: int = 0) -> Convexity:
    """Which entries of the output are convex or concave functions of the input, everywhere.

    Statement: a `convex` entry has f((x + y) / 2) <= (f(x) + f(y)) / 2 for all inputs x, y; concave: >=. By construction:
        weights of one sign behind convex activations that rise, from the output back to the input.
    Source: Boyd, Vandenberghe, Convex Optimization, section 3.2; Amos, Xu, Kolter 2017 (arXiv 1609.07152).

    Raises:
        UsageError: an entry that is not there.
    """
    started = time.monotonic()
    stored = graph  # with the numbers of its file, which the certificate is bound to
    graph = graph.to(dtype=torch.float64).pruned()
    size = graph.output.size
    wanted = range(size) if outputs is None else list(outputs)
    if any(not 0 <= k < size for k in wanted):
        raise UsageError(f"the output has entries 0 to {size - 1}")
    affine = _affine(graph)
    broken = {k: (_break(graph, k, 1, affine), _break(graph, k, -1, affine)) for k in wanted}
    triples = _refuted(graph, [k for k in wanted if None not in broken[k]], seed)
    findings = []
    for k in wanted:
        up, down = broken[k]
        verdict = Verdict.UNDECIDED
        if up is None or down is None:
            verdict = (
                Verdict.CONCAVE if up is not None else Verdict.CONVEX if down is not None else Verdict.AFFINE
            )
        elif None not in triples[k]:
            verdict = Verdict.NEITHER
        findings.append(Finding(k, verdict, (up, down), triples.get(k, (None, None))))
    told, issued = _certified(stored, findings, time.monotonic() - started)
    return Convexity(stored, told, time.monotonic() - started, seed, None, issued)


Needs = tuple[Tensor, Tensor]
"""Entries of a node that have to be convex, and that have to be concave: 1 or 0, of its shape."""


def _break(graph: Graph, entry: int, sign: int, affine: set[str]) -> Edge | None:
    """Where the construction breaks: what has to be convex and what concave, pushed back from the output to affine nodes."""
    need = {n.name: (torch.zeros(n.shape).double(), torch.zeros(n.shape).double()) for n in graph.nodes}
    need[graph.output.name][0 if sign > 0 else 1].view(-1)[entry] = 1.0
    for node in reversed(graph.nodes):
        convex, concave = need[node.name]
        if node.name in affine or not bool((convex + concave).any()):
            continue
        try:
            passed = _back(graph, node, convex, concave)
        except UnsupportedModel:
            passed = None
        if passed is None:
            return _edge(graph, node, need)
        for source, (up, down) in zip(node.inputs, passed, strict=True):
            have = need[source]
            need[source] = (
                torch.maximum(have[0], (up > 0).double()),
                torch.maximum(have[1], (down > 0).double()),
            )
    return None


def _affine(graph: Graph) -> set[str]:
    """Nodes that are affine functions of the input, those that do not depend on it among them."""
    constant, affine = set[str](), set[str]()
    for node in graph.nodes:
        if isinstance(node.op, Constant) or (node.inputs and set(node.inputs) <= constant):
            constant.add(node.name)
        straight = isinstance(node.op, Input) or (is_affine(node) and set(node.inputs) <= affine)
        if node.name in constant or straight:
            affine.add(node.name)
    return affine


def _back(graph: Graph, node: Node, convex: Tensor, concave: Tensor) -> list[Needs] | None:
    """What the inputs of a node have to be so that it is; None where the node cannot be it."""
    op, shapes = node.op, tuple(graph[name].shape for name in node.inputs)
    if is_affine(node):
        # A gradient that is positive wants a convex entry, a negative one a concave entry.
        signs = concave.unsqueeze(0), convex.unsqueeze(0)
        arrived = [through_affine(node, place, signs, shapes) for place in range(len(shapes))]
        return [(positive[0], negative[0]) for negative, positive in arrived]
    if isinstance(op, ops.Maximum | ops.Minimum):
        against, along = (concave, convex) if isinstance(op, ops.Maximum) else (convex, concave)
        if bool(against.any()):
            return None
        ups = [t[0] for t in adjoint(ops.Add(), along.unsqueeze(0), shapes)]
        none = [torch.zeros_like(x) for x in ups]
        return list(
            zip(ups, none, strict=True) if isinstance(op, ops.Maximum) else zip(none, ups, strict=True)
        )
    if isinstance(op, ops.MaxPool):
        if bool(concave.any()):
            return None
        one = torch.ones(shapes[0], dtype=torch.float64)
        return [(one, torch.zeros_like(one))]
    return _scalar(node, convex, concave) if len(shapes) == 1 else None


def _bent(node: Node) -> Tensor:
    """Whether every entry of an operator that is not affine is a convex (1) or a concave (-1) function; 0: neither. Its shape."""
    op = node.op
    if isinstance(op, ops.Maximum | ops.MaxPool | ops.Minimum):
        return torch.full(node.shape, -1.0 if isinstance(op, ops.Minimum) else 1.0, dtype=torch.float64)
    if isinstance(op, ops.PReLU):
        return torch.where(op.slope <= 1.0, 1.0, -1.0).double().expand(node.shape)
    kind = _BENT[type(op)](op) if type(op) in _BENT else 0
    return torch.full(node.shape, float(kind), dtype=torch.float64)


def _scalar(node: Node, convex: Tensor, concave: Tensor) -> list[Needs] | None:
    """Through an activation: it bends the right way, and what it reads does too, if it rises."""
    op, bent = node.op, _bent(node)
    if not (isinstance(op, ops.PReLU) or type(op) in _BENT) or any(
        bool(bad.any()) for bad in _against(bent, convex, concave)
    ):
        return None
    if isinstance(op, ops.PReLU):
        rises = (op.slope >= 0.0).expand(node.shape)
    elif isinstance(op, ops.Power | ops.Exp):
        rises = torch.full(node.shape, isinstance(op, ops.Exp))
    else:
        found = slope_rule(op, None, node.shape)
        rises = torch.full(node.shape, False) if found is None else (found.lower >= 0.0).expand(node.shape)
    # Where it does not rise everywhere, what it reads has to be affine.
    either = torch.maximum(convex, concave)
    up = torch.where(rises, convex, either)
    down = torch.where(rises, concave, either)
    return [(up, down)]


def _against(bent: Tensor, convex: Tensor, concave: Tensor) -> tuple[Tensor, Tensor]:
    """Entries that have to be convex and are not, and those that have to be concave and are not."""
    return (convex > 0) & (bent <= 0), (concave > 0) & (bent >= 0)


def _edge(graph: Graph, node: Node, need: dict[str, Needs]) -> Edge:
    """The entry of a node that cannot be what is wanted of it, and the reader that wants it."""
    convex, concave = need[node.name]
    bad = _against(_bent(node), convex, concave)
    if not bool((bad[0] | bad[1]).any()):
        bad = convex > 0, concave > 0  # no rule passes it on
    entry = int((bad[0] | bad[1]).flatten().int().argmax())
    asked = [word for word, side in (("convex", convex), ("concave", concave)) if bool(side.view(-1)[entry])]
    sides = [side for side in (0, 1) if bool(bad[side].view(-1)[entry])]
    reader, weight = node, None
    for name in dict.fromkeys(graph.consumers[node.name]):
        one, rows = graph[name], need[name]
        passed = _back(graph, one, *rows) if bool((rows[0] + rows[1]).any()) else None
        wanting = [
            side
            for source, needs in zip(one.inputs, passed or (), strict=False)
            for side in sides
            if source == node.name and bool(needs[side].reshape(-1)[entry] > 0)
        ]
        if wanting:
            reader, weight = one, _taken(one, rows, entry, wanting)
            break
    return Edge(node.name, entry, " and ".join(asked), reader.name, weight)


def _taken(reader: Node, rows: Needs, entry: int, sides: Sequence[int]) -> float | None:
    """The largest weight, in size, with which a matrix takes an entry into those of its rows that want it so."""
    if not isinstance(reader.op, ops.Linear):
        return None
    place, column = divmod(entry, reader.op.weight.shape[1])
    weights = reader.op.weight[:, column]
    convex, concave = (side.reshape(-1, len(weights))[place] > 0 for side in rows)
    wants = (
        (convex & (weights > 0)) | (concave & (weights < 0)),
        (convex & (weights < 0)) | (concave & (weights > 0)),
    )
    wanted = torch.stack([wants[side] for side in sides]).any(0)
    return float(weights[int(torch.where(wanted, weights.abs(), -1.0).argmax())])


def _refuted(
    graph: Graph, entries: Sequence[int], seed: int
) -> dict[int, tuple[Triple | None, Triple | None]]:
    """For each entry triples that refute convexity and concavity, where a search finds them and intervals prove them."""
    generator = torch.Generator().manual_seed(seed)
    shape = graph.input_shape
    found: dict[int, tuple[Triple | None, Triple | None]] = dict.fromkeys(entries, (None, None))
    if not entries:
        return found
    middles, steps = [], []
    for spread in SPREADS:
        for scale in (0.1, 1.0):
            middles.append(torch.randn(TRIES, *shape, generator=generator) * spread)
            steps.append(torch.randn(TRIES, *shape, generator=generator) * spread * scale)
    # In float32, so that middle - step, middle + step and their mean are exact in float64.
    middle, step = torch.cat(middles).double(), torch.cat(steps).double()
    with torch.no_grad():
        ends = [evaluate(graph, x).flatten(1) for x in (middle - step, middle, middle + step)]
    excess = ends[1] - (ends[0] + ends[2]) / 2
    for k in entries:
        pair = []
        for sign in (1.0, -1.0):
            best = int((sign * excess[:, k]).nan_to_num(-1.0).argmax())
            pair.append(_proved(graph, middle[best], step[best], k, sign))
        found[k] = pair[0], pair[1]
    return found


def _proved(graph: Graph, middle: Tensor, step: Tensor, entry: int, sign: float) -> Triple | None:
    points = torch.stack([middle - step, middle, middle + step])
    if not bool(((points[0] + points[2]) / 2 == middle).all()):
        return None
    try:
        box = values(graph, points)
    except UnsupportedModel:
        return None
    low, high = box.lower.flatten(1)[:, entry].tolist(), box.upper.flatten(1)[:, entry].tolist()
    if sign > 0:
        excess = float(np.nextafter(low[1] - float(np.nextafter((high[0] + high[2]) / 2, np.inf)), -np.inf))
    else:
        excess = float(np.nextafter(high[1] - float(np.nextafter((low[0] + low[2]) / 2, -np.inf)), np.inf))
    return Triple(points[0], points[1], points[2], excess) if sign * excess > 0 else None


def _certified(
    graph: Graph, findings: Sequence[Finding], seconds: float
) -> tuple[tuple[Finding, ...], Issued | None]:
    """The findings, `checked` where the checker proves them too, and the certificate of these."""
    signs = {Verdict.CONVEX: (1,), Verdict.CONCAVE: (-1,), Verdict.AFFINE: (1, -1)}
    entries = [(f.output, sign) for f in findings for sign in signs.get(f.verdict, ())]
    if not entries:
        return tuple(findings), None
    try:
        subject = subject_of(graph)
        writer = Writer(graph, subject.program, np.empty((0, subject.program.steps[0].size)), None)
        facts = [writer.add("convex", row=row, sign=sign) for row, sign in entries]
        issued = written(
            writer,
            facts,
            Convex(tuple(entries)),
            graph,
            subject,
            Author("convex", "convex", seconds),
            Everywhere(),
        )
        issued.check(subject.model)
    except (LipverifyError, OSError) as error:
        return tuple(replace(f, unchecked=str(error)) if f.verdict in signs else f for f in findings), None
    return tuple(replace(f, checked=f.verdict in signs) for f in findings), issued
