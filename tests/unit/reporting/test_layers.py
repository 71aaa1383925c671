"""The picture of the layer graph: boxes do not meet, skip connections run beside them, large graphs become lists."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from lipverify.reporting.layers import BOX_HEIGHT, BOX_WIDTH, DRAWN, Picture, groups, picture
from tests.unit.reporting import documents

Point = tuple[float, float]


@st.composite
def graphs(draw: st.DrawFn) -> list[documents.Document]:
    """Random directed acyclic graphs in topological order."""
    count = draw(st.integers(1, 25))
    nodes = [documents.node("n0", "Input", [], [4])]
    for i in range(1, count):
        sources = draw(st.lists(st.integers(0, i - 1), min_size=1, max_size=3))
        nodes.append(documents.node(f"n{i}", "Add", [f"n{j}" for j in sources], [4]))
    return nodes


def straight_parts(path: str) -> list[tuple[Point, Point]]:
    """The horizontal and vertical lines of a path."""
    parts: list[tuple[Point, Point]] = []
    x = y = 0.0
    for command, text in re.findall(r"([MHVQC])([^MHVQC]*)", path):
        numbers = [float(value) for value in text.split()]
        before = (x, y)
        if command == "H":
            x = numbers[0]
        elif command == "V":
            y = numbers[0]
        else:
            x, y = numbers[-2:]
        if command in "HV":
            parts.append((before, (x, y)))
    return parts


def meets(part: tuple[Point, Point], box: tuple[float, float]) -> bool:
    """Whether a line enters the inside of a box."""
    (x1, y1), (x2, y2) = part
    inside_x = max(x1, x2) > box[0] and min(x1, x2) < box[0] + BOX_WIDTH
    return inside_x and max(y1, y2) > box[1] and min(y1, y2) < box[1] + BOX_HEIGHT


def check(drawn: Picture) -> None:
    corners = [(box.x, box.y) for box in drawn.boxes]
    assert len(set(corners)) == len(corners)
    for i, a in enumerate(corners):
        assert 0 <= a[0] <= drawn.width - BOX_WIDTH
        assert 0 <= a[1] <= drawn.height - BOX_HEIGHT
        for b in corners[i + 1 :]:
            assert abs(a[0] - b[0]) >= BOX_WIDTH or abs(a[1] - b[1]) >= BOX_HEIGHT
    for wire in drawn.wires:
        for part in straight_parts(wire.path):
            assert not any(meets(part, corner) for corner in corners), wire.path
            assert max(part[0][0], part[1][0]) <= drawn.width


@given(graphs())
@settings(max_examples=200, deadline=None)
def test_boxes_and_wires_never_meet(nodes: list[documents.Document]) -> None:
    drawn = picture(nodes)
    assert drawn is not None
    check(drawn)
    edges = {(name, node["name"]) for node in nodes for name in node["inputs"]}
    assert len(drawn.wires) == len(edges)


def test_a_residual_network_shows_its_skip_connections() -> None:
    nodes = documents.residual_cnn()["model"]["nodes"]
    assert len(nodes) == 43
    drawn = picture(nodes)
    assert drawn is not None
    check(drawn)
    assert sum(wire.skips for wire in drawn.wires) == 6
    assert drawn.width <= 2 * 244 + 40


def test_a_chain_fits_a_phone() -> None:
    drawn = picture(documents.chain([4, 4, 4]))
    assert drawn is not None
    assert drawn.width <= 320


def test_large_graphs_are_listed_by_the_beginning_of_their_names() -> None:
    nodes = [documents.node("input", "Input", [], [4])]
    for block in range(10):
        for i in range(8):
            nodes.append(documents.node(f"block{block}.layer{i}", "ReLU", [nodes[-1]["name"]], [4]))
    assert len(nodes) > DRAWN
    assert picture(nodes) is None
    listed, left_out = groups(nodes)
    assert left_out == 0
    assert [row.name for group in listed for row in group.rows] == [node["name"] for node in nodes]
    assert len(listed) == 11
    assert listed[1].title == "block0.layer0 to block0.layer7"


def test_names_without_a_common_beginning_are_listed_in_equal_parts() -> None:
    nodes = [documents.node(f"/op_{i}", "ReLU", [f"/op_{i - 1}"] if i else [], [4]) for i in range(5000)]
    listed, left_out = groups(nodes)
    assert left_out == 2000
    assert len(listed) == 50
    assert sum(len(group.rows) for group in listed) == 3000


def test_no_graph_is_no_picture() -> None:
    assert picture([]) is None
    assert groups([]) == ((), 0)
