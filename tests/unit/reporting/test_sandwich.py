"""The figure of lower and upper bounds: places are right, and no two labels share one, at any width."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipverify.reporting.answers import read
from lipverify.reporting.axis import LogAxis
from lipverify.reporting.html import render_audit
from lipverify.reporting.sandwich import sandwich, sandwich_of_centres
from tests.unit.reporting import documents
from tests.unit.reporting.pages import overlaps, parse, text_boxes

WIDTHS = (300.0, 328.0, 500.0, 848.0, 1400.0)
FIGURES = {
    "one": documents.of_bounds([9.72], 4.88),
    "twelve": documents.of_bounds([1.3 * 1.35**i for i in range(11)] + [1e20], 1.0),
    "nearly exact": documents.of_bounds([1.0000001], 1.0),
    "far": documents.of_bounds([1e20], 1.0),
    "extreme": documents.extreme(),
    "zero": documents.of_bounds([0.0], 0.0),
    "no lower bound": documents.of_bounds([3.0, 4.0], None),
    "beyond float64": documents.of_bounds([], 0.5, [12345.6, 12345.7]),
    "denormal": documents.of_bounds([5e-324, 1.7e308], 5e-324),
    "mlp": documents.mlp(),
    "long names": documents.document(
        documents.chain([4, 3, 2]),
        [documents.bound("analyzer-" * 12 + str(i), 1.25e-300) for i in range(2)],
        1e-300,
    ),
    "local": documents.local(20),
    "many centres": documents.local(120),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", FIGURES)
def test_labels_do_not_meet(name: str, width: float) -> None:
    svg = parse(render_audit(FIGURES[name])).all("svg", "plot")[0]
    boxes = text_boxes(svg, width)
    assert len(boxes) >= 2
    assert overlaps(boxes) == []
    height = float(svg.attributes["height"])
    for left, top, right, bottom, text in boxes:
        assert 0 <= left < right <= width, text
        assert 0 <= top < bottom <= height, text


logarithms = st.one_of(st.none(), st.floats(-320, 320), st.floats(-3, 5), st.floats(300, 1e15))


@given(st.lists(logarithms, min_size=1, max_size=12))
@settings(max_examples=300)
def test_every_axis_has_numbers_in_order_that_lie_where_they_say(positions: list[float | None]) -> None:
    axis = LogAxis.around(positions)
    places = [axis.at(position) for position in positions]
    assert all(0 < place < 100 for place in places)
    for a, first in zip(positions, places, strict=True):
        for b, second in zip(positions, places, strict=True):
            if a is None or (b is not None and a <= b):
                assert first <= second
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 8
    assert [tick.at for tick in ticks] == sorted({tick.at for tick in ticks})


@pytest.mark.parametrize(("low", "high"), [(4.88, 9.72), (1e-3, 1e5), (25.0, 148.0), (123456.0, 123457.0)])
def test_ticks_stand_at_their_numbers(low: float, high: float) -> None:
    axis = LogAxis.around([math.log10(low), math.log10(high)])
    for tick in axis.ticks():
        assert tick.at == pytest.approx(axis.at(math.log10(float(tick.text))), abs=1e-3)


def test_bars_run_from_the_lower_to_the_upper_bound() -> None:
    answers = read(documents.mlp())
    plot = sandwich(answers)
    assert plot is not None
    assert plot.lower is not None
    assert [track.kind for track in plot.tracks] == ["best", "other"]
    for track in plot.tracks:
        assert track.start == plot.lower < track.end
    # Logarithmic: equal ratios are equal lengths.
    lengths = [track.end - track.start for track in plot.tracks]
    ratios = [answer.largest.order - math.log10(4.88) for answer in answers.answers]
    assert lengths[0] / lengths[1] == pytest.approx(ratios[0] / ratios[1], rel=1e-3)


def test_each_centre_has_its_own_bar() -> None:
    answers = read(documents.local(7))
    plot = sandwich_of_centres(answers, 50)
    assert plot is not None
    assert len(plot.tracks) == 7
    for track in plot.tracks:
        assert track.lower == track.start < track.end <= min(track.others)


def test_without_a_bound_there_is_no_figure() -> None:
    assert sandwich(read(documents.refused())) is None
