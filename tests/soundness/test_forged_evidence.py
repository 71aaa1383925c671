"""No change of a valid proof makes the kernel say anything false."""

from __future__ import annotations

import ast
from fnmatch import fnmatch
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipverify.checkers import theories
from lipverify.checkers.kernel import parse_steps, prove
from lipverify.checkers.kernel.proof import every_kind
from lipverify.checkers.kernel.theorems import Known
from lipverify.checkers.kernel.theories import THEORIES
from lipverify.checkers.theories import radii
from lipverify.errors import RefutedCertificate, UnreadableCertificate
from tests.soundness.forged import Truth, cases, hunt
from tests.soundness.planted import PLANTED, bump, derivatives, module_of, planted
from tests.tiers import tier
from tests.unit.checkers.kernel.programs import ball

COUNT = tier(160, 20_000)


def test_the_valid_proofs_have_every_kind_of_step_and_say_what_is_true() -> None:
    kinds = set()
    for case in cases():
        kinds |= {step["step"] for step in case.document}
        truth = Truth(case, np.random.default_rng(1))
        facts = prove(parse_steps(case.document, case.arrays, truth.subject), truth.subject)
        assert all(truth.holds(fact) for fact in facts if fact is not None and not hasattr(fact, "ranges"))
    assert kinds == set(every_kind())


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
    where = module_of(module)
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


def test_an_empty_part_that_is_believed_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steep half of a ball is said to be empty, so that the flat half alone carries a constant of 0.1 for one of 100."""
    case = planted(bump(), ball(np.array([0.0]), 1.0))
    steep, flat = (case.ranges(0, [-1, 0, (0.75).hex(), side]) for side in ("below", "above"))
    void = case.add("empty", ranges=steep, weights=[(1.0).hex()])
    case.add("cover", above=derivatives(case, flat, [0, 1], 0.1), below=void)
    truth = Truth(case, np.random.default_rng(0))

    def proved() -> list[Any]:
        return prove(parse_steps(case.document, case.arrays, truth.subject), truth.subject)

    with pytest.raises(RefutedCertificate, match="a part that is not shown to be empty"):
        proved()
    monkeypatch.setattr(radii, "largest_where", lambda *_: Fraction(-1))
    void_fact, constant = proved()[void], proved()[-1]
    assert void_fact is not None
    assert constant is not None
    assert not truth.holds(void_fact)
    assert not truth.holds(constant)


BACKED = {
    "two gains of one step": "each of them is proved by itself, and the last one is taken",
    "a chain of other steps than affine ones": "ends in an error: other steps have no matrix",
    "another step than an implicit layer": "ends in an error: other steps have no recurrent matrix",
    "a step that another one does not stand for": "a program decides it, evidence does not; test_elementary has the programs",
    "a gain that is not used": "what is proved does not matter less",
    "exact checking covers no ranges": "the proof holds in floating point all the same",
    "exact checking covers chains whose matrices are stored as they are": "as above",
    "a number twice in a list": "rows that follow each other, radii that grow and steps that follow have no two alike",
    "a number in another form, or not finite": "ends in an error where it is not finite: fractions have no infinity",
    "a number is not hexadecimal": "ends in an error: nothing else is text of a number",
    "a pair of layers": "whatever the pairs are, a change is the difference of what they give; or ends in an error",
    "a pair of layers that are no scalar functions of as many numbers": "ends in an error: they do not fit together",
    "a list of neurons": "ends in an error: no neurons, or no list, fit no layer",
    "a sign": "other signs make weaker statements, or end in an error",
    "rows": "no rows, or the difference of a row with itself, say nothing",
    "an array with other numbers": "`multipliers_hold` looks at all of them again",
    "an array of another type or shape": "ends in an error: arrays of other shapes do not fit together",
    "slopes that contradict each other": "they do not hold the known ones either",
    "a step that is not behind the output": "ends in an error: it has no place among the elementary steps",
    "constants of other balls": "ends in an error: as many constants as balls are followed",
    "norms of tokens": "ends in an error: nothing else has a width", "a bound of tokens": "ends in an error",
    "two norms": "ends in an error", "a list": "ends in an error", "a condition": "ends in an error",
    "exact checking covers no frequencies": "the proof holds in floating point all the same",
    "an image of another size": "maps differ between its positions; without maps, entries in another order, of no smaller norm",
    "a torus of other axes": "ends in an error",
    "multipliers of other channels than *": "ends in an error, or more than there are say nothing",
    "the multipliers of channels are not shown to be feasible": "ends in an error: there is no factor",
    "an axis of a torus": "ends in an error", "a torus": "ends in an error", "a scaling": "ends in an error",
    "a torus that is too small": "the cosine is below 0 there, and so is the limit",
    "a torus with too many frequencies": "a limit of work, not of truth",
    "a misfit region": "regions are the envelope's", "a region that is no ball": "regions are the envelope's",
}  # fmt: skip
"""Checks without a forgery that they alone refuse, and why there is none."""


def test_every_check_of_evidence_has_a_forgery_or_a_reason_for_having_none() -> None:
    planted = {words for _, words in PLANTED}
    folder = Path(str(theories.__file__)).parent
    files = [file.relative_to(folder.parent).with_suffix("") for file in sorted(folder.rglob("*.py"))]
    beyond = [".".join(file.parts).removesuffix(".__init__") for file in files]
    assert {f"theories.{name}" for name in THEORIES} <= set(beyond)
    for module in ("theorems", "language", "elementary", "gains", *beyond):
        file = Path(str(module_of(module).__file__))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if name in ("need", "shown"):
                said = node.args[1]
                parts = said.values if isinstance(said, ast.JoinedStr) else [said]
                words = "".join(p.value if isinstance(p, ast.Constant) else "*" for p in parts)
                assert words in BACKED or any(fnmatch(words, p) for p in planted), (module, words)
