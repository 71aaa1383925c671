"""docs/derived.md says what each function proves, and which test holds each golden number."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lipverify as lv
from lipverify import derived, ops
from lipverify.checkers import closed_forms, derivations
from lipverify.derived.networks import audited
from lipverify.errors import RefutedCertificate, UnreadableCertificate
from lipverify.ir.certificate import Rigour
from lipverify.results import Audit
from tests.networks import chain

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/derived.md").read_text(encoding="utf-8")
SHIFTED = [[0.9, 0.1], [0.0, 0.8]], [[0.0], [0.1]]
POINTS = torch.eye(2, dtype=torch.float64)


def table(head: str) -> list[list[str]]:
    """Cells of the rows below a head."""
    lines = PAGE[PAGE.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


FUNCTIONS = table("| function |")
GOLDEN = table("| number |")


def network(*rows: tuple[float, ...]) -> lv.Graph:
    return chain([0.1 * torch.eye(len(rows[0])), torch.tensor(rows)], ops.Tanh()).to(dtype=torch.float64)


def known() -> Audit:
    return audited(network((0.25, 0.5)), ["product"])


def game() -> derived.Derived:
    saddle = chain([torch.tensor([[1.0, 0.25], [-0.25, 1.0]])]).to(dtype=torch.float64)
    return derived.game(*derived.pseudo_gradient(saddle, [1, 1]))


CHECKED: dict[str, Callable[[], derived.Derived]] = {
    "closed_loop": lambda: derived.closed_loop(known(), *SHIFTED),
    'closed_loop(by="sector")': lambda: derived.closed_loop(
        network((0.25, 0.5)), *SHIFTED, radius=0.2, by="sector"
    ),
    "disturbed": lambda: derived.disturbed(0.5, known(), 0.1),
    "game": game,
    "game_step": lambda: derived.game_step(game(), [1.0, 1.0], [[0.0, known()], [known(), 0.0]]),
    "sensitivity": lambda: derived.sensitivity(network((0.25, 0.5)), 1.0).total,
    "recurrent": lambda: derived.recurrent(known(), 0.5, 3, of="sequence"),
    "stability_tail": lambda: derived.stability_tail(100, 0.1, known(), known(), deviation=0.1),
    "critic_distance": lambda: derived.critic_distance(network((0.25, 0.5)), POINTS, POINTS + 1.0, known()),
    "neighbour_slope": lambda: derived.neighbour_slope(network((0.25, 0.5)), POINTS, known()),
    "generator_tail": lambda: derived.generator_tail(known(), 1.0),
    "q_constant": lambda: derived.q_constant(1.0, known(), 0.9),
    "value_error": lambda: derived.value_error(0.9, known(), 0.1),
    "grid_margin": lambda: derived.grid_margin(known(), 0.1, 2),
}
PARTS = {"pseudo_gradient": "game", "sector": 'closed_loop(by="sector")'}
"""Functions that give what goes into another."""


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_function_has_a_row_that_says_its_rigour() -> None:
    rows = {name: row for row in FUNCTIONS for name in named(row[0])}
    public = set(derived.__all__) - {"Derived", "Sensitivity", "verify_derived"}
    assert {name.partition("(")[0] for name in rows} == public
    checked = {name for name, row in rows.items() if row[3].startswith("checked")}
    assert checked == CHECKED.keys() | PARTS.keys()
    assert all("float" in row[3] for name, row in rows.items() if name not in checked)


@pytest.mark.parametrize("name", CHECKED)
def test_what_the_page_calls_checked_is_proved_of_networks(name: str) -> None:
    found = CHECKED[name]()
    assert found.rigour is Rigour.CHECKED
    assert found.certificates
    assert all(certificate.rigour is Rigour.CHECKED for certificate in found.certificates.values())
    assert derived.verify_derived(found).value == found.value


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row[0][:40])
def test_every_golden_number_stands_in_its_test(row: list[str]) -> None:
    file, _, function = named(row[3])[0].partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    (test,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    stored = [
        float(node.value)
        for node in ast.walk(test)
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    ]
    numbers = [float(found) for found in re.findall(r"(?<![\w.])\d*\.\d+(?:e-?\d+)?", row[0])]
    assert numbers
    assert [x for x in numbers if not any(math.isclose(x, y, rel_tol=1e-12) for y in stored)] == []


def places(found: Any, key: str, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a key stands, at any depth."""
    items = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    return [at for k, v in items for at in ([(*path, k)] if k == key else []) + places(v, key, (*path, k))]


@pytest.mark.parametrize("name", CHECKED)
def test_constants_below_their_certificates_are_refused(name: str, tmp_path: Path) -> None:
    """The rule's value for the smaller number, and its sentence, are written beside it; keys twice are unreadable."""
    found = CHECKED[name]()
    found.save(tmp_path / "a.json")
    text, models = (tmp_path / "a.json").read_text(), list(found.graphs.values())
    at = places(json.loads(text)["numbers"], "upper_hex")
    assert at
    for path in at:
        document = json.loads(text)
        place = document["numbers"]
        for key in path[:-1]:
            place = place[key]
        place["upper_hex"] = (float.fromhex(place["upper_hex"]) * (1.0 - 1e-6)).hex()
        if place["upper_hex"] == (0.0).hex():
            continue
        read, _ = derivations.parse(document)
        value = closed_forms.bound(found.rule, read.value())
        document |= {
            "value": value,
            "value_hex": value.hex(),
            "statement": read.statement(value, read.points()),
        }
        (tmp_path / "a.json").write_text(json.dumps(document))
        with pytest.raises((RefutedCertificate, UnreadableCertificate), match=r"more than|computed|shown"):
            derived.verify_derived(tmp_path / "a.json", models)
    (tmp_path / "a.json").write_text(text.replace('"value":', f'"value": {found.value * 2}, "value":', 1))
    with pytest.raises(UnreadableCertificate):
        derived.verify_derived(tmp_path / "a.json", models)
