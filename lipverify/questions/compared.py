"""What is told about two networks besides the bound: labels, layers, singular values; and the parts of their page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.protocol import Compute
from lipverify.combine import Difference
from lipverify.errors import BudgetEnded
from lipverify.falsify import multiplications
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.region import Ball
from lipverify.loading.names import display
from lipverify.questions import labels
from lipverify.questions.climb import Climb, climb
from lipverify.questions.question import Found
from lipverify.reporting.format import Magnitude, decimal_text, plural, upper_text
from lipverify.reporting.sections import Bar, Bars, Section, Table

LARGEST_MATRIX = 1024
"""Rows or columns, whichever is fewer, up to which singular values are computed."""
LISTED_PAIRS = 12
LISTED_LAYERS = 24


def search(found: Difference, region: Ball, norm_out: str, hints: Tensor | None, compute: Compute) -> Tensor:
    """Inputs where the networks are far apart, [count, *input shape]; not trusted."""
    graph = Graph(found.graph.nodes, (found.first, found.second)).pruned().to(device=compute.device)

    def value(x: Tensor) -> Tensor:
        y = (evaluate(graph, x) - evaluate(Graph(graph.nodes, graph.outputs, 1), x)).flatten(1)
        if norm_out == "pairs":
            return y.amax(1) - y.amin(1)
        length: Tensor = torch.linalg.vector_norm(y, ord=2.0 if norm_out == "l2" else math.inf, dim=1)
        return length

    return climb(value, region, compute, 2.0 * multiplications(graph), Climb(), hints)


def findings(
    carried: Difference,
    graph: Graph,
    region: Ball,
    single: bool,
    data: Tensor | None,
    found: Found,
    compute: Compute,
) -> dict[str, Any]:
    """The fields of the document.

    Args:
        graph: with the outputs `Difference.functionals`: entries and pairs of the difference, pairs of each network.
        data: points whose labels are asked about; None where they are not.
    """
    fields: dict[str, Any] = {"apart": list(carried.apart)}
    size = carried.graph[carried.first].size
    pairs = labels.table(found.facts["pairs"], size) if "pairs" in found.facts else None
    if pairs is not None:
        fields["pairs"] = pairs.upper.amax(0).tolist()
    if data is not None and pairs is not None:
        try:
            kept = _kept(carried, graph, region, single, data, found, compute)
            fields["kept"], fields["changed"] = labels.split(kept)
        except BudgetEnded:
            fields["labels_not_run"] = (
                "the budget ended before the labels were looked at; give a larger --budget"
            )
    if found.more is not None:
        fields["saturation"] = _saturation(carried, found.more)
        fields["layers"] = _layers(carried, found.more)
    fields["spectra"] = _spectra(carried)
    return fields


def _kept(
    carried: Difference,
    graph: Graph,
    region: Ball,
    single: bool,
    data: Tensor,
    found: Found,
    compute: Compute,
) -> dict[str, Any]:
    """Whose labels are kept; arguments as `findings`. Raises BudgetEnded after the end of the block around it."""
    apart = found.facts["pairs"]
    if single:
        return labels.kept_above(
            carried, graph, labels.table(apart, carried.graph[carried.first].size).upper[0], data
        )
    margins = None
    if found.more is not None:
        first, second = (found.more[name] for name in graph.outputs[1:3])
        margins = (
            Interval(first.lower.cpu(), first.upper.cpu()),
            Interval(second.lower.cpu(), second.upper.cpu()),
        )
    return labels.kept_within(carried, graph, apart, margins, region, compute)


def _saturation(carried: Difference, ranges: Mapping[str, Interval]) -> list[dict[str, Any]]:
    """For every quantiser what comes in over the region, and what its integers represent; other: what a ReLU or Clip of the other
    network gives there, whose place it takes. What both cut off is no loss: a least integer that stands for 0 is a ReLU too.
    """
    graph = carried.graph
    partners = {
        pair[k]: pair[1 - k] for pair in ((m.first, m.second) for m in carried.layers) for k in (0, 1)
    }
    rows = []
    for node in graph.nodes:
        if (
            node.name[:2] not in ("f.", "g.")
            or not isinstance(node.op, ops.Clip)
            or not _quantised(graph, node)
        ):
            continue
        row: dict[str, Any] = {"node": node.source or node.name[2:], "range": _reach(ranges[node.inputs[0]])}
        row["represents"] = [node.op.low, node.op.high]
        other = graph[partners.get(node.name, node.name)]
        if isinstance(other.op, ops.ReLU | ops.Clip) and not _quantised(graph, other):
            row["other"] = _reach(ranges[other.name])
        if all(math.isfinite(end) for key in ("range", "other") for end in row.get(key, ())):
            rows.append(row)
    return rows


def _quantised(graph: Graph, node: Node) -> bool:
    """Whether it limits what is rounded behind it to what integers represent."""
    readers = (graph[name].op for name in graph.consumers[node.name])
    return isinstance(node.op, ops.Clip) and any(isinstance(op, ops.Quantize) for op in readers)


def _reach(box: Interval) -> list[float]:
    return [float(box.lower.min()), float(box.upper.max())]


def _layers(carried: Difference, ranges: Mapping[str, Interval]) -> list[dict[str, Any]]:
    """For every pair of layers how large the difference is behind it, and what its parameters add; largest over the region."""

    def size(name: str) -> float:
        box = ranges[name]
        return float(torch.maximum(box.upper, -box.lower).clamp(min=0.0).max()) if box.lower.numel() else 0.0

    rows = []
    for layer in carried.layers:
        node = carried.graph[layer.first]
        own = sum(size(name) for name in layer.own)
        if not (math.isfinite(own) and math.isfinite(size(layer.change))):
            continue
        rows.append(
            {
                "layer": node.source or node.name[2:],
                "op": node.op.kind(),
                "own": own,
                "carried": size(layer.change),
            }
        )
    return rows


def _spectra(carried: Difference) -> list[dict[str, Any]]:
    """Largest singular value, condition and effective rank of every stored matrix, in both networks: measured, no bounds.

    The effective rank is exp of the entropy of normalised singular values (Roy and Vetterli, EUSIPCO 2007); a kernel counts as
    the matrix [out, everything else].
    """
    rows = []
    for layer in carried.layers:
        pair = []
        for name in (layer.first, layer.second):
            weight = getattr(carried.graph[name].op, "weight", None)
            if (
                isinstance(weight, Tensor)
                and weight.ndim >= 2
                and 0 < min(weight.flatten(1).shape) <= LARGEST_MATRIX
            ):
                values = torch.linalg.svdvals(weight.flatten(1).double())
                share = values / values.sum().clamp_min(1e-300)
                entropy = -(share * share.clamp_min(1e-300).log()).sum()
                singular = float(values[-1]) <= 2.0**-52 * max(weight.flatten(1).shape) * float(values[0])
                condition = None if singular else float(values[0] / values[-1])
                pair.append(
                    {"largest": float(values[0]), "condition": condition, "rank": float(entropy.exp())}
                )
        if len(pair) == 2:
            node = carried.graph[layer.first]
            rows.append({"layer": node.source or node.name[2:], "of": pair})
    return rows


# -- the page


def sections(document: Mapping[str, Any]) -> Sequence[Section]:
    """Labels with their picture, layers, differences of outputs, singular values, places where the structures differ."""
    found: list[Section] = []
    beyond = [row for row in document.get("saturation", ()) if saturates(row)]
    if beyond:
        text = "Over the region values may lie outside what the integers represent, and are cut off there without a word."
        head = ("Quantiser", "Values at most", "Represents")
        cut = tuple(
            (display(row["node"], 60), _ends(row["range"]), _ends(row["represents"])) for row in beyond
        )
        found.append(Table("Saturation", text, head, cut, brief=True))
    if "kept" in document:
        found += _label_sections(document["kept"])
    if "labels_not_run" in document:
        not_run = (("labels of the points", f"not run: {document['labels_not_run']}"),)
        found.append(Table("Labels", "Nothing is said about them.", ("", ""), not_run, brief=True))
    if document.get("layers"):
        text = "Largest over the region: what a layer's own parameters add, and the difference behind it, of all before with it."
        titles = ("Layer", "Operator", "Own part", "Difference")
        found.append(Table("Where the difference arises", text, titles, _layer_rows(document["layers"])))
        found.append(_layer_bars(document["layers"]))
    pairs = document.get("pairs")
    if pairs and len(pairs) <= LISTED_PAIRS:
        columns = ("", *(str(j) for j in range(len(pairs))))
        text = "Row c, column j: how much larger the difference in output c can be than in output j. A lead above it is kept."
        found.append(Table("Differences of two outputs", text, columns, _pair_rows(pairs)))
    if document.get("spectra"):
        rows: tuple[tuple[str, ...], ...] = tuple(
            (display(row["layer"], 60), *_before_after(row["of"])) for row in document["spectra"]
        )
        titles = ("Layer", "Largest singular value", "Condition", "Effective rank")
        text = "Original and changed; measured in float64, no bounds."
        if fragile := sum(_fragile(*row["of"]) for row in document["spectra"]):
            text += (
                f" In {plural(fragile, 'layer')} the largest singular value falls and the condition number rises: products of "
                "norms become smaller then, and certified radii need not grow with that, they may become smaller too."
            )
        found.append(Table("Conditioning", text, titles, rows))
    if document.get("apart"):
        places = tuple((display(place, 300),) for place in document["apart"])
        text = "Here the two networks are bounded side by side, and what they have in common is lost."
        found.append(Table("Where the structures differ", text, ("Nodes",), places, brief=True))
    return found


def _label_sections(kept: Mapping[str, Any]) -> list[Section]:
    shares = (
        ("points", str(kept["points"])),
        ("same label at the point itself", _share(kept["same_label_now"])),
        (
            "label certified to be kept",
            f"{round(kept['certified'] * kept['points'])} ({_share(kept['certified'])})",
        ),
        ("undecided", str(len(kept["undecided"]))),
        ("shown to change", str(len(kept["changed"]))),
    )
    found: list[Section] = [Table("Labels", "", ("What", "Of the points"), shares, brief=True)]
    bars = tuple(
        Bar(
            f"point {row['point']}: {row['label']} or {row['rival']}",
            row["here"],
            max(row["bound"], row["here"]),
            row["margin"],
        )
        for row in kept["closest"]
    )
    text = (
        "For the points that come closest: how far the step to the other network moves the label's lead over a rival, from what "
        "it does at the point to what is proved for the region. A lead beyond the bar is certified to be kept."
    )
    return [
        *found,
        Bars("Leads against differences", text, bars, "lead of the label in the original network"),
    ]


def saturates(row: Mapping[str, Any]) -> bool:
    """Whether a value may lie more than the smallest step of 8 bits outside what is represented, beyond what a ReLU or Clip of
    the other network leaves there."""
    (low, high), (first, last) = row["range"], row["represents"]
    least, most = row.get("other", (-math.inf, math.inf))
    room = (last - first) / 255
    return bool(max(low, least) < first - room or min(high, most) > last + room)


def _ends(pair: Sequence[float]) -> str:
    return f"{decimal_text(pair[0], digits=4)} to {decimal_text(pair[1], digits=4)}"


def _layer_rows(layers: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (display(row["layer"], 60), display(row["op"]), _up(row["own"]), _up(row["carried"]))
        for row in layers
    )


def _layer_bars(layers: Sequence[Mapping[str, Any]]) -> Bars:
    """The layers with the largest parts of their own, in the order of the network."""
    most = sorted(range(len(layers)), key=lambda k: -layers[k]["own"])[:LISTED_LAYERS]
    bars = tuple(
        Bar(display(layers[k]["layer"], 60), 0.0, layers[k]["carried"], layers[k]["own"])
        for k in sorted(most)
    )
    text = "How large the difference behind a layer can be: where it jumps, and the mark lies high, keep that layer's precision."
    return Bars("The difference from layer to layer", text, bars, "what the layer's own parameters add")


def _fragile(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether the largest singular value falls while the smallest one falls faster; by more than a hundredth."""
    worse = after["condition"] is None or after["condition"] > 1.01 * (before["condition"] or math.inf)
    return bool(after["largest"] < 0.99 * before["largest"] and worse and before["condition"] is not None)


def _pair_rows(pairs: Sequence[Sequence[float]]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (str(i), *("-" if i == j else _signed(v) for j, v in enumerate(row))) for i, row in enumerate(pairs)
    )


def _up(value: float) -> str:
    return upper_text(Magnitude(value), 4)


def _signed(value: float) -> str:
    return _up(value) if value >= 0 else "-" + decimal_text(-value, digits=4)


def _share(share: float) -> str:
    return f"{math.floor(share * 1000 + 1e-9) / 10:g} %"


def _before_after(pair: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    cells = []
    for key in ("largest", "condition", "rank"):
        values = ["singular" if row[key] is None else decimal_text(row[key], digits=4) for row in pair]
        cells.append(f"{values[0]}, {values[1]}")
    return tuple(cells)


def gate(asked: bool, document: Mapping[str, Any]) -> str | None:
    """`--fail-on-change`: a label that is shown to change."""
    changed = document.get("kept", {}).get("changed", ())
    if not asked or not changed:
        return None
    return f"the label of {plural(len(changed), 'point')} is shown to change, first of point {changed[0]}"
