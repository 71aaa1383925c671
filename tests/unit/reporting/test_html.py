"""The report as a file: complete, offline, inert, and safe from the names in it."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest

from lipverify.errors import InternalError
from lipverify.reporting import radii
from lipverify.reporting.html import render_audit
from tests.unit.reporting import documents
from tests.unit.reporting.pages import Element, number, parse

DOCUMENTS = {
    "mlp": documents.mlp(),
    "residual": documents.residual_cnn(),
    "refused": documents.refused(),
    "local": documents.local(),
    "many centres": documents.local(120),
    "deep": documents.deep(),
    "extreme": documents.extreme(),
    "hostile": documents.hostile(),
    "no lower bound": documents.of_bounds([2.0], None),
}
SECTIONS = ["answer", "sandwich", "bounds", "refused", "spent", "model", "layers", "claim", "again"]
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
TAGS = {
    *(
        "html",
        "code",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "main",
        "section",
        "footer",
        "h1",
        "h2",
        "h3",
    ),
    *(
        "p",
        "a",
        "span",
        "div",
        "ul",
        "li",
        "dl",
        "dt",
        "dd",
        "pre",
        "details",
        "summary",
        "figure",
        "figcaption",
    ),
    *("table", "caption", "thead", "tbody", "tr", "th", "td"),
    *("svg", "g", "line", "rect", "path", "text", "defs", "marker"),
}


def section(page: Element, name: str) -> Element:
    return next(e for e in page.all("section") if e.attributes["id"] == name)


@pytest.fixture(params=DOCUMENTS)
def page(request: pytest.FixtureRequest) -> Element:
    return parse(render_audit(DOCUMENTS[request.param]))


def test_the_file_runs_nothing_and_loads_nothing(page: Element) -> None:
    policies = [
        e for e in page.all("meta") if e.attributes.get("http-equiv", "") == "Content-Security-Policy"
    ]
    assert [e.attributes["content"] for e in policies] == [POLICY]
    assert {e.tag for e in page.elements()} <= TAGS
    for element in page.elements():
        assert not [name for name in element.attributes if name.startswith("on") or name == "style"]
        assert not element.attributes.keys() & {"src", "srcset", "action", "data", "xlink:href"}
        address = element.attributes.get("href")
        if address is not None:
            assert re.fullmatch(r"#answer|witness\.npz|certificates/[a-z0-9-]+\.json", address)
    style = page.all("style")[0].text
    assert "url(" not in style
    assert "@import" not in style


def test_no_address_outside_the_file(page: Element) -> None:
    for element in page.elements():
        for value in element.attributes.values():
            assert "//" not in value
            assert ":" not in value or element.tag == "meta"


def test_every_section_has_a_heading_and_says_something(page: Element) -> None:
    names = [e.attributes["id"] for e in page.all("section")]
    assert [name for name in SECTIONS if name in names] == [name for name in names if name != "centres"]
    assert {*SECTIONS} - {*names} <= {"refused", "spent"}, "only what has nothing to say may be left out"
    for element in page.all("section"):
        heading = element.all("h2")[0]
        assert heading.attributes["id"] == element.attributes["aria-labelledby"]
        assert len(element.whole_text().split()) > len(heading.text.split())
    assert len(page.all("h1")) == 1


def test_tables_can_be_read_without_seeing_them(page: Element) -> None:
    for table in page.all("table"):
        assert table.all("caption")[0].text.strip()
        assert all(head.attributes.get("scope") in {"col", "row"} for head in table.all("th"))
        columns = len(table.all("thead")[0].all("th"))
        for row in table.all("tbody")[0].all("tr"):
            assert len(row.all("th")) + len(row.all("td")) == columns
    for svg in page.all("svg"):
        hidden = "aria-hidden" in svg.attributes or any(
            svg in cell.all("svg") for cell in page.all("td") if "aria-hidden" in cell.attributes
        )
        assert hidden or svg.attributes["aria-label"]
    identifiers = [e.attributes["id"] for e in page.elements() if "id" in e.attributes]
    assert len(set(identifiers)) == len(identifiers)
    # What scrolls can be reached by keyboard.
    assert all(
        e.attributes["tabindex"] == "0" and e.attributes["aria-label"] for e in page.all("div", "scroll")
    )


def test_nothing_reads_as_infinite_or_undefined(page: Element) -> None:
    for element in page.elements():
        words = re.findall(r"[A-Za-z]+", element.text)
        assert not {"inf", "Infinity", "nan", "NaN", "None", "Undefined"} & set(words)


def test_names_from_a_file_are_text_and_nothing_else() -> None:
    text = render_audit(DOCUMENTS["hostile"])
    page = parse(text)
    assert not page.all("script")
    assert not page.all("img")
    everything = page.whole_text()
    assert "<script>alert(1)</script>" in everything  # shown, not run
    assert "safe\\u202egnp.exe" in everything
    assert "{{ 7 * 7 }}" in everything
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x09\x0b-\x1f\x7f]", text)
    assert len(text) < 200_000  # a name of 100 000 letters is cut
    for element in page.elements():
        for name, value in element.attributes.items():
            assert "alert" not in value, name
            assert "owned" not in value, name
    assert "someone" not in text  # folders of the auditor's machine


def test_a_certificate_is_linked_only_under_its_own_name() -> None:
    links = [e.attributes["href"] for e in parse(render_audit(DOCUMENTS["mlp"])).all("a")]
    assert links == ["#answer", "witness.npz", "certificates/lipsdp.json", "certificates/product.json"]
    links = [e.attributes["href"] for e in parse(render_audit(DOCUMENTS["hostile"])).all("a")]
    assert links == ["#answer"]


def test_the_headline_answers_in_one_sentence() -> None:
    page = parse(render_audit(documents.of_bounds([9.75], 4.875)))
    assert page.all("p", "headline")[0].text == (
        "The output changes by at most 9.75 times the input change (l2 to l2, everywhere); at least 4.87 was found."
    )
    page = parse(render_audit(DOCUMENTS["refused"]))
    headline = page.all("p", "headline")[0].text
    assert headline.startswith(
        "No analyzer gave an upper bound (l2 to l2, everywhere); at least 13.5 was found"
    )


def test_the_table_holds_every_bound_tightest_first() -> None:
    table = section(parse(render_audit(DOCUMENTS["mlp"])), "bounds").all("table")[0]
    rows = [
        [row.all("th")[0].text.strip(), *(cell.text for cell in row.all("td"))] for row in table.all("tr")[1:]
    ]
    assert [row[0] for row in rows] == ["lipsdp", "product"]
    assert [row[3] for row in rows] == ["checked", "real"]
    assert [row[4] for row in rows] == ["21.0 s", "400 ms"]
    for row, result in zip(
        rows, (DOCUMENTS["mlp"]["results"][1], DOCUMENTS["mlp"]["results"][0]), strict=True
    ):
        assert 0 <= number(row[1]) - number(repr(result["upper"])) < 1e-3
        assert float(number(row[2])) == pytest.approx(result["upper"] / 4.88, rel=1e-5)


def test_refusals_carry_their_reason() -> None:
    text = section(parse(render_audit(DOCUMENTS["mlp"])), "refused").whole_text()
    assert "local" in text
    assert "needs a ball: give --data and --radius" in text


def test_the_model_is_identified() -> None:
    text = section(parse(render_audit(DOCUMENTS["mlp"])), "model").whole_text()
    for part in (
        "net.onnx",
        "9f2c" * 16,
        "07be" * 16,
        "784",
        "269,322",
        "3 Linear, 2 ReLU",
        "onnxruntime 1.31.1",
    ):
        assert part in text
    assert "differ by at most 3.1" in text


def test_every_limit_and_assumption_is_printed_and_the_command_is_exact() -> None:
    document = DOCUMENTS["mlp"]
    page = parse(render_audit(document))
    text = section(page, "claim").whole_text()
    for part in (*document["assumptions"], *document["not_covered"], document["query"]["words"]):
        assert part in text
    assert page.all("pre")[0].text == document["command"]


def test_centres_are_shown_one_by_one_up_to_fifty() -> None:
    few = section(parse(render_audit(DOCUMENTS["local"])), "centres")
    assert len(few.all("table")[1].all("tbody")[0].all("tr")) == 20
    many = section(parse(render_audit(DOCUMENTS["many centres"])), "centres")
    assert len(many.all("table")[1].all("tbody")[0].all("tr")) == 50
    assert "70 more centres" in many.whole_text()
    spread = [cell.text for cell in few.all("table")[0].all("tbody")[0].all("tr")[0].all("td")]
    uppers = sorted(DOCUMENTS["local"]["results"][0]["upper"])
    for shown, exact in zip(spread, (uppers[0], uppers[10], uppers[-1]), strict=False):
        assert float(number(shown)) == pytest.approx(exact, rel=1e-5)
        assert float(number(shown)) >= exact


def broken(path: tuple[Any, ...], value: Any) -> documents.Document:
    document = copy.deepcopy(documents.mlp())
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("results", 0, "upper"), math.inf),
        (("results", 0, "upper"), math.nan),
        (("results", 0, "upper"), -1.0),
        (("results", 0, "upper"), 4.0),  # below the witness
        (("results", 0, "upper"), [48.0, 48.0]),
        (("results", 0, "rigour"), "estimate"),
        (("results", 0, "seconds"), math.nan),
        (("lower", "value"), math.nan),
        (("lower", "value"), 50.0),
        (("lower", "value"), [1.0, 2.0]),
        (("model", "import_check", "max_abs_difference"), math.inf),
        (("results", 0, "steps", 0, "log10_reach"), math.inf),
        (("results", 0, "steps", 0, "gain"), math.nan),
    ],
)
def test_what_is_no_answer_is_never_rendered(path: tuple[Any, ...], value: Any) -> None:
    render_audit(documents.mlp())
    with pytest.raises(InternalError):
        render_audit(broken(path, value))


def test_a_row_without_bound_and_reason_is_an_error() -> None:
    document = documents.mlp()
    del document["results"][0]["upper"]
    with pytest.raises(InternalError, match="neither a bound nor a reason"):
        render_audit(document)


def test_a_document_with_only_the_fixed_fields_is_enough() -> None:
    document = documents.mlp()
    for key in ("tool", "command", "created", "environment", "assumptions", "not_covered", "seconds"):
        del document[key]
    for key in ("nodes", "notes", "trusted_code"):
        del document["model"][key]
    del document["query"]["words"]
    del document["model"]["import_check"]["reference"]
    del document["model"]["import_check"]["max_abs_output"]
    for row in document["results"]:
        for key in ("steps", "statement", "source", "sound_when", "made_by", "assumptions", "trace"):
            row.pop(key, None)
    page = parse(render_audit(document))
    assert "no command line to repeat" in page.whole_text()


def test_the_colours_follow_the_reader_and_the_printer() -> None:
    style = parse(render_audit(DOCUMENTS["mlp"])).all("style")[0].text
    for query in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem"):
        assert query in style


def test_points_with_wrong_labels_alone_have_no_radius_for_that_reason() -> None:
    wrong = {"index": 0, "radius": 0.0, "attack_radius": None, "label": 1, "predicted": 0}
    assert (
        radii.headline({"points": [wrong], "norm": "linf"}) == "No radius: the label of the point is wrong."
    )
    right = wrong | {"index": 1, "predicted": 1}
    assert "No radius above zero" in radii.headline({"points": [wrong, right], "norm": "linf"})


def test_half_of_the_points_keep_their_label_below_the_radius_of_the_headline() -> None:
    points = [{"radius": radius, "label": 0, "predicted": 0} for radius in (0.125, 0.25, 0.5, 0.75)]
    said = radii.headline({"points": points, "norm": "linf"})
    assert "half of these for every linf perturbation below 0.5, all of them below 0.125" in said
