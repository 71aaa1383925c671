"""Proofs of every kind of step on small programs, and what their fields may not be."""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import numpy as np
import pytest

from lipverify.checkers import kernel
from lipverify.checkers.kernel import Constant, Subject, parse_steps, prove
from lipverify.checkers.kernel.program import Affine
from lipverify.checkers.kernel.proof import FIELDS
from lipverify.errors import RefutedCertificate, UnreadableCertificate
from tests.unit.checkers.kernel.programs import ball, mlp

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
    assert page() == {kind: set(fields) for kind, fields in FIELDS.items()}


def test_the_page_is_two_pages_at_most() -> None:
    text = (Path(__file__).parents[4] / "docs" / "proof-format.md").read_text(encoding="utf-8")
    assert len(text.split()) < 1540


def test_the_kernel_imports_nothing_but_numpy_and_itself() -> None:
    folder = Path(kernel.__file__).parent
    # A deadline ends work and changes no number.
    own = {"lipverify.errors", "lipverify.deadline", "lipverify.checkers.kernel"}
    allowed = own | {"numpy", "numpy.typing"}
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                known = name in allowed or str(name).startswith("lipverify.checkers.kernel.")
                assert known or str(name).split(".")[0] in sys.stdlib_module_names, (file.name, name)


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


def lines_of_code(file: Path) -> int:
    """Lines that hold code: no comments, docstrings or blank lines."""
    source = file.read_text(encoding="utf-8")
    texts = set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            texts |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    idle = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in idle]
    return len({n for t in tokens for n in range(t.start[0], t.end[0] + 1)} - texts)


def test_the_kernel_stays_as_small_as_it_is() -> None:
    """All of it is trusted; exact integers are a tier of their own, and an account of resources proves nothing."""
    files = [f for f in Path(kernel.__file__).parent.glob("*.py") if f.name not in ("exact.py", "account.py")]
    assert sum(map(lines_of_code, files)) <= 3793
