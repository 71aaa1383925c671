"""What a notebook shows: every result of a public verb has a form of its own, offline and escaped."""

from __future__ import annotations

import html
import re

import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify.reporting.notebook import framed


@pytest.fixture(scope="module")
def graph() -> lv.Graph:
    torch.manual_seed(0)
    return lv.extract(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.zeros(2, 3))


def test_audits_comparisons_and_radii_show_their_report(graph: lv.Graph) -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    labels = lv.evaluate(graph.to(dtype=torch.float64), x).argmax(1)
    for result in (
        lv.audit(graph, budget=1),
        lv.compare({"net <b>": graph}, analyzers=["product"], budget=30),
        lv.radii(graph, x, labels, method="crown", budget=5),
    ):
        shown = result._repr_html_()
        assert shown.startswith('<iframe srcdoc="')
        page = html.unescape(shown.split('srcdoc="')[1].split('" style')[0])
        assert page.startswith("<!DOCTYPE html>")
        assert not re.search("(src|href)=.?(https?:|//)", page)
        assert "<b>" not in page


def test_directions_show_a_page(graph: lv.Graph) -> None:
    found = lv.monotone(graph, (0.0, 1.0), [0, 2], output=1, names=["<a>", "b", "c"], budget=5)
    page = html.unescape(found._repr_html_().split('srcdoc="')[1].split('" style')[0])
    assert page.startswith("<!DOCTYPE html>")
    assert "&lt;a&gt;" in page
    assert page.count("<tr>") == 3
    assert all(str(finding.verdict) in page for finding in found.findings)


def test_texts_are_escaped() -> None:
    assert framed('"><script>').count('"') == 4
