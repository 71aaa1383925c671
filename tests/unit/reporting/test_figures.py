"""What reports show beside tables: pairs in pictures, bounds over time, what is left open, and the words around them."""

from __future__ import annotations

import base64
import io
import zlib
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify.reporting.answers import read
from lipverify.reporting.course import course
from lipverify.reporting.gaps import gaps, pairs
from lipverify.reporting.html import render_audit
from lipverify.reporting.pairs import pair
from lipverify.reporting.pipelines import junit
from lipverify.reporting.radii import render_radii
from lipverify.reporting.terminal import print_audit
from lipverify.reporting.words import meaning
from lipverify.robustness.attack import farthest
from tests.unit.reporting import documents
from tests.unit.reporting.pages import parse


def pixels(address: str) -> np.ndarray:
    """The grey values in the address of a picture."""
    data = base64.b64decode(address.partition(",")[2])
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    body = data[data.index(b"IDAT") + 4 : data.index(b"IEND") - 8]
    return np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, width + 1)[:, 1:]


def test_a_pair_has_one_scale_and_its_difference_is_grey_where_nothing_changes() -> None:
    first = np.arange(64.0).reshape(8, 8)
    second = first.copy()
    second[0, 0], second[7, 7] = 10.0, 43.0
    found = pair(first, second)
    assert found is not None
    assert found.scale == "20"
    assert pixels(found.first)[7, 7] == 255
    change = pixels(found.change)
    assert change[0, 0] == 191
    assert change[7, 7] == 0
    assert change[3, 3] == 128
    rows = pair(first.ravel(), second.ravel())
    assert rows is not None
    assert rows.first == found.first
    assert rows.rows == "its 64 numbers drawn row by row as 8 × 8"


@pytest.mark.parametrize("shape", [(13,), (65,), (49,), (2, 8, 8), (3,), (8, 8, 8, 8)])
def test_what_is_no_picture_is_not_drawn(shape: tuple[int, ...]) -> None:
    assert pair(np.zeros(shape), np.ones(shape)) is None


def test_a_course_falls_and_ends_at_the_bound() -> None:
    found = course("lipsdp", [[0.1, 12.0], [0.5, 9.9], [2.0, 9.75]])
    assert found is not None
    assert (found.first, found.last) == ("12", "9.75")
    heights = [float(corner.split()[1]) for corner in found.path[1:].split(" L")]
    assert heights == sorted(heights)
    for trace in (
        [],
        [[0.1, 2.0], [0.2, 1.0]],
        [[0.0, 3.0], [0.0, 2.0], [0.0, 1.0]],
        [[1, 2.0], [2, 2.0], [3, 2.0]],
    ):
        assert course("lipsdp", trace) is None


def points(count: int = 5) -> list[dict[str, Any]]:
    return [
        {
            "index": i,
            "label": i % 3,
            "predicted": i % 3,
            "radius": 0.1 * i,
            "attack_radius": 0.25 + 0.125 * i,
            "attack_label": (i + 1) % 3,
        }
        for i in range(count)
    ]


def test_no_dot_lies_below_the_line_where_both_are_equal() -> None:
    found = gaps(points())
    assert found is not None
    assert len(found.dots) == 5
    for dot in found.dots:
        across, up = (dot.x - found.left) / found.width, 1 - (dot.y - found.top) / found.height
        assert across <= up <= 1
    assert gaps(points(2)) is None
    assert gaps([{**point, "attack_radius": None} for point in points()]) is None


def test_pairs_of_classes_are_counted_with_their_smallest_example() -> None:
    found = pairs(points())
    assert found is not None
    assert found.classes == (0, 1, 2)
    cell = dict(found.rows)[0][1]
    assert cell is not None
    assert (cell.count, cell.smallest, cell.tenths) == (2, "0.25", 10)
    assert dict(found.rows)[0][2] is None
    assert pairs([{**point, "attack_label": None} for point in points()]) is None


@pytest.mark.parametrize(
    ("upper", "norm", "said"),
    [
        (30.64, "linf", "an input change of 0.1 (l2) moves no output by more than 3.07."),
        (9.75, "l2", "an input change of 0.1 (l2) moves the output by at most 0.975 (l2)."),
    ],
)
def test_what_a_bound_means(upper: float, norm: str, said: str) -> None:
    document = documents.of_bounds([upper], 1.0)
    document["query"]["norm_out"] = norm
    assert meaning(read(document), document["query"]) == f"In other words: {said}"
    document = documents.of_bounds([], 1.0)
    assert meaning(read(document), document["query"]) == ""


@pytest.mark.parametrize(
    ("limit", "said", "kind"),
    [
        (10.0, "Limit 10: kept. The constant is at most 9.75.", "kept"),
        (9.75, "Limit 9.75: kept. The constant is at most 9.75.", "kept"),
        (9.0, "Limit 9: not shown to be kept. The best bound is 9.75.", "open"),
        (4.0, "Limit 4: exceeded. A pair of inputs shows 4.875.", "open"),
    ],
)
def test_a_limit_has_a_verdict(limit: float, said: str, kind: str) -> None:
    document = documents.of_bounds([9.75], 4.875) | {"limit": limit}
    (verdict,) = parse(render_audit(document)).all("p", "verdict")
    assert verdict.whole_text().strip() == said
    assert kind in verdict.attributes["class"]
    assert not parse(render_audit(documents.of_bounds([9.75], 4.875))).all("p", "verdict")


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("proved", "Claimed constant 8: true, by the bounds below."),
        ("refuted", "Claimed constant 8: wrong. A pair of inputs shows 4.875."),
        ("open", "Claimed constant 8: undecided, neither bounds nor witness settle it."),
    ],
)
def test_a_claimed_constant_has_a_verdict_on_the_page_in_the_terminal_and_for_pipelines(
    verdict: str, said: str
) -> None:
    document = documents.of_bounds([9.75], 4.875) | {"claimed": {"constant": 8.0, "verdict": verdict}}
    (shown,) = parse(render_audit(document)).all("p", "verdict")
    assert shown.whole_text().strip() == said
    assert ("kept" in shown.attributes["class"]) == (verdict == "proved")
    lines = io.StringIO()
    print_audit(document, lines)
    assert said in lines.getvalue()
    case = ElementTree.fromstring(junit(document).encode()).findall("testcase")[-1]
    assert case.attrib["name"] == "the constant is at most 8.0, as claimed"
    assert [child.tag for child in case] == {"proved": [], "refuted": ["failure"], "open": ["skipped"]}[
        verdict
    ]


def test_a_digest_that_is_none_never_reaches_a_style() -> None:
    document = documents.of_bounds([9.75], 4.875)
    document["model"]["sha256"] = '"; } body { display: none } x { content: "'
    assert "display: none } x" not in parse(render_audit(document)).all("style")[0].text
    document["model"]["sha256"] = "a" * 64
    assert 'content: "sha256 aaaaaaaaaaaaaaaa"' in parse(render_audit(document)).all("style")[0].text


@pytest.fixture(scope="module")
def radii() -> lv.Radii:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)).eval()
    graph = lv.extract(net, torch.zeros(2, 64))
    x = torch.rand(6, 64, dtype=torch.float64)
    x[0] *= 1e-3
    return lv.radii(graph, x, norm="linf", method="crown", box=(0.0, 1.0))


def test_adversarial_examples_are_kept_and_shown(radii: lv.Radii) -> None:
    examples = radii.examples
    assert examples
    assert radii.inputs is not None
    exact = radii.graph.to(dtype=torch.float64)
    for index, example in examples.items():
        record = radii.records[index]
        found = lv.evaluate(exact, torch.from_numpy(example)[None]).argmax(1)
        assert int(found) == record.attack_label != record.predicted
        assert np.abs(example - radii.inputs[index].numpy()).max() <= record.attack_radius
        again = type(record).from_json(record.stored())
        assert again.example is not None
        assert np.array_equal(again.example, example)
        assert "example" not in record.to_json()
    document = radii.to_json()
    assert document["adversarial"] == "adversarial.npz"
    page = parse(render_radii(document, radii.inputs.numpy(), examples))
    labels = [image.attributes["alt"] for image in page.all("img")]
    assert sum(label.startswith("Adversarial example of point") for label in labels) == len(examples)
    stored = np.load(__import__("io").BytesIO(radii.example_files()["adversarial.npz"]))
    assert stored["index"].tolist() == sorted(examples)
    assert np.array_equal(stored["adversarial"][0], examples[int(stored["index"][0])])


def test_a_radius_ends_where_the_box_ends() -> None:
    """The label never changes here; without the box the radius has no end, inside it none reaches beyond the farthest corner."""
    net = torch.nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1e-3, 0.0], [0.0, 0.0]]))
        net.bias.copy_(torch.tensor([1.0, 0.0]))
    graph = lv.extract(net.eval(), torch.zeros(2, 2))
    x = torch.tensor([[0.25, 0.5], [0.0, 1.0]], dtype=torch.float64)
    for norm, reach in (("linf", [0.75, 1.0]), ("l2", [(0.75**2 + 0.25) ** 0.5, 2**0.5])):
        free = lv.radii(graph, x, norm=norm, method="crown").radius
        cut = lv.radii(graph, x, norm=norm, method="crown", box=(0.0, 1.0)).radius
        assert bool((free > 100).all())
        for value, end in zip(cut.tolist(), reach, strict=True):
            assert end <= value <= end * (1 + 1e-12)


def test_no_corner_is_farther_than_the_reach() -> None:
    x = torch.rand(5, dtype=torch.float64)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 5)
    for norm in (lv.Norm.LINF, lv.Norm.L2):
        most = float(torch.linalg.vector_norm(corners - x, ord=norm.order, dim=1).max())
        assert most <= farthest(x, (0.0, 1.0), norm) <= most * (1 + 1e-12)
