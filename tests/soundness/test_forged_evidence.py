"""No change of a valid proof makes the kernel say anything false."""

from __future__ import annotations

import importlib
import os
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pytest

from lipverify.checkers.kernel import parse_steps, prove
from lipverify.checkers.kernel.proof import FIELDS
from lipverify.checkers.kernel.theorems import Known
from lipverify.errors import RefutedCertificate, UnreadableCertificate
from tests.soundness.forged import Truth, cases, hunt
from tests.soundness.planted import PLANTED

COUNT = 20_000 if os.environ.get("LIPVERIFY_SOUNDNESS") == "full" else 400


def test_the_valid_proofs_have_every_kind_of_step_and_say_what_is_true() -> None:
    kinds = set()
    for case in cases():
        kinds |= {step["step"] for step in case.document}
        truth = Truth(case, np.random.default_rng(1))
        facts = prove(parse_steps(case.document, case.arrays, truth.subject), truth.subject)
        assert all(truth.holds(fact) for fact in facts if fact is not None and not hasattr(fact, "ranges"))
    assert kinds == FIELDS.keys()


def test_no_forged_evidence_proves_anything_false() -> None:
    outcome = hunt(COUNT)
    assert outcome.tried == COUNT
    assert outcome.false == 0, outcome.example
    assert outcome.accepted < COUNT / 10


@pytest.mark.parametrize(("module", "words"), PLANTED, ids=str)
def test_without_any_one_check_a_forgery_is_believed(
    module: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or ends in an error: the kernel fails closed there, but not for its reason."""
    case = PLANTED[module, words]()
    truth = Truth(case, np.random.default_rng(0))

    def believed() -> list[Any]:
        steps = parse_steps(case.document, case.arrays, truth.subject)
        return [
            fact for fact in prove(steps, truth.subject) if fact is not None and not isinstance(fact, Known)
        ]

    with pytest.raises((RefutedCertificate, UnreadableCertificate)) as refused:
        believed()
    assert fnmatch(str(refused.value), words)
    where = importlib.import_module(f"lipverify.checkers.kernel.{module}")
    for name in ("need", "shown"):
        if hasattr(where, name):
            check = getattr(where, name)
            monkeypatch.setattr(
                where, name, lambda c, said, check=check: check(c or fnmatch(said, words), said)
            )
    try:
        facts = believed()
    except (RefutedCertificate, UnreadableCertificate):
        pytest.fail("another check refuses it too")
    except Exception:
        return
    assert not all(truth.holds(fact) for fact in facts)
