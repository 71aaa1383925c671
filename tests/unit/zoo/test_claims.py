"""Claims of the zoo: confirmed, refuted by a witness, or left open."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from lipverify import zoo
from lipverify.commands import claims
from lipverify.errors import UsageError
from tests.command import lipverify
from tests.tiers import also

BY_CONSTRUCTION = (
    "digits-aol",
    "digits-householder",
    "digits-ldlt",
    "digits-maxmin-orthogonal",
    "digits-sandwich",
    "digits-sll",
)


@pytest.mark.parametrize(
    "name", [name if k % 2 else also(name, "two seconds each") for k, name in enumerate(BY_CONSTRUCTION)]
)
def test_constants_by_construction_are_confirmed_by_the_audit_alone(name: str) -> None:
    found = claims.check(name)
    assert found.claim.constant == 1.0
    assert found.verdict == "confirmed"
    uppers = {row.analyzer: row.upper for row in found.audit.rows}
    # Gains multiply where every layer is an isometry; elsewhere only LipSDP sees the construction.
    assert (uppers["product"] <= 1) == (found.claim.analyzer == "product")
    assert uppers[found.claim.analyzer] <= 1


def test_the_broken_copy_is_exposed_by_a_witness_that_anyone_can_evaluate() -> None:
    found = claims.check("digits-sll-broken")
    assert found.verdict == "refuted"
    assert found.as_expected
    witness = found.audit.lower.witness
    module, card = zoo.load_module("digits-sll-broken")
    assert card.claim is not None
    assert witness.partner is not None
    x, y = witness.points.double(), witness.partner.double()
    module = module.double()
    with torch.no_grad():
        slope = float((module(x) - module(y)).norm() / (x - y).norm())
    assert slope > 3 * card.claim.constant


# Bounds from both sides leave little between: at least 42.0565, at most 42.0586.
@pytest.mark.parametrize(("constant", "verdict"), [(60.0, "confirmed"), (30.0, "refuted"), (42.0575, "open")])
def test_a_claim_is_confirmed_refuted_or_left_open(
    constant: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = zoo.card("digits-relu-mlp")
    assert card.claim is not None
    changed = replace(card, claim=replace(card.claim, constant=constant))
    monkeypatch.setattr(claims.zoo, "card", lambda name: changed)
    assert claims.check("digits-relu-mlp").verdict == verdict


def test_an_unclaimed_constant_cannot_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    card = replace(zoo.card("wine-selu"), claim=None)
    monkeypatch.setattr(claims.zoo, "card", lambda name: card)
    with pytest.raises(UsageError, match="claims no constant"):
        claims.check("wine-selu")


@pytest.mark.parametrize(("name", "code"), [("digits-aol", 0), ("digits-sll-broken", 3), ("absent", 2)])
def test_zoo_check_ends_with_the_exit_code_of_a_gate(name: str, code: int) -> None:
    done = lipverify("zoo", "check", name, "--json")
    assert done.returncode == code
    if code == 2:
        return
    (row,) = json.loads(done.stdout)["networks"]
    assert row["name"] == name
    assert row["verdict"] == ("confirmed" if code == 0 else "refuted")
