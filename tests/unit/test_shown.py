"""Every public object shows itself in a line, never by its arrays; numbers are rounded to the safe side."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify.falsify import Search
from lipverify.ir.shown import at_least, at_most

LINE, PAGE = 600, 6000


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """One object of every public class, of a network whose weights would print thousands of characters."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 3)).eval()
    x = torch.zeros(3, 40)
    graph = lv.extract(module, x)
    ball, box = lv.Ball(x, 0.1, box=(-1, 1)), lv.InputBox((40,), -1, 1)
    audit = lv.audit(graph, region=ball, analyzers="product,local", search=Search(seconds=0.05))
    return {
        "Audit": audit,
        "Row": audit.rows[0],
        "Lower": audit.lower,
        "Certificate": audit.certificates["product"],
        "Witness": audit.lower.witness,
        "Query": audit.query,
        "Graph": graph,
        "Node": graph.nodes[1],
        "Ball": ball,
        "InputBox": box,
        "Everywhere": lv.Everywhere(),
        "Bounded": lv.Bounded(1.0),
        "Norm": lv.Norm.L2,
        "Rigour": lv.Rigour.REAL,
        "Bounds": lv.bounds(graph, ball),
        "Radii": lv.radii(graph, x, method="crown", proofs=False),
        "Comparison": lv.compare([graph, graph], analyzers="product", budget=8),
        "Monotonicity": lv.monotone(graph, (0, 1), [0, 1], output=0, budget=1),
        "Deviation": lv.Deviation(graph, graph, box, x=x),
        "Answer": lv.deviation(graph, graph, box, budget=1),
        "Convexity": lv.convex(graph, outputs=[0]),
        "Derived": lv.sensitivity(graph, 1.0).total,
        "ExecutionError": lv.execution_error(graph, (-1, 1)),
    }


def test_there_is_an_object_of_every_public_class(objects: dict[str, Any]) -> None:
    classes = {
        name
        for name in lv.__all__
        if isinstance(kind := getattr(lv, name), type) and not issubclass(kind, Exception)
    }
    assert classes <= set(objects)
    assert all(isinstance(objects[name], getattr(lv, name)) for name in classes)


def test_every_one_is_a_line_in_a_console_and_short_in_a_notebook(objects: dict[str, Any]) -> None:
    for name, one in objects.items():
        line, text = repr(one), str(one)
        assert len(line) <= LINE, name
        assert "tensor(" not in line + text, name
        assert "\n" not in line, name
        assert len(text) <= PAGE, name
        html = getattr(one, "_repr_html_", lambda: "")()
        assert html.startswith("<iframe") or len(html) <= PAGE, name


def test_an_audit_prints_its_table(objects: dict[str, Any]) -> None:
    text = str(objects["Audit"])
    assert "product" in text
    assert "local" in text
    assert "at least" in text


def test_summaries_have_a_line_for_every_node(objects: dict[str, Any]) -> None:
    graph = objects["Graph"]
    lines = graph.summary().splitlines()
    assert len(lines) == 2 + len(graph.nodes)
    assert "2,460" in lines[3]


@pytest.mark.parametrize("value", [1 / 3, 2 / 3, 1e-310, 123456.789, 0.0, 1e300, 2.0, 1234567.5])
def test_figures_are_rounded_outward(value: float) -> None:
    up, down = (Decimal(said.split()[-1]) for said in (at_most(value), at_least(value)))
    assert down <= Decimal(value) <= up
    assert (up - down) <= abs(Decimal(value)) * Decimal("1.1e-5")


def test_without_any_bound_upper_says_every_reason() -> None:
    class Product(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :2] * x[:, 2:]

    found = lv.audit(
        Product().eval(), example=torch.zeros(2, 4), analyzers="product,local", search=Search(seconds=0.05)
    )
    assert found.best is None
    with pytest.raises(lv.UnsupportedModel, match=r"product: .*; local: needs a ball"):
        _ = found.upper
    undecided = replace(found, rows=tuple(replace(row, undecided=True) for row in found.rows))
    with pytest.raises(lv.Undecided):
        _ = undecided.upper


def test_the_best_bound_is_upper(objects: dict[str, Any]) -> None:
    audit = objects["Audit"]
    assert torch.equal(audit.upper, audit.best.upper)


def test_a_comparison_names_what_it_does_not_have(objects: dict[str, Any]) -> None:
    found = objects["Comparison"]
    assert list(found.models) == ["model 1", "model 2"]
    assert found.upper("model 1", "product") == found.upper("model 2", "product")
    with pytest.raises(lv.UsageError, match='did you mean "product"'):
        found.upper("model 1", "produkt")
    with pytest.raises(lv.UsageError, match="no model"):
        found.upper("other", "product")
