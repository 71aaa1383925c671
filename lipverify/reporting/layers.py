"""The layer graph as a picture: rows by longest path from the input, skip connections in lanes on the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lipverify.loading.names import display
from lipverify.reporting.answers import Document
from lipverify.reporting.format import count_text, plural, shape_text

DRAWN = 60  # nodes up to which the graph is drawn; larger ones are listed in groups
BOX_WIDTH, BOX_HEIGHT = 224, 46
_ROW, _COLUMN, _LANE, _MARGIN = 70, 244, 12, 10
_BOLD, _LIGHT = 8, 7  # pixels of one character, measured wide
_GROUP = 60  # nodes of a group in the list
_LISTED = 3000


@dataclass(frozen=True)
class Box:
    """A node of the picture; x and y are its upper left corner in pixels."""

    x: int
    y: int
    title: str
    shape: str
    name: str
    full: str
    kind: str


@dataclass(frozen=True)
class Wire:
    """A connection as an SVG path; `skips` tells connections over more than one row."""

    path: str
    skips: bool


@dataclass(frozen=True)
class Picture:
    """The layer graph, drawn."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]


@dataclass(frozen=True)
class NodeRow:
    """A node in the list."""

    name: str
    op: str
    inputs: str
    shape: str
    parameters: str


@dataclass(frozen=True)
class Group:
    """Consecutive nodes with a common beginning of their names."""

    title: str
    detail: str
    rows: tuple[NodeRow, ...]


def picture(nodes: Sequence[Document]) -> Picture | None:
    """The drawn graph; None for an empty graph and for more nodes than a picture can show."""
    if not 0 < len(nodes) <= DRAWN:
        return None
    rows = _rows(nodes)
    columns = _columns(nodes, rows)
    places = {node["name"]: (columns[node["name"]], rows[node["name"]]) for node in nodes}
    edges = [
        (name, node["name"]) for node in nodes for name in dict.fromkeys(node["inputs"]) if name in places
    ]
    # A straight line between neighbouring rows meets no box; everything longer goes around.
    long = [(a, b) for a, b in edges if rows[b] - rows[a] > 1]
    lanes = _lanes([(rows[a], rows[b]) for a, b in long])
    wires = [Wire(_straight(places[a], places[b]), False) for a, b in edges if rows[b] - rows[a] == 1]
    beside = _right_edges(places.values())
    right = max(beside)
    for (a, b), lane in zip(long, lanes, strict=True):
        # Beside the widest row on its way.
        at = max(beside[rows[a] : rows[b] + 1]) + (lane + 1) * _LANE
        wires.append(Wire(_around(places[a], places[b], at), True))
        right = max(right, at)
    width = right + _MARGIN
    height = 2 * _MARGIN + max(rows.values()) * _ROW + BOX_HEIGHT
    return Picture(width, height, tuple(_box(node, places[node["name"]]) for node in nodes), tuple(wires))


def _rows(nodes: Sequence[Document]) -> dict[str, int]:
    """Longest path from the beginning; nodes come in topological order."""
    rows: dict[str, int] = {}
    for node in nodes:
        rows[node["name"]] = max((rows[name] + 1 for name in node["inputs"] if name in rows), default=0)
    return rows


def _columns(nodes: Sequence[Document], rows: dict[str, int]) -> dict[str, int]:
    """Within a row, nodes stand in the order of what they read from."""
    columns: dict[str, int] = {}
    for row in range(max(rows.values()) + 1):
        members = [node for node in nodes if rows[node["name"]] == row]

        def key(node: Document) -> float:
            sources = [columns[name] for name in node["inputs"] if name in columns]
            return sum(sources) / len(sources) if sources else 0.0

        for column, node in enumerate(sorted(members, key=key)):
            columns[node["name"]] = column
    return columns


def _right_edges(places: Iterable[tuple[int, int]]) -> list[int]:
    """For every row the right edge of its last box."""
    widest: dict[int, int] = {}
    for column, row in places:
        widest[row] = max(column, widest.get(row, 0))
    return [_MARGIN + widest[row] * _COLUMN + BOX_WIDTH for row in range(len(widest))]


def _lanes(spans: Sequence[tuple[int, int]]) -> list[int]:
    """A lane for every span of rows, so that two spans in one lane never meet; short spans inside."""
    taken: list[list[tuple[int, int]]] = []
    lanes = [0] * len(spans)
    for index in sorted(range(len(spans)), key=lambda i: (spans[i][1] - spans[i][0], spans[i])):
        low, high = spans[index]
        free = (i for i, o in enumerate(taken) if all(high <= other[0] or other[1] <= low for other in o))
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((low, high))
        lanes[index] = lane
    return lanes


def _corner(place: tuple[int, int]) -> tuple[int, int]:
    return _MARGIN + place[0] * _COLUMN, _MARGIN + place[1] * _ROW


def _straight(source: tuple[int, int], target: tuple[int, int]) -> str:
    x1, y1 = _corner(source)
    x2, y2 = _corner(target)
    x1, y1, x2 = x1 + BOX_WIDTH // 2, y1 + BOX_HEIGHT, x2 + BOX_WIDTH // 2
    if x1 == x2:
        return f"M{x1} {y1}V{y2}"
    return f"M{x1} {y1}C{x1} {y1 + 12} {x2} {y2 - 12} {x2} {y2}"


def _around(source: tuple[int, int], target: tuple[int, int], lane: int) -> str:
    """Out below the source, along the gap to the lane, down, and back along the gap above the target."""
    x1, y1 = _corner(source)
    x2, y2 = _corner(target)
    # Off the middle, where the straight lines run.
    x1, y1, x2 = x1 + BOX_WIDTH - 34, y1 + BOX_HEIGHT, x2 + BOX_WIDTH - 34
    out, back = y1 + 8, y2 - 8
    return (
        f"M{x1} {y1}V{out - 4}Q{x1} {out} {x1 + 4} {out}H{lane - 5}Q{lane} {out} {lane} {out + 5}"
        f"V{back - 5}Q{lane} {back} {lane - 5} {back}H{x2 + 4}Q{x2} {back} {x2} {back + 4}V{y2}"
    )


def _box(node: Document, place: tuple[int, int]) -> Box:
    x, y = _corner(place)
    parameters = int(node.get("parameters") or 0)
    kind = (
        "input"
        if not node["inputs"]
        else "weights"
        if parameters
        else "merge"
        if len(node["inputs"]) > 1
        else "plain"
    )
    title, shape = display(node["op"], 24), "×".join(map(str, node["shape"]))
    room = (BOX_WIDTH - 28 - _BOLD * len(title)) // _LIGHT
    if len(shape) > room:
        shape = shape[: room - 1] + "…" if room > 3 else ""
    full = f"{display(node['name'])}: {display(node['op'])}, {shape_text(node['shape'])}"
    if parameters:
        full += f", {plural(parameters, 'parameter')}"
    return Box(x, y, title, shape, display(node["name"], 28), full, kind)


def groups(nodes: Sequence[Document]) -> tuple[tuple[Group, ...], int]:
    """All nodes in groups of consecutive ones, and how many the list leaves out."""
    shown = nodes[:_LISTED]
    named = _runs(shown, [_prefix(node["name"]) for node in shown])
    # Names without a common beginning would make a group of every node.
    telling = len(nodes) > DRAWN and 4 * len(named) <= len(shown)
    found = named if telling else _runs(shown, [""] * len(shown))
    return tuple(_group(members) for members in found), max(len(nodes) - _LISTED, 0)


def _runs(nodes: Sequence[Document], keys: Sequence[str]) -> list[list[Document]]:
    """Consecutive nodes with the same key, at most `_GROUP` together."""
    found: list[list[Document]] = []
    previous: str | None = None
    for node, key in zip(nodes, keys, strict=True):
        if key != previous or len(found[-1]) >= _GROUP:
            found.append([])
        found[-1].append(node)
        previous = key
    return found


def _prefix(name: str) -> str:
    """The first part of a dotted or slashed name."""
    return name.strip("/").replace("/", ".").split(".")[0]


def _group(members: Sequence[Document]) -> Group:
    first, last = display(members[0]["name"], 40), display(members[-1]["name"], 40)
    title = first if len(members) == 1 else f"{first} to {last}"
    parameters = sum(int(node.get("parameters") or 0) for node in members)
    detail = f"{plural(len(members), 'node')}, {plural(parameters, 'parameter')}"
    return Group(title, detail, tuple(_row(node) for node in members))


def _row(node: Document) -> NodeRow:
    names = [display(name, 60) for name in node["inputs"][:8]]
    if len(node["inputs"]) > 8:
        names.append(f"and {len(node['inputs']) - 8} more")
    parameters = int(node.get("parameters") or 0)
    shape = shape_text(node["shape"])
    return NodeRow(
        display(node["name"]),
        display(node["op"]),
        ", ".join(names),
        shape,
        count_text(parameters) if parameters else "",
    )
