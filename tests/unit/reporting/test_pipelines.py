"""What pipelines read: JUnit test cases and in-toto statements of an audit."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lipverify.errors import UsageError
from lipverify.reporting.pipelines import junit, statement, worst
from tests.command import lipverify


def document(**changes: Any) -> dict[str, Any]:
    return {
        "model": {"path": 'nets/<a & "b">.onnx', "sha256": "ab" * 32, "graph_digest": "cd" * 32},
        "tool": {"name": "lipverify", "version": "0"},
        "created": "2026-01-01T00:00:00+00:00",
        "query": {"norm_in": "l2", "norm_out": "l2", "region": {"kind": "everywhere"}},
        "results": [
            {"analyzer": "product", "upper": 12.5, "rigour": "checked", "seconds": 0.25},
            {"analyzer": "local", "refused": "needs a ball\x1b[31m: give --data"},
        ],
        "lower": {"value": 3.0},
        "best": {"analyzer": "product", "upper": 12.5},
        "assumptions": [],
        "not_covered": ["execution"],
        "seconds": 1.5,
    } | changes


def suite(**arguments: Any) -> ElementTree.Element:
    limit = arguments.pop("limit", None)
    return ElementTree.fromstring(junit(document(**arguments), limit).encode())


def test_every_analyzer_is_a_case_and_a_refusal_is_skipped() -> None:
    root = suite()
    assert (root.get("tests"), root.get("skipped"), root.get("failures")) == ("2", "1", "0")
    product, local = root.findall("testcase")
    assert product.findtext("system-out") == "product: upper 12.5"
    assert product.get("time") == "0.250"
    skipped = local.find("skipped")
    assert skipped is not None
    assert "\x1b" not in (skipped.get("message") or "")
    assert '<a & "b">' in (root.get("name") or "")


@pytest.mark.parametrize(
    ("best", "limit", "fails"),
    [
        ({"analyzer": "product", "upper": 12.5}, 12.5, False),
        ({"analyzer": "product", "upper": 12.5}, 12.499, True),
        ({"analyzer": "product", "upper": [1.0, 13.0]}, 12.5, True),
        ({"analyzer": "product", "log10_upper": 400.0}, 1e300, True),
        (None, 1e300, True),
    ],
)
def test_the_limit_is_a_case_that_fails_unless_a_bound_is_below_it(
    best: Any, limit: float, fails: bool
) -> None:
    root = suite(best=best, limit=limit)
    assert root.get("tests") == "3"
    assert root.get("failures") == str(int(fails))
    assert (worst(best) > limit) == fails


def test_no_bound_is_worse_than_any() -> None:
    assert worst(None) == math.inf


def test_a_statement_names_the_model_and_the_certificates_by_digest() -> None:
    made = statement(document(), {"product": {"product.json": b"{}", "product.safetensors": b""}})
    assert made["_type"] == "https://in-toto.io/Statement/v1"
    assert made["subject"] == [{"name": '<a & "b">.onnx', "digest": {"sha256": "ab" * 32}}]
    product, local = made["predicate"]["results"]
    assert product["certificates"][0]["digest"]["sha256"] == hashlib.sha256(b"{}").hexdigest()
    assert local["certificates"] == []
    assert "refused" in local
    assert made["predicate"]["best"]["upper"] == 12.5


def test_a_model_that_is_no_file_gets_no_statement() -> None:
    without = document()["model"] | {"sha256": None}
    with pytest.raises(UsageError, match="model file"):
        statement(document(model=without), {})


def test_the_command_writes_both_and_the_statement_holds_for_what_is_in_the_folder(tmp_path: Path) -> None:
    out, cases, said = tmp_path / "out", tmp_path / "lipverify.xml", tmp_path / "statement.json"
    options = ["--budget", "2s", "--fail-above", "10", "--junit", cases, "--statement", said, "--out", out]
    done = lipverify("audit", "zoo:wine-selu", *options)
    assert done.returncode == 3, done.stderr
    assert ElementTree.parse(cases).getroot().get("failures") == "1"
    made = json.loads(said.read_text())
    listed = made["predicate"]["results"][0]["certificates"]
    assert listed
    for entry in listed:
        data = (out / "certificates" / entry["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["digest"]["sha256"]


def test_a_place_that_cannot_be_written_is_an_error_of_the_user(tmp_path: Path) -> None:
    done = lipverify("audit", "zoo:wine-selu", "--budget", "1s", "--junit", tmp_path)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
