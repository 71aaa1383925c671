"""No change of a valid proof makes the kernel say anything false."""

from __future__ import annotations

import os

import numpy as np

from lipverify.checkers.kernel import parse_steps, prove
from lipverify.checkers.kernel.proof import FIELDS
from tests.soundness.forged import Truth, cases, hunt

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
