"""Reading an audit document: order, best row, ratios, and what is refused as no answer."""

from __future__ import annotations

import pytest

from lipverify.errors import InternalError
from lipverify.reporting.answers import read
from lipverify.reporting.format import Magnitude
from tests.unit.reporting import documents


def test_answers_come_tightest_first_and_refusals_apart() -> None:
    answers = read(documents.mlp())
    assert [answer.analyzer for answer in answers.answers] == ["lipsdp", "product"]
    assert [refusal.analyzer for refusal in answers.refusals] == ["local"]
    assert answers.best is answers.answers[0]
    assert answers.lower == 4.88
    assert not answers.local


def test_one_bound_beyond_float64_holds_at_every_centre() -> None:
    document = documents.local(3)
    document["results"][1] = documents.bound("product", None, log10_upper=400.5)
    answer = read(document).answers[-1]
    assert answer.uppers == (Magnitude(log10=400.5),) * 3


def test_ratios_are_sorted_and_leave_out_centres_without_one() -> None:
    region = {"kind": "ball", "norm": "l2", "radius": 1.0, "count": 4}
    row = documents.bound("local", [6.0, 2.0, 5.0, 0.0])
    answers = read(documents.document(documents.chain([2, 2]), [row], [2.0, 1.0, 0.0, 0.0], region))
    assert answers.ratios(answers.answers[0]) == ["1", "2", "3"]


@pytest.mark.parametrize(
    "rows",
    [
        [documents.bound("a", 4.0)],
        [documents.bound("a", 6.0), documents.bound("b", None, log10_upper=0.5)],
    ],
)
def test_a_bound_below_the_witness_is_refused(rows: list[documents.Document]) -> None:
    with pytest.raises(InternalError, match="exceeds"):
        read(documents.document(documents.chain([2, 2]), rows, 5.0))


def test_each_centre_is_compared_with_its_own_witness() -> None:
    region = {"kind": "ball", "norm": "l2", "radius": 1.0, "count": 2}
    nodes = documents.chain([2, 2])
    read(documents.document(nodes, [documents.bound("a", [1.0, 9.0])], [0.5, 8.0], region))
    with pytest.raises(InternalError, match="exceeds"):
        read(documents.document(nodes, [documents.bound("a", [9.0, 1.0])], [0.5, 8.0], region))
