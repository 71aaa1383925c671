"""What breaks loses its own row and no other; a bound that a witness contradicts is withdrawn; both are seen in the exit code."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import pytest
import torch

import lipverify as lv
from lipverify import certificates, pipeline
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.comparison import run
from lipverify.errors import InternalError
from lipverify.falsify import Search
from lipverify.ir.certificate import Certificate
from lipverify.ir.graph import Graph
from lipverify.ir.region import Query
from lipverify.reporting.pipelines import junit
from lipverify.reporting.terminal import print_audit
from tests.networks import chain

QUICK = Search(restarts=4, rounds=4, seconds=1)


@dataclass(frozen=True)
class Raising:
    """Raises.

    Statement: none. Source: none. Sound when: never.
    """

    name: ClassVar[str] = "raising"
    error: Exception = field(default_factory=lambda: RuntimeError("the algorithm failed to converge"))

    def reject(self, graph: Graph, query: Query) -> str | None:
        return None

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        raise self.error


@dataclass(frozen=True)
class TooSmall:
    """Half of the product.

    Statement: a wrong one. Source: none. Sound when: never.
    """

    name: ClassVar[str] = "too-small"

    def reject(self, graph: Graph, query: Query) -> str | None:
        return None

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        found = Product().bound(graph, query, compute)
        assert found.upper is not None
        return replace(found, upper=found.upper / 2)


def network() -> Graph:
    return chain([torch.tensor([[3.0, 0.0], [0.0, 1.0]])])


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("the algorithm failed to converge"),
        InternalError("eigenvectors are not orthonormal"),
        OverflowError("an operator norm is above the largest float64"),
        torch.linalg.LinAlgError("linalg.eigh: (Batch element 3): failed to converge"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_an_analyzer_that_breaks_is_a_row(error: Exception, place: int) -> None:
    methods: list[object] = [Product()]
    methods.insert(place, Raising(error))
    result = lv.audit(network(), analyzers=methods, search=QUICK)
    row, other = result.rows[place], result.rows[1 - place]
    assert row.failed
    assert row.certificate is None
    assert row.refused is not None
    assert row.refused.startswith("internal error")
    assert "convergence" not in row.refused
    assert other.upper == pytest.approx(3.0)
    assert str(other.certificate.rigour) == "checked"
    assert pipeline.exit_code(result) == 1
    document = result.to_json()
    assert document["results"][place] == {"analyzer": "raising", "refused": row.refused, "failed": True}
    assert document["best"]["analyzer"] == "product"
    assert "(failed)" in result.to_html()
    print_audit(document)
    suite = ElementTree.fromstring(junit(document))
    assert suite.get("errors") == "1"
    assert suite.get("skipped") == "0"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 34359738368 bytes."
        ),
    ],
)
def test_an_allocation_that_fails_is_a_refusal_that_says_what_is_available(error: Exception) -> None:
    result = lv.audit(network(), analyzers=[Raising(error), Product()], search=QUICK)
    refused = str(result.rows[0].refused)
    assert not result.failed
    assert "GB are available: give a larger --memory" in refused
    assert ("34.4 GB" in refused) == isinstance(error, RuntimeError)
    assert result.rows[1].upper == pytest.approx(3.0)
    assert pipeline.exit_code(result) == 0


def test_a_bound_below_a_witness_is_withdrawn_and_kept_for_the_report() -> None:
    result = lv.audit(network(), analyzers=[TooSmall(), Product()], search=QUICK)
    first, second = result.rows
    assert first.refuted
    assert first.failed
    assert first.certificate is None
    assert second.upper == pytest.approx(3.0)
    assert pipeline.exit_code(result) == 3
    assert result.best is second
    assert first.refused is not None
    assert "above the bound 1.5" in first.refused
    assert "bug" in first.refused
    folder = Path(first.refused.rsplit(" ", 1)[1])
    assert json.loads((folder / "certificate.json").read_text())
    assert result.to_json()["results"][0]["refuted"] is True


def test_a_certificate_that_does_not_check_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = certificates.issue

    def issue(
        certificate: Certificate, graph: Graph, query: Query, method: object, seconds: float
    ) -> Certificate:
        if isinstance(method, TooSmall):
            raise InternalError(
                "the certificate of too-small does not check; please report it with /somewhere"
            )
        if isinstance(method, Product) and broken:
            raise ValueError("out of range")
        return whole(certificate, graph, query, method, seconds)

    monkeypatch.setattr(certificates, "issue", issue)
    monkeypatch.setattr(pipeline, "held_against", lambda row, *_: row)
    broken = False
    result = lv.audit(network(), analyzers=[TooSmall(), Product()], search=QUICK)
    assert [row.failed for row in result.rows] == [True, False]
    assert "/somewhere" in (result.rows[0].refused or "")
    assert pipeline.exit_code(result) == 1
    broken = True
    row = lv.audit(network(), analyzers=[Product()], search=QUICK).rows[0]
    assert row.failed
    assert row.certificate is None
    assert row.refused is not None
    assert (Path(row.refused.rsplit(" ", 1)[1]) / "certificate.json").exists()


def test_a_search_that_breaks_leaves_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("nothing found")

    monkeypatch.setattr(pipeline, "falsify", breaks)
    for region in (None, lv.Ball(torch.zeros(2, 2), 0.1)):
        result = lv.audit(network(), region=region)
        assert result.lower.failed
        assert float(torch.as_tensor(result.lower.value).max()) == 0.0
        assert result.rows[0].certificate is not None
        lower = result.to_json()["lower"]
        assert lower["failed"] is True
        assert "nothing found" in lower["note"]
        assert pipeline.exit_code(result) == 1


def test_a_comparison_says_the_same() -> None:
    found = run.compare({"net": network()}, analyzers=[Raising(), TooSmall(), Product()])
    rows = {row["analyzer"]: row for row in found.to_json()["models"][0]["audits"][0]["results"]}
    assert rows["raising"]["failed"] is True
    assert "refuted" not in rows["raising"]
    assert rows["too-small"]["failed"] is rows["too-small"]["refuted"] is True
    assert rows["product"]["upper"] == pytest.approx(3.0)
    assert found.exit_code() == 3
    assert run.compare({"net": network()}, analyzers=[Raising(), Product()]).exit_code() == 1
    assert found.to_html()
