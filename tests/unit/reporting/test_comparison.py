"""The report of a comparison as a file, and its summary at a terminal."""

from __future__ import annotations

import copy
import io
import math
import re

import pytest

from lipverify.errors import InternalError
from lipverify.reporting import pareto
from lipverify.reporting.accuracy import accuracy
from lipverify.reporting.comparison import print_comparison, render_comparison
from tests.unit.reporting import comparisons
from tests.unit.reporting.pages import overlaps, parse, text_boxes

DOCUMENTS = comparisons.DOCUMENTS


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_page_is_whole_inert_and_offline(name: str) -> None:
    text = render_comparison(DOCUMENTS[name])
    page = parse(text)
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("img")
    assert "http" not in re.sub(r"http-equiv", "", text)
    identities = [e.attributes["id"] for e in page.elements() if "id" in e.attributes]
    assert len(identities) == len(set(identities)) or identities.count("tip") == 0
    targets = {a.attributes["href"] for a in page.all("a") if a.attributes["href"].startswith("#")}
    assert {target[1:] for target in targets} <= set(identities)
    for plot in page.all("svg", "plot"):
        assert not overlaps(text_boxes(plot, 330.0))


def test_names_from_files_are_shown_and_never_run() -> None:
    page = parse(render_comparison(DOCUMENTS["hostile"]))
    assert "<script>alert(1)</script>" in page.whole_text()
    for element in page.elements():
        assert not any("alert" in value or "onerror" in value for value in element.attributes.values())


def test_every_bound_stands_in_the_table_and_the_smallest_is_marked() -> None:
    page = parse(render_comparison(DOCUMENTS["two"]))
    rows = page.all("table", "matrix")[0].all("tr")[1:]
    assert [row.all("th")[0].text for row in rows] == ["net.onnx", "residual.onnx"]
    best = [[cell.all("span", "value")[0].whole_text() for cell in row.all("td", "best")] for row in rows]
    assert [len(cells) for cells in best] == [1, 1]
    assert "9.72" in best[0][0]
    assert len(rows[0].all("td", "no")) == 1


def test_reasons_and_missing_models_are_named() -> None:
    text = parse(render_comparison(DOCUMENTS["two"])).whole_text()
    assert "needs a ball: give --data and --radius" in text
    assert "missing.onnx" in text
    assert "no such file" in text


def test_notes_of_rows_and_the_part_that_was_asked_about_are_shown() -> None:
    """A bound that the budget cut short says so in a comparison too, once for all models of which it is true."""
    document = copy.deepcopy(DOCUMENTS["two"])
    audits = [m["audits"][0] for m in document["models"] if "audits" in m]
    given = [row for audit in audits for row in audit["results"] if "refused" not in row]
    for row in given[:2]:
        row["notes"] = ["ended <early>"]
    document["queries"][0]["of"] = "entry 3 minus entry 5 of the output"
    file = io.StringIO()
    print_comparison(document, file)
    for text in (parse(render_comparison(document)).whole_text(), file.getvalue()):
        assert text.count("ended <early>") == 1
        assert "entry 3 minus entry 5 of the output, l" in " ".join(text.split())
    assert "Notes" not in parse(render_comparison(DOCUMENTS["two"])).whole_text()


def test_an_impossible_pair_of_bounds_is_never_shown() -> None:
    broken = copy.deepcopy(DOCUMENTS["two"])
    broken["models"][0]["audits"][0]["lower"]["value"] = 1e6
    with pytest.raises(InternalError):
        render_comparison(broken)


def test_the_front_is_what_nobody_beats() -> None:
    samples = {
        "slow": (9.0, 0.1),
        "fast": (0.1, 0.9),
        "beaten": (10.0, 0.2),
        "middle": (1.0, 0.5),
        "equal": (1.0, 0.5),
    }
    found = pareto.front({name: pareto.Sample(*pair) for name, pair in samples.items()})
    assert found == ["fast", "middle", "slow"]


def test_marks_stand_where_their_numbers_are() -> None:
    plot = pareto.pareto({"a": [pareto.Sample(1.0, 0.0)], "b": [pareto.Sample(100.0, 2.0)]})
    assert plot is not None
    left, right = plot.marks
    assert left.x < right.x
    assert left.y > right.y  # tighter is lower
    assert next(tick.text for tick in plot.vertical) == "1"
    assert [line.y1 for line in plot.front] == []
    assert pareto.pareto({"a": []}) is None


def test_where_nothing_is_the_best_that_could_be_small_numbers_have_room() -> None:
    plot = pareto.pareto({"a": [pareto.Sample(1e3, -5.0)], "b": [pareto.Sample(1e4, -7.0)]}, least=None)
    assert plot is not None
    left, right = plot.marks
    assert left.x < right.x
    assert left.y < right.y
    assert len(plot.front) == 2
    assert not any(tick.text == "1" for tick in plot.vertical)


def test_curves_are_steps_that_never_promise_more_than_the_next_point() -> None:
    figure = accuracy([comparisons.curve("a", [0.9, 0.5, 0.1])])
    assert figure.curves[0].path.startswith("M0.000 10.000V50.000H50.000V90.000H100.000")
    with pytest.raises(InternalError):
        accuracy([comparisons.curve("a", [0.5, 0.9])])
    with pytest.raises(InternalError):
        accuracy([comparisons.curve("a", [math.nan])])


def test_curves_of_attacks_fall_at_the_next_point_and_stay_above() -> None:
    curve = comparisons.curve("a", [0.9, 0.5, 0.1])
    figure = accuracy([{**curve, "attack_accuracy": [0.9, 0.9, 0.5]}])
    assert figure.curves[0].attacked == "M0.000 10.000H50.000H100.000V50.000"
    with pytest.raises(InternalError, match="resist"):
        accuracy([{**curve, "attack_accuracy": [0.9, 0.4, 0.1]}])


def test_the_terminal_shows_every_model_and_reason() -> None:
    file = io.StringIO()
    print_comparison(DOCUMENTS["two"], file)
    text = file.getvalue()
    for word in ("net.onnx", "residual.onnx", "9.72", "missing.onnx could not be read", "needs a ball"):
        assert word in text.replace("\n", " "), word
