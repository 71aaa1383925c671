"""Proofs of every kind of step on small programs, and what their fields may not be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lipverify.checkers import kernel, theories
from lipverify.checkers.kernel import Constant, Subject, parse_steps, prove
from lipverify.checkers.kernel.program import Affine
from lipverify.checkers.kernel.proof import every_kind, fields_of, theorem_of
from lipverify.checkers.kernel.theorems import theorem
from lipverify.checkers.kernel.theories import THEORIES, opened
from lipverify.errors import RefutedCertificate, UnreadableCertificate
from tests.unit.checkers.kernel.programs import ball, mlp

CORE = 2549
"""Lines of code of the core."""
ALL = {"start": 0, "end": 5}


def test_a_product_of_gains_is_proved_and_no_less(rng: np.random.Generator) -> None:
    program = mlp(rng, (3, 6, 6, 2))
    norms = [
        float(np.linalg.norm(s.kernel[0], 2)) * (1 + 1e-9) for s in program.steps if isinstance(s, Affine)
    ]
    gains = [
        {"step": "gain", "chain": [k], "torus": None, "limit": n.hex()}
        for k, n in zip((1, 3, 5), norms, strict=True)
    ]
    for slack in (1e-12, -1e-12):
        limit = float(np.prod(norms)) * (1 + slack)
        last = ALL | {"step": "product", "gains": [0, 1, 2], "norms": ["l2", "l2"], "limit": limit.hex()}
        steps = parse_steps([*gains, last], {}, Subject(program))
        if slack < 0:
            with pytest.raises(RefutedCertificate, match="prove"):
                prove(steps, Subject(program))
        else:
            fact = prove(steps, Subject(program))[-1]
            assert isinstance(fact, Constant)
            assert float(fact.limit) == limit


def test_derivatives_over_a_ball() -> None:
    program = mlp(np.random.default_rng(0), (3, 6, 6, 2))
    subject = Subject(program, [ball(np.zeros(3), 0.1)])
    ranges = {"step": "ranges", "region": 0, "conditions": []}
    claim = ALL | {"step": "jacobian", "ranges": 0, "rows": [0, 2], "norms": ["linf", "linf"]}
    for limit, holds in ((100.0, True), (1e-3, False)):
        steps = parse_steps([ranges, claim | {"limit": limit.hex()}], {}, subject)
        if not holds:
            with pytest.raises(RefutedCertificate, match="derivatives"):
                prove(steps, subject)
        else:
            assert isinstance(prove(steps, subject)[-1], Constant)


def page() -> dict[str, set[str]]:
    """Steps of docs/proof-format.md and their fields."""
    text = (Path(__file__).parents[4] / "docs" / "proof-format.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.split("**Steps.**")[1].splitlines() if line.startswith("| `")]
    return {row[1].strip(" `"): set(re.findall(r"`([a-z]+)`", row[2])) for row in rows}


def test_the_page_and_the_code_know_the_same_steps_and_fields() -> None:
    assert page() == {kind: set(fields_of(kind)) for kind in every_kind()}


def test_the_page_is_two_pages_at_most() -> None:
    text = (Path(__file__).parents[4] / "docs" / "proof-format.md").read_text(encoding="utf-8")
    assert len(text.split()) < 1540


@pytest.mark.parametrize("part", [kernel, theories], ids=["kernel", "theories"])
def test_what_is_trusted_imports_numpy_itself_and_never_a_theory_from_the_core(part: ModuleType) -> None:
    folder = Path(str(part.__file__)).parent
    # A deadline ends work and changes no number; norms of tokens are words of claims.
    own = {"lipverify.errors", "lipverify.deadline", "lipverify.checkers.kernel", "numpy", "numpy.typing"}
    for file in folder.rglob("*.py"):
        rooms = ["lipverify.checkers.kernel"]
        if part is theories:
            home = file.relative_to(folder).parts[0].removesuffix(".py")
            rooms += ["lipverify.checkers.norms", f"lipverify.checkers.theories.{home}"]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in map(str, names):
                known = name in own or any(f"{name}.".startswith(f"{room}.") for room in rooms)
                assert known or name.split(".")[0] in sys.stdlib_module_names, (file.name, name)


@pytest.mark.parametrize("change", [
    {"limit": "nan"}, {"limit": (-1.0).hex()}, {"limit": "-0x0.0p+0"}, {"limit": 2.0}, {"limit": "0x1p+0"}, {"chain": [-1]},
    {"chain": [True]}, {"chain": [1, 1]}, {"chain": [9]}, {"chain": []}, {"chain": [2]}, {"torus": [[0, 0]]}, {"torus": [[4, 2]]},
    {"step": "lemma"}, {"step": ["gain"]}, {"note": 1},
], ids=str)  # fmt: skip
def test_fields_are_what_they_have_to_be(change: dict[str, object]) -> None:
    subject = Subject(mlp(np.random.default_rng(0), (3, 4, 2)))
    with pytest.raises(UnreadableCertificate):
        prove(
            parse_steps(
                [{"step": "gain", "chain": [1], "torus": None, "limit": (9.0).hex()} | change], {}, subject
            ),
            subject,
        )


def test_the_core_stays_as_small_as_it_is() -> None:
    """docs/generate.py counts, and its own test holds the page to the code."""
    text = (Path(__file__).parents[4] / "docs" / "soundness.md").read_text(encoding="utf-8")
    (core,) = re.findall(r"^\| core .*\| (\d+) \|$", text, re.MULTILINE)
    assert int(core) <= CORE


def test_the_page_says_which_steps_belong_to_which_theory() -> None:
    text = (Path(__file__).parents[4] / "docs" / "proof-format.md").read_text(encoding="utf-8")
    part = text.split("**Theories**")[1].split(" used. ")[1].split("\n\n")[0].replace("\n", " ")
    said = [re.findall("`([a-z]+)`", entry) for entry in part.split(";")]
    assert {name: tuple(steps) for name, *steps in said} == THEORIES


def test_a_proof_of_the_core_loads_no_theory_and_one_of_a_theory_that_alone() -> None:
    code = """
import sys
import numpy as np
from lipverify.checkers.kernel import Subject, parse_steps, prove, rested_on
from lipverify.checkers.kernel.program import Affine, Input, Program, View
import lipverify.checkers
x = Input(View((), np.empty(0, np.int64)), 1)
double = Affine(View((0,), np.arange(1)), 1, np.full((1, 1, 1), 2.0), np.zeros((1, 1, 1), np.int64))
subject = Subject(Program((x, double)))
for step in ({"step": "gain", "chain": [1], "torus": None, "limit": (2.5).hex()}, {"step": "convex", "row": 0, "sign": 1}):
    steps = parse_steps([step], {}, subject)
    prove(steps, subject)
    print(*rested_on(steps), *(m for m in sys.modules if m.startswith("lipverify.checkers.theories.")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=True
    )
    assert done.stdout.splitlines() == ["", "signs lipverify.checkers.theories.signs"]


def test_a_theorem_is_at_home_where_the_table_says() -> None:
    def gain() -> None: ...

    def sign() -> None: ...

    for stranger in (gain, sign):
        with pytest.raises(ValueError, match="no step of"):
            theorem(stranger)
    for name, kinds in THEORIES.items():
        assert {theorem_of(kind).__module__ for kind in kinds} == {f"lipverify.checkers.theories.{name}"}
    with pytest.raises(ValueError, match="no theory"):
        opened("os")
