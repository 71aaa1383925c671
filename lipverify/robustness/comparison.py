"""Radii of several networks on one data set, as one document."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

from torch import Tensor

from lipverify.documents import envelope
from lipverify.errors import UsageError
from lipverify.ir.graph import Graph
from lipverify.robustness.results import Radii
from lipverify.robustness.run import radii


def compare_radii(
    graphs: Mapping[str, Graph], x: Tensor, y: Tensor | None = None, norm: str = "linf", **settings: Any
) -> dict[str, Any]:
    """The document of a comparison: one entry for each network, with radii of the same points in the same order.

    `common` repeats the means over the points that every network classifies correctly: only these compare like with like.

    Args:
        graphs: name -> network; all take inputs of one shape. x [points, *input shape], y [points]: as in `radii`.
        settings: of `radii`: method, box, budget (for each network), seed, jobs.

    Raises:
        UsageError: no network, or networks of different input shapes; as `radii` for the points.
    """
    if not graphs:
        raise UsageError("there is nothing to compare: give at least one network")
    shapes = {graph.input_shape for graph in graphs.values()}
    if len(shapes) > 1:
        raise UsageError(f"the networks take inputs of different shapes: {sorted(map(list, shapes))}")
    found = {name: radii(graph, x, y, norm, **settings) for name, graph in graphs.items()}
    return comparison_document(found)


def comparison_document(
    found: Mapping[str, Radii], left_out: Mapping[str, str] | None = None, command: str | None = None
) -> dict[str, Any]:
    """The document made of radii that are there already, one for each network, on the same points.

    Args:
        left_out: networks without radii, and why.

    Raises:
        UsageError: they belong to different numbers of points, norms or labels; or there are none.
    """
    if not found:
        raise UsageError("there is nothing to compare: no network has radii")
    first = next(iter(found.values()))
    for name, other in found.items():
        if len(other.records) != len(first.records) or other.plan.norm is not first.plan.norm:
            raise UsageError(f"the radii of {name} are of other points or in another norm")
    common = [
        index
        for index in range(len(first.records))
        if all(r.records[index].label == r.records[index].predicted for r in found.values())
        and len({r.records[index].label for r in found.values()}) == 1
    ]
    return envelope(
        "lipverify.compare-radii/1",
        command,
        sum(radii.seconds for radii in found.values()),
        norm=str(first.plan.norm),
        points=len(first.records),
        common=common,
        models=[_entry(name, radii, common) for name, radii in found.items()],
        left_out=[{"name": name, "reason": reason} for name, reason in (left_out or {}).items()],
        assumptions=sorted({text for radii in found.values() for text in radii.assumptions()}),
    )


def _entry(name: str, found: Radii, common: list[int]) -> dict[str, Any]:
    document = found.to_json()
    values = [r.radius for r in found.records]
    shared = [values[index] for index in common]
    attacked = [r.attack_radius for r in found.records if r.attack_radius is not None]
    kept = ("model", "method", "claim", "curve", "clean_accuracy", "robust_accuracy", "comparison", "refused")
    return {
        "name": name,
        **{key: document[key] for key in kept},
        "radius": values,
        "attack_radius": [r.attack_radius for r in found.records],
        "mean_radius": fmean(values),
        "median_radius": median(values),
        "mean_radius_common": fmean(shared) if shared else None,
        "mean_attack_radius": fmean(attacked) if attacked else None,
        "rigour": found.rigour,
        "seconds": found.seconds,
    }
