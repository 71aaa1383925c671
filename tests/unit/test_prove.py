"""Bounds that a budget left no time to prove are proved later from what was kept, and nothing that was kept is believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import certificates
from lipverify.analyzers.local.forms import FormRows
from lipverify.certificates.pending import ENDED, UNPROVED, cut, kept, restored
from lipverify.errors import BudgetEnded, InvalidFile
from tests.command import lipverify

MODEL = "zoo:wine-selu"


@pytest.fixture
def points(tmp_path: Path) -> Path:
    size = lv.load(MODEL).input.size
    np.savez(tmp_path / "points.npz", x=np.full((2, size), 0.1))
    return tmp_path / "points.npz"


def unproved(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> dict[str, Any]:
    """The report of an audit whose proofs had no time."""

    def issue(*_: object) -> None:
        raise BudgetEnded("the budget ended")

    with monkeypatch.context() as patch:
        patch.setattr(certificates, "issue", issue)
        done = lipverify("audit", MODEL, "--budget", "5s", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads((Path(arguments[-1]) / "result.json").read_text())


@pytest.mark.parametrize(
    "asked",
    [
        ("product,lipsdp-fast,lipsdp",),
        ("lipsdp", "--norm", "linf"),
        ("local,local-sdp", "--norm", "linf", "--limit", "1", "--radius", "0.05", "--data"),
    ],
)
def test_what_waits_is_proved_and_the_report_says_so(
    asked: tuple[str, ...], tmp_path: Path, points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"
    data = [points] if asked[-1] == "--data" else []
    before = unproved(monkeypatch, "--analyzers", *asked, *data, "--out", out)
    assert {row["rigour"] for row in before["results"]} == {"real"}
    assert {row["unchecked"] for row in before["results"]} == {UNPROVED}
    done = lipverify("prove", out)
    assert done.returncode == 0, done.stdout + done.stderr
    after = json.loads((out / "result.json").read_text())
    for old, new in zip(before["results"], after["results"], strict=True):
        assert new["rigour"] == "checked"
        assert "unchecked" not in new
        assert bool((np.asarray(new["upper"]) >= np.asarray(old["upper"])).all())
        assert bool((np.asarray(new["upper"]) <= 1.05 * np.asarray(old["upper"]) + 1e-12).all())
    assert lipverify("verify", out, "--model", MODEL).returncode == 0
    assert "checked" in (out / "report.html").read_text()
    again = lipverify("prove", out)
    assert again.returncode == 0  # a script may ask twice
    assert "no bound in" in again.stdout
    assert json.loads((out / "result.json").read_text()) == after


def test_a_bound_that_somebody_made_smaller_is_not_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"
    document = unproved(monkeypatch, "--analyzers", "product,lipsdp-fast", "--out", out)
    for row in document["results"]:
        row["upper"] *= 0.5
    document["lower"]["value"] = 0.0
    (out / "result.json").write_text(json.dumps(document))
    done = lipverify("prove", out)
    assert done.returncode == 4
    after = json.loads((out / "result.json").read_text())
    assert {row["rigour"] for row in after["results"]} == {"real"}


def test_kept_evidence_is_read_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "report"
    unproved(monkeypatch, "--analyzers", "lipsdp", "--out", out)
    place = out / "certificates" / "lipsdp.json"
    whole = json.loads(place.read_text())
    good = whole["proof"]["kept"]
    evidence, query = restored(good)
    assert kept(evidence, query) == good
    changes: list[Any] = [
        None,
        [],
        {**good, "evidence": {"kind": "Popen", "fields": {}}},
        {**good, "evidence": {"kind": "Multipliers", "fields": {}}},
        {**good, "evidence": 1.5},
        {**good, "query": {"norm_in": "l3", "norm_out": "l2"}},
    ]
    for change in changes:
        with pytest.raises((InvalidFile, lv.LipverifyError)):
            restored(change)
    whole["proof"]["kept"] = {**good, "evidence": {"kind": "Popen", "fields": {}}}
    place.write_text(json.dumps(whole))
    done = lipverify("prove", out)
    assert done.returncode == 2
    assert "damaged" in done.stderr


def test_prove_is_named_only_where_it_can_go_on() -> None:
    bound = lv.audit(lv.load(MODEL), analyzers="product").best
    assert bound is not None
    assert bound.certificate is not None
    made = bound.certificate
    assert cut(made).unchecked == UNPROVED
    rows = torch.full((1, 3), float("inf"), dtype=torch.float64)  # of a search that ended before it had any
    lost = cut(replace(made, evidence=FormRows(0, rows)))
    assert lost.unchecked == ENDED
    assert "prove`" not in lost.unchecked
