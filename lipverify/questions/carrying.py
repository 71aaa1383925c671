"""What certificates say of an answer: whether they carry it, and which bound the checker's own numbers give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lipverify.certificates import Issued, verify
from lipverify.certificates.format import region_document
from lipverify.errors import RefutedCertificate
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.region import Ball
from lipverify.questions.question import Proved, Question


def carried(question: Question, proved: Proved, count: int) -> Tensor:
    """The bounds [count] that the certificates of an answer carry: numbers that the checker proved, never the question's word.

    A certificate of the claim itself says its bounds, or those [fewer] of the first regions. Those of constants bound facts,
    and the formula makes the bounds of them: that the claim follows from the formula is what the question states.

    Raises:
        RefutedCertificate: they do not carry it, with the reason. LipverifyError: the checker does not accept one of them.
    """
    graphs = [subject.graph for subject in question.subjects]
    if proved.issued is not None:
        claim = _accepted(proved.issued, graphs)
        if claim["kind"] != question.name:
            raise RefutedCertificate(
                f"the certificate claims a {claim['kind']}, which is not what the question claims; a constant belongs "
                "to the fact that it bounds (`Proved.constants`)"
            )
        _as_expected(proved.issued, question, None)
        found = _numbers(claim)
        _about(claim["region"], getattr(question, "region", None), len(found))
        return found
    facts = {}
    for name in question.formula.facts():
        if name not in proved.constants:
            raise RefutedCertificate(f"the fact {name!r} has no certificate")
        upper = _constant(name, proved.constants[name], question, count)
        facts[name] = Interval(torch.zeros_like(upper), upper)
    return question.formula.evaluate(facts).upper


def _constant(name: str, issued: Issued, question: Question, count: int) -> Tensor:
    """The constant [count, 1] of one of the networks; a fact that it bounds lies between 0 and it."""
    about = [s.graph for s in question.subjects if [s.graph.digest] == _digests(issued)]
    claim = _accepted(issued, about[:1])
    if claim["kind"] != "constant":
        raise RefutedCertificate(
            f"the certificate of the fact {name!r} claims a {claim['kind']}, not a constant"
        )
    _as_expected(issued, question, name)
    found = _numbers(claim)
    # One constant holds everywhere; one of a ball says nothing of other regions.
    if claim["region"] == {"kind": "everywhere"}:
        return found.repeat(count).unsqueeze(1)
    region = getattr(question, "region", None)
    if not isinstance(region, Ball) or claim["region"] != region_document(region) or len(found) != count:
        raise RefutedCertificate(
            f"the certificate of the fact {name!r} is about another region than the answer; constants over balls, or over a box, "
            "count where they are about the question's own `region`"
        )
    return found.unsqueeze(1)


def _about(claimed: Mapping[str, Any], region: Any, first: int) -> None:
    """RefutedCertificate unless a certificate of a question's own claim is about its region, or the first balls of it."""
    if claimed["kind"] == "everywhere":
        return
    if not isinstance(region, Ball):
        raise RefutedCertificate("the certificate is about balls, and the question's `region` is none")
    own = region_document(region[:first])
    if claimed != own and (claimed["kind"] != "box" or claimed["box"] != own["box"] or first != len(region)):
        raise RefutedCertificate("the certificate is about another region than the answer")


_READ = ("kind", "region", "upper", "upper_hex", "upper_decimal", "statement")
"""Fields of a claim that are compared with the question here, or made of those that are."""
_ITS_OWN = ("differences", "labels")
"""Of a deviation: more than a question asks, which the certificate alone says."""


def _accepted(issued: Issued, graphs: list[Graph]) -> Mapping[str, Any]:
    """The claim of a certificate about exactly these networks, which the checker has accepted, or accepts now."""
    if not graphs or [graph.digest for graph in graphs] != _digests(issued):
        raise RefutedCertificate("the certificate is about other networks than the question")
    if issued.verdict is None:
        verify(issued, graphs)
    claim: Mapping[str, Any] = issued.document["claim"]
    return claim


def _as_expected(issued: Issued, question: Question, name: str | None) -> None:
    """RefutedCertificate unless whatever else a certificate says is what the question expects of its own claim, or of the fact
    `name`: no field is passed over."""
    claim: Mapping[str, Any] = issued.document["claim"]
    expects = getattr(question, "expects", None)
    wanted = {"output": 0, "margin": None} | dict({} if expects is None else expects(name))
    said = [{key: value for key, value in claim.items() if key not in (*_READ, *_ITS_OWN)}]
    said += [{"output": m["output"]["index"], "margin": m["margin"]} for m in issued.document["models"]]
    for key, value in (item for fields in said for item in fields.items()):
        if key not in wanted:
            raise RefutedCertificate(
                f"the certificate says {key} {value!r}, and the question's `expects` says nothing of it"
            )
        if value != wanted[key]:
            raise RefutedCertificate(
                f"the certificate says {key} {value!r}, and the question expects {wanted[key]!r}"
            )


def _digests(issued: Issued) -> list[str | None]:
    return [model["graph_digest"] for model in issued.document["models"]]


def _numbers(claim: Mapping[str, Any]) -> Tensor:
    upper = claim["upper"]
    return torch.tensor(upper if isinstance(upper, list) else [upper], dtype=torch.float64)
