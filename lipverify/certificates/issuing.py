"""From a bound to a certificate: written, checked from its written form alone, and `checked` only after that."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lipverify import checkers
from lipverify.analyzers.lipsdp.evidence import Multipliers, Proofs
from lipverify.analyzers.local.analyzer import JacobianRows
from lipverify.certificates.balls import ball_proofs
from lipverify.certificates.format import Issued, document_of, region_arrays
from lipverify.certificates.nodes import Described, described
from lipverify.certificates.proofs import (
    CONVOLUTION_TOLERANCE,
    TOLERANCE,
    lipsdp_parts,
    product_stages,
    too_small,
)
from lipverify.checkers import Model, NotCovered, arithmetic
from lipverify.checkers.gains import prove_product
from lipverify.checkers.multipliers import System, needed
from lipverify.checkers.proofs import ending
from lipverify.checkers.steps import Map, Program, Scalar
from lipverify.errors import InternalError, LipverifyError, RefutedCertificate, UnsupportedModel
from lipverify.ir.certificate import Certificate, Gains, Rigour
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Everywhere, Query
from lipverify.loading.names import display
from lipverify.loading.safetensors import write_safetensors

if TYPE_CHECKING:
    from lipverify.analyzers.protocol import Analyzer

_SLACKS = (2.0**-26, 2.0**-22, 0.99 * TOLERANCE, 1e-3)


# -- what the certificate is checked against


def model_of(graph: Graph) -> Model:
    """The graph in memory as the checker's model: its own tensors, bound by content."""
    known = described(graph)
    name = display(graph.origin.path or "graph", 80)
    return Model(
        name, graph.origin.sha256, known.arrays, "graph", known.program, (known.output,), "", graph.digest
    )


def _bound_model(graph: Graph) -> Model:
    """The model file a graph came from, read by the checker itself; the graph in memory where there is no file."""
    origin = graph.origin
    if origin.path is None or origin.sha256 is None:
        return model_of(graph)
    return _read(str(model_path(origin.path)), origin.sha256)


@lru_cache(maxsize=2)
def _read(path: str, sha256: str) -> Model:
    model = checkers.read_model(Path(path))
    if model.sha256 != sha256:
        raise NotCovered("the model file has changed since it was read")
    return model


def model_path(model: str) -> Path:
    """The file that a model argument names: for networks of the zoo their weights."""
    from lipverify import zoo

    folder = zoo.resolve(model)
    return Path(model) if folder is None else folder / "weights.safetensors"


# -- issuing


def issue(
    certificate: Certificate, graph: Graph, query: Query, analyzer: Analyzer, seconds: float
) -> Certificate:
    """The certificate in its written form, `checked` when the checker has proved it from that form alone.

    Where the checker has no proof for the evidence, the rigour stays and `unchecked` says why.

    Raises:
        InternalError: evidence the checker covers does not carry the bound.
    """
    if certificate.rigour < Rigour.REAL or certificate.upper is None:
        return certificate
    try:
        issued, raised = _issued(certificate, graph, query, analyzer, seconds)
    except NotCovered as error:
        return replace(certificate, unchecked=str(error), proved=getattr(error, "proved", ()))
    except OSError as error:
        return replace(certificate, unchecked=f"the model file cannot be read again ({error.strerror})")
    except LipverifyError as error:
        kept = _kept(unproved(replace(certificate, unchecked=str(error)), graph, query, analyzer))
        kind = type(error).__name__
        raise InternalError(
            f"the certificate of {analyzer.name} does not check ({kind}: {error}); please report it with {kept}"
        ) from error
    proved = () if isinstance(query.region, Everywhere) else (True,) * raised.numel()
    return replace(certificate, upper=raised, rigour=Rigour.CHECKED, issued=issued, proved=proved)


def _kept(issued: Issued) -> str:
    """Where a certificate that did not check was written, for the bug report."""
    try:
        path = Path(tempfile.mkdtemp(prefix="lipverify-bug-")) / "certificate.json"
        issued.save(path)
    except OSError:
        return "the model (the certificate could not be written)"
    return str(path)


def _issued(
    certificate: Certificate, graph: Graph, query: Query, analyzer: Analyzer, seconds: float
) -> tuple[Issued, Tensor]:
    model = _bound_model(graph)
    known = described(graph) if model.binding == "weights" else None
    program, output = _program(model, known, graph)
    if isinstance(certificate.evidence, Gains) and query.norm_in is query.norm_out is Norm.L2:
        own = known or described(graph)
        if (reason := too_small(certificate.evidence, own.program)) is not None:
            raise RefutedCertificate(reason)

    def written(proof: dict[str, Any], arrays: dict[str, Tensor], raised: Tensor) -> Issued:
        document = document_of(
            replace(certificate, upper=raised, rigour=Rigour.CHECKED), graph, query, analyzer
        ) | {"proof": proof, "times": {"analyzer_seconds": seconds}}
        document["subject"] |= {"sha256": model.sha256, "output": output}
        beside = arrays | region_arrays(query.region)
        if known is not None:
            document |= {"graph": known.document, "tensors": known.tensors}
            foreign = sorted(known.arrays.keys() - model.tensors.keys())
            beside |= {f"tensor.{d}": torch.from_numpy(known.arrays[d].copy()) for d in foreign}
        return Issued(document, write_safetensors(beside) if beside else None)

    if isinstance(certificate.evidence, JacobianRows):
        # What fails here is tried again centre by centre, with a reason for each.
        with suppress(RefutedCertificate):
            proof, arrays, upper = _proof(certificate, program, output, graph, query, ahead=True)
            issued = written(proof, arrays, upper)
            issued.check(model)
            return issued, upper
    proof, arrays, upper = _proof(certificate, program, output, graph, query)
    # A proof in floating point needs a little room, and more of it on large networks.
    slacks = _SLACKS if proof["kind"] == "lipsdp" else (0.0,)
    for slack in slacks:
        raised = upper * (1 + slack)
        issued = written(proof, arrays, raised)
        try:
            issued.check(model)
        except RefutedCertificate as error:
            if isinstance(error, NotCovered) or slack == slacks[-1]:
                raise
            continue
        if slack > TOLERANCE:
            raise NotCovered(f"the checker alone proves {float(raised.max()):.6g}")
        return issued, raised
    raise AssertionError("unreachable")


def _program(model: Model, known: Described | None, graph: Graph) -> tuple[Program, str]:
    """The checker's own reading of the model, and the name of the output in it."""
    if known is not None:
        return known.program, known.output
    if model.program is None:
        raise NotCovered(model.reason)
    if model.binding == "graph":
        return model.program, model.outputs[0]
    own = described(graph)
    content = _content(own.program, own.output)
    for output in model.outputs:
        if _content(model.program, output) == content:
            return model.program, output
    raise NotCovered("the checker's own reader does not find this graph in the file")


def _content(program: Program, output: str) -> Counter[Any]:
    """What the steps behind an output are made of, however they are wired: enough to tell outputs and margins apart."""
    found: Counter[Any] = Counter()
    for step in needed(program, ending(program, output)).values():
        if isinstance(step, Map) and step.kernel.shape[1:] == (1, 1) and bool((step.kernel == 1).all()):
            continue  # what is added may have been joined to the map before it
        if isinstance(step, Map):
            found[step.kernel.shape, step.kernel.tobytes()] += 1
        elif isinstance(step, Scalar):
            found[step.law, step.size] += 1
        else:
            found[type(step).__name__, step.size] += 1
    return found


def _proof(
    certificate: Certificate, program: Program, output: str, graph: Graph, query: Query, ahead: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
    """Evidence in the checker's form, with the bound that it proves. ahead: see `ball_proofs`."""
    assert certificate.upper is not None
    step = ending(program, output)
    norms = str(query.norm_in), str(query.norm_out)
    if not isinstance(query.region, Everywhere) and not isinstance(certificate.evidence, Gains):
        return ball_proofs(certificate, program, step, graph, norms, ahead)
    if isinstance(certificate.evidence, Gains):
        stages = product_stages(program, step)
        proved = arithmetic.above(prove_product(program, step, norms, stages))
        convolves = any(getattr(s, "lattice", None) for s in program.steps.values())
        upper = certificate.upper.clamp(min=proved)
        if bool(
            (upper > certificate.upper * (1 + (CONVOLUTION_TOLERANCE if convolves else TOLERANCE))).any()
        ):
            raise NotCovered(f"the checker alone proves {proved:.6g}")
        proof: dict[str, Any] = {"kind": "product", "stages": stages}
        if not isinstance(query.region, Everywhere):
            proof = {"kind": "balls", "proofs": [proof], "of": [0] * upper.numel()}
        return proof, {}, upper
    if isinstance(certificate.evidence, Multipliers | Proofs):
        parts, arrays = lipsdp_parts(certificate.evidence, System(program, step))
        return {"kind": "lipsdp", "parts": parts}, arrays, certificate.upper
    raise NotCovered(
        f"evidence of the kind {type(certificate.evidence).__name__} is not covered by the checker"
    )


def unproved(certificate: Certificate, graph: Graph, query: Query, analyzer: Analyzer) -> Issued:
    """A bound the checker has no proof for, written with its evidence; the checker refuses it."""
    document = document_of(certificate, graph, query, analyzer)
    why = certificate.unchecked or "the checker was not asked"
    return Issued(document | {"not_covered": [*document["not_covered"], f"proof by the checker: {why}"]})


def verify(
    certificate: Certificate | Issued | str | Path, model: Graph | str | Path, exact: bool = False
) -> checkers.Verdict:
    """Proves a certificate again, with nothing of the analyzer that made it.

    Args:
        certificate: a file, or one of `Audit.certificates`. model: a graph, or what `load` takes as a file.
        exact: integers alone, for networks small enough.

    Raises:
        RefutedCertificate: the evidence does not carry the claim, or the checker has no proof for it.
        UnreadableCertificate: damaged, or for another model. UnsupportedModel: the certificate was never issued.
    """
    if isinstance(certificate, str | Path):
        path = Path(certificate)
        if not isinstance(model, Graph):
            return checkers.verify_file(path, model_path(str(model)), exact)
        return checkers.verify_file(path, model_of(model), exact)
    issued = certificate.issued if isinstance(certificate, Certificate) else certificate
    if issued is None:
        assert isinstance(certificate, Certificate)
        raise UnsupportedModel(
            f"this bound has no certificate that can be checked: {certificate.unchecked or 'not audited'}"
        )
    bound = model_of(model) if isinstance(model, Graph) else checkers.read_model(model_path(str(model)))
    assert isinstance(issued, Issued)
    return issued.check(bound, exact)


__all__ = ["Described", "issue", "model_of", "model_path", "unproved", "verify"]
