"""From a bound to a certificate: its evidence writes a proof, which the checker proves from its written form alone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipverify import checkers
from lipverify.certificates.format import (
    Author,
    Issued,
    Named,
    ball_document,
    balls_of,
    claim_document,
    document_of,
    region_arrays,
    tokens_of,
)
from lipverify.certificates.nodes import Described, described
from lipverify.certificates.pending import UNPROVED, kept
from lipverify.certificates.stages import too_small
from lipverify.certificates.writing import NOTHING, Writer
from lipverify.checkers import About, Expectation, Model, NotCovered
from lipverify.checkers.claims import MOST_RADIUS, Claim, Constant
from lipverify.checkers.evaluation import evaluate
from lipverify.checkers.kernel.program import Program
from lipverify.checkers.reader import FIXED_KINDS, Reading, digest_of, stating
from lipverify.checkers.reader.entries import rounds
from lipverify.deadline import look
from lipverify.documents import output_of
from lipverify.errors import (
    InternalError,
    LipverifyError,
    OtherModel,
    RefutedCertificate,
    UnreadableCertificate,
    UnsupportedModel,
)
from lipverify.interpreter import evaluate as interpreted
from lipverify.ir.certificate import Certificate, Gains, Rigour
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query, Region
from lipverify.loading.names import display
from lipverify.loading.safetensors import write_safetensors
from lipverify.ops import Linear, Reshape

ROUNDING = 1e-6
"""What a proof may add to a bound, relatively, without a word: proofs in floating point need a little room."""
MOST = 0.05
"""Beyond this part of the bound what the checker proves is another bound: the row stays `real` and says both."""


# -- what the certificate is checked against


@dataclass(frozen=True)
class Subject:
    """A graph as the checker reads it: the model, the program that ends with what the graph computes, and what it is about."""

    model: Model
    about: About
    program: Program
    described: Described | None
    """The architecture that a certificate has to state; None where the model's file tells it."""

    def arrays(self) -> dict[str, Tensor]:
        """Tensors of the architecture that the model's file does not hold, and what stands for inputs of the file."""
        if self.described is None:
            reading = self.about.reading
            fixed = {} if reading is None else reading.fixed
            return {
                f"fixed.{stated.digest}": torch.from_numpy(np.array(reading.arrays[name]))
                for name, stated in fixed.items()
                if reading is not None and stated.digest is not None
            }
        foreign = sorted(d for d, a in self.described.arrays.items() if not self.model.holds(a))
        return {f"tensor.{d}": torch.from_numpy(self.described.arrays[d].copy()) for d in foreign}


def model_of(graph: Graph) -> Model:
    """The graph in memory as the checker's model: its own tensors, bound by content."""
    known = described(_base(graph))
    name = display(graph.origin.path or "graph", 80)
    size = sum(a.nbytes for a in known.arrays.values())
    return Model(
        name, None, "graph", "graph", known.arrays, program=known.program, digest=graph.digest, size=size
    )


def subject_of(graph: Graph) -> Subject:
    """The model that a graph came from, read by the checker itself; the graph in memory where there is no file.

    Raises:
        NotCovered: the checker does not read the model, or reads something else in it. OSError: the file is gone.
        BudgetEnded: after the end of the block around it.
    """
    origin = graph.origin
    known: Described | None = None
    output: int | str = 0
    if origin.path is None or origin.sha256 is None:
        model = model_of(graph)
    else:
        model = _read(str(model_path(origin.path)), origin.sha256, origin.beside).read_as(reading_of(graph))
        known = described(_base(graph)) if model.binding == "weights" else None
        output = origin.output if known is None else 0
    program = model.program if known is None else known.program
    if program is None:
        look()
        raise NotCovered(f"the checker does not read the model's file: {model.reason}")
    if isinstance(output, str):
        names = [out.name for out in program.outputs]
        output = names.index(output) if output in names else len(names)
    if output in model.refused:
        raise NotCovered(f"the checker does not read output {output}: {model.refused[output]}")
    if not output < len(program.outputs):
        raise NotCovered("the checker's own reader does not find this output in the file")
    margin = origin.margin
    name = program.outputs[output].name
    about = About(model.sha256, graph.digest, output, name, margin, model.reading, model.beside)
    ended = program.ending(output, margin)
    _same_function(graph, ended)
    return Subject(model, about, ended, known)


def reading_of(graph: Graph) -> Reading | None:
    """How the graph reads the inputs of its file, in the checker's form; None where the file says it.

    Raises:
        NotCovered: numbers of a type that certificates do not state.
    """
    reading = graph.origin.reading
    if reading is None:
        return None
    if any(array.dtype.name not in FIXED_KINDS for array in reading.fixed.values()):
        raise NotCovered("an input is fixed at numbers of a type that certificates do not state")
    return stating(reading.inputs, reading.fixed, digest_of)


@lru_cache(maxsize=2)
def _read(path: str, sha256: str, beside: tuple[tuple[str, str], ...]) -> Model:
    model = checkers.read_model(Path(path))
    # What a budget cut off says nothing about the file, and is not remembered of it.
    look()
    if model.sha256 != sha256 or (not model.reason and model.beside != beside):
        raise NotCovered("the model file has changed since it was read")
    return model


def model_path(model: str) -> Path:
    """The file that a model argument names: for networks of the zoo their weights."""
    from lipverify import zoo

    folder = zoo.resolve(model)
    return Path(model) if folder is None else folder / "weights.safetensors"


def _base(graph: Graph) -> Graph:
    """The graph without the difference of two entries that `margin` put behind it: certificates name that by its two entries."""
    if graph.origin.margin is None:
        return graph
    last = graph.output
    if not isinstance(last.op, Linear) or last.name not in (graph.outputs[graph.output_index],):
        raise NotCovered("the graph does not end with the margin that it is said to be")
    before = graph[last.inputs[0]]
    flattened = isinstance(before.op, Reshape) and before.source == "flatten"
    name = before.inputs[0] if flattened else before.name
    return replace(graph, outputs=(name,), output_index=0).pruned()


def _same_function(graph: Graph, program: Program) -> None:
    """A test that the checker's program is the graph: the file's operators in other words, the output that was asked for.

    Of a program that rounds to steps half of more inputs have to agree: next to a tie sums in another order are a step apart,
    and means of integers meet ties often. What is proved is about the program alone.

    Raises:
        NotCovered: they differ at some of a few random inputs.
    """
    size = program.steps[0].size
    if size != graph.input.size or program.steps[-1].size != graph.output.size:
        raise NotCovered("the checker's own reader does not find this graph in the file")
    ties = rounds(program)
    sizes = np.array([0.3, 0.1, 1.0, 1.0] * 8 if ties else [0.0, 0.1, 1.0, 1.0])
    x = np.random.default_rng(0).standard_normal((len(sizes), size)) * sizes[:, None]
    ours = evaluate(program, x)[-1]
    with torch.no_grad():
        points = torch.from_numpy(x).reshape(len(x), *graph.input_shape)
        theirs = interpreted(graph.to(dtype=torch.float64), points).flatten(1).numpy()
    scale = np.abs(theirs).max(initial=0.0) + np.abs(ours).max(initial=0.0)
    # In float64 the two are within rounding of each other; values that overflow, or lie outside a domain, say nothing.
    apart = np.abs(ours - theirs)
    known = np.isfinite(ours) & np.isfinite(theirs)
    differ = int(((apart > 1e-6 * scale) & known).any(1).sum())
    most = len(x) // 2 if ties else 0
    if not np.array_equal(np.isfinite(ours), np.isfinite(theirs)) or differ > most:
        raise NotCovered("the checker's own reader does not find this graph in the file")


# -- issuing


def issue(
    certificate: Certificate, graph: Graph, query: Query, analyzer: Named, seconds: float
) -> Certificate:
    """The certificate in its written form, `checked` when the checker has proved it from that form alone.

    Where the checker has no proof for the evidence, the rigour stays and `unchecked` says why. Where it proves a little more than
    the analyzer claimed, up to 5 %, that is the bound, and a note says both; also where it proves less, of evidence that says
    so (`lowered`).

    Raises:
        InternalError: a gain of the analyzer is too small, or the certificate does not check though every step of its proof did.
    """
    if certificate.rigour < Rigour.REAL or certificate.upper is None:
        return certificate
    try:
        issued, upper = _issued(certificate, graph, query, analyzer, seconds)
    except RefutedCertificate as error:
        return replace(certificate, unchecked=str(error), proved=getattr(error, "proved", ()))
    except OSError as error:
        return replace(certificate, unchecked=f"the model file cannot be read again ({error.strerror})")
    proved = () if upper.ndim == 0 else (True,) * upper.numel()
    note = _changed(certificate.upper, upper)
    return replace(
        certificate,
        upper=upper,
        rigour=Rigour.CHECKED,
        issued=issued,
        proved=proved,
        notes=(*certificate.notes, *([note] if note else [])),
    )


class SomeUnproved(NotCovered):
    """Some centre has no proof. proved: which ones have."""

    def __init__(self, message: str, proved: tuple[bool, ...]) -> None:
        super().__init__(message)
        self.proved = proved


def _changed(before: Tensor, after: Tensor) -> str | None:
    """A word about a bound that the checker raised or lowered, where it is more than rounding."""
    apart = (after - before).abs()
    if not bool((apart > ROUNDING * before + NOTHING).any()):
        return None
    worst = int((apart / before.clamp_min(NOTHING)).reshape(-1).argmax())
    a, b = float(before.reshape(-1)[worst]), float(after.reshape(-1)[worst])
    return f"the bound is what the checker proves, {b:.6g}; the analyzer's own is {a:.6g}"


def _issued(
    certificate: Certificate, graph: Graph, query: Query, analyzer: Named, seconds: float
) -> tuple[Issued, Tensor]:
    evidence = certificate.evidence
    if isinstance(query.region, Ball) and query.region.own:
        raise NotCovered(
            "each centre has a box of its own; the checker knows one box for all (give one point to have a proof)"
        )
    if isinstance(query.region, Ball) and query.region.radius >= MOST_RADIUS:
        raise NotCovered(f"balls of a radius above {MOST_RADIUS:.3g} are not covered by the checker")
    if not callable(getattr(evidence, "proof", None)):
        kind = type(evidence).__name__
        raise NotCovered(f"evidence of the kind {kind} brings no proof that the checker reads")
    l2 = query.norm_in is query.norm_out is Norm.L2
    if isinstance(evidence, Gains) and l2 and (reason := too_small(evidence, graph)) is not None:
        raise _ours(RefutedCertificate(reason), certificate, graph, query, analyzer)
    subject = subject_of(graph)
    author = Author(analyzer.name, certificate.made_by, seconds, certificate.assumptions)
    if isinstance(query.region, Ball):
        # Ranges are computed once where the checker is expected to reach the bound; what fails is tried again, with reasons.
        try:
            return _checked(certificate, graph, query, subject, author, ahead=True)
        except (RefutedCertificate, UnreadableCertificate):
            pass
    try:
        return _checked(certificate, graph, query, subject, author, ahead=False)
    except UnreadableCertificate as error:
        raise _ours(error, certificate, graph, query, analyzer) from error


def _checked(
    certificate: Certificate, graph: Graph, query: Query, subject: Subject, author: Author, ahead: bool
) -> tuple[Issued, Tensor]:
    assert certificate.upper is not None
    arrays = {name: array.numpy() for name, array in region_arrays(query.region).items()}
    size = subject.program.steps[0].size
    box = (arrays["box"][0], arrays["box"][1]) if "box" in arrays else None
    writer = Writer(graph, subject.program, arrays.get("centres", np.empty((0, size))), box, ahead)
    facts, upper = _facts(certificate, query, writer)
    tokens = tokens_of(query.region, graph.input_shape)
    claim = Constant(_norms(query, graph), balls_of(query.region), tuple(upper), tokens)
    issued = written(writer, facts, claim, graph, subject, author, query.region)
    issued.check(subject.model)
    shape = certificate.upper.shape
    return issued, torch.tensor(upper, dtype=torch.float64).reshape(shape)


def _norms(query: Query, graph: Graph) -> tuple[str, str]:
    """The norms of a question as claims name them: of tokens with their width."""
    return query.norm_in.word(graph.input_shape), query.norm_out.word(graph.output_shape)


def _facts(certificate: Certificate, query: Query, writer: Writer) -> tuple[list[int], list[float]]:
    """The fact of every centre, or of the whole space, and the bound that it proves."""
    assert certificate.upper is not None
    evidence: Any = certificate.evidence
    norms = _norms(query, writer.graph)
    ball = query.region if isinstance(query.region, Ball) else None
    facts, upper, reasons = [], [], {}
    numbers = [float(v) for v in certificate.upper.reshape(-1)]
    # Where the checker's method is another one than the analyzer's, its bound may be the smaller one.
    lowered = bool(getattr(evidence, "lowered", False))
    for centre, wanted in enumerate(numbers):
        region = (
            None if ball is None else writer.region(str(ball.norm), ball.radius, centre, ball.box is not None)
        )
        try:
            with writer.attempt():
                fact = evidence.proof(writer, writer.part(region, norms, wanted, centre))
                proved = writer.limit(fact)
                if not proved <= wanted * (1.0 + MOST) + NOTHING:
                    raise NotCovered(f"the checker alone proves {proved:.6g}, the analyzer {wanted:.6g}")
            facts.append(fact)
            upper.append(proved if lowered and proved < wanted * (1.0 - ROUNDING) else max(proved, wanted))
        except RefutedCertificate as error:
            if ball is None or writer.ahead:
                raise
            reasons[centre] = str(error)
    if reasons:
        centre, reason = next(iter(reasons.items()))
        count = f"{len(numbers) - len(reasons)} of {len(numbers)} centres are proved"
        raise SomeUnproved(
            f"{count}; centre {centre}: {reason}", tuple(k not in reasons for k in range(len(numbers)))
        )
    return facts, upper


def written(
    writer: Writer,
    facts: Sequence[int],
    claim: Claim,
    graph: Graph,
    subject: Subject,
    author: Author,
    region: Region,
    places: Mapping[int, int] | None = None,
) -> Issued:
    """The certificate of a claim whose facts have been proved. places: of the writer's centres among those of the region."""
    proof, arrays, balls = writer.finished(facts, places)
    document = document_of(graph, subject.about, claim_document(claim, subject.about), author)
    document |= {
        "rigour": str(Rigour.CHECKED),
        "proof": proof,
        "regions": [ball_document(*ball) for ball in balls],
    }
    beside = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    beside |= region_arrays(region) | subject.arrays()
    if subject.described is not None:
        document |= {"architecture": subject.described.document, "tensors": subject.described.tensors}
    return Issued(document, write_safetensors(beside) if beside else None)


def _ours(
    error: LipverifyError, certificate: Certificate, graph: Graph, query: Query, analyzer: Named
) -> InternalError:
    kept = _kept(unproved(replace(certificate, unchecked=str(error)), graph, query, analyzer))
    said = f"the certificate of {analyzer.name} does not check ({type(error).__name__}: {error})"
    return InternalError(f"{said}; please report it with {kept}")


def _kept(issued: Issued) -> str:
    """Where a certificate that did not check was written, for the bug report."""
    try:
        path = Path(tempfile.mkdtemp(prefix="lipverify-bug-")) / "certificate.json"
        issued.save(path)
    except OSError:
        return "the model (the certificate could not be written)"
    return str(path)


def unproved(certificate: Certificate, graph: Graph, query: Query, analyzer: Named) -> Issued:
    """A bound the checker has no proof for, written with its evidence; it says so itself."""
    author = Author(analyzer.name, certificate.made_by, 0.0, certificate.assumptions)
    origin = graph.origin
    output = origin.output if isinstance(origin.output, int) else 0
    try:
        reading = reading_of(graph)
    except NotCovered:  # it proves nothing: its words alone lack what stands for an input
        reading = None
    about = About(origin.sha256, graph.digest, output, None, origin.margin, reading, origin.beside)
    norms, region = _norms(query, graph), query.region
    if certificate.upper is None:
        claim: dict[str, Any] = {"kind": "constant", "norm_in": norms[0], "norm_out": norms[1], "region": region.to_json(),
                                 "log10_upper": certificate.log10_upper}  # fmt: skip
    else:
        numbers = tuple(float(v) for v in certificate.upper.reshape(-1))
        claim = claim_document(
            Constant(norms, balls_of(region), numbers, tokens_of(region, graph.input_shape)), about
        )
    document = document_of(graph, about, claim, author)
    why = certificate.unchecked or "the checker was not asked"
    document |= {
        "rigour": str(certificate.rigour),
        "proof": certificate.evidence.to_json() | _pending(certificate, query),
        "not_covered": [*document["not_covered"], f"proof by the checker: {why}"],
    }
    return Issued(document)


def _pending(certificate: Certificate, query: Query) -> dict[str, Any]:
    """What a proof of it needs that the budget left no time for."""
    found = kept(certificate.evidence, query) if certificate.unchecked == UNPROVED else None
    return {} if found is None else {"kept": found}


# -- verifying


Given = Graph | str | Path


def verify(
    certificate: Certificate | Issued | str | Path,
    model: Given | Sequence[Given],
    exact: bool = False,
    *,
    expected: Expectation | None = None,
) -> checkers.Verdict:
    """Proves a certificate again, with nothing of the analyzer that made it.

    Args:
        certificate: a file, or one of `Audit.certificates`. model: a graph, or what `load` takes as a file; of a graph that was
            read from a file that file is read again. Of a claim about two models both, the original first.
        exact: integers alone, for networks small enough. expected: what the claim has to be (`checkers.Expectation`).

    Raises:
        RefutedCertificate: the evidence does not carry the claim, or it is another claim than expected. Undecided: it says itself
        that it is not proved. UnreadableCertificate: damaged, or for another model. UnsupportedModel: it was never issued.
    """
    models = [model] if isinstance(model, Graph | str | Path) else list(model)
    bound = [
        bound_model(m) if isinstance(m, Graph) else checkers.read_model(model_path(str(m))) for m in models
    ]
    digests = tuple(m.digest if isinstance(m, Graph) else None for m in models)
    graphs = [m for m in models if isinstance(m, Graph)]
    readings = tuple(map(reading_of, graphs)) if len(graphs) == len(models) else None
    expected = replace(expected or Expectation(), digests=digests, readings=readings)
    if isinstance(certificate, str | Path):
        return _of_graphs(checkers.verify_file(Path(certificate), bound, exact, expected), models)
    issued = certificate.issued if isinstance(certificate, Certificate) else certificate
    if issued is None:
        assert isinstance(certificate, Certificate)
        raise UnsupportedModel(
            f"this bound has no certificate that can be checked: {certificate.unchecked or 'not audited'}"
        )
    assert isinstance(issued, Issued)
    return _of_graphs(issued.check(bound, exact, expected), models)


def _of_graphs(verdict: checkers.Verdict, models: Sequence[Given]) -> checkers.Verdict:
    """The verdict, where it is about the graphs that were given, and not about something else in their files.

    A graph's digest in a certificate for a file is the word of its author: what is compared is which output of the file the claim
    is about, and what the checker's program computes.

    Raises:
        OtherModel: it is not.
    """
    for graph, shown, program in zip(models, verdict.models, verdict.programs, strict=True):
        if not isinstance(graph, Graph):
            continue
        place, name = output_of(graph.origin)
        other = shown["output"]["name"] != name if place is None else shown["output"]["index"] != place
        if shown["binding"] == "file" and (other or shown["margin"] != graph.origin.margin):
            raise OtherModel("it is about another output of the model's file than the graph")
        try:
            _same_function(graph, program)
        except NotCovered:
            raise OtherModel("it is about another function of the model's file than the graph") from None
    return verdict


def bound_model(graph: Graph) -> Model:
    """What a certificate of a graph is held against: its file, read again, or the graph itself where there is none.

    Raises:
        UnreadableCertificate: the file is gone. NotCovered: it has changed.
    """
    origin = graph.origin
    if origin.path is None or origin.sha256 is None:
        return model_of(graph)
    try:
        return _read(str(model_path(origin.path)), origin.sha256, origin.beside)
    except OSError as error:
        raise UnreadableCertificate(
            f"the graph's model file cannot be read again ({error.strerror})"
        ) from error


__all__ = [
    "Subject",
    "bound_model",
    "issue",
    "model_of",
    "model_path",
    "subject_of",
    "unproved",
    "verify",
    "written",
]
