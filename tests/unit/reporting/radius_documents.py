"""Documents of radii for the tests of reports."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipverify.robustness.curve import curve
from lipverify.robustness.plan import Record
from tests.unit.reporting import documents

Document = dict[str, Any]
METHODS = ("global", "crown", "alpha-crown", "local", "branching", "auto")
PLAIN: Document = {
    "tool": documents.mlp()["tool"],
    "created": documents.mlp()["created"],
    "norm": "l2",
    "environment": {"python": "3.11"},
    "assumptions": [],
    "not_covered": list(documents.NOT_COVERED),
    "seconds": 71.5,
}


def records(count: int, scale: float) -> list[Record]:
    """Points with growing radii; every fourth misclassified, one undecided."""
    found = []
    for k in range(count):
        wrong, size = k % 4 == 3, scale * (k + 1)
        radius = 0.0 if wrong or k == 1 else size
        by_method = {} if wrong else {name: radius * (0.5 + i / 10) for i, name in enumerate(METHODS)}
        attacked = None if wrong or k == 2 else 1.7 * size
        note = "misclassified" if wrong else "two outputs are equal up to rounding" if k == 1 else ""
        found.append(
            Record(k, 3, 5 if wrong else 3, radius, "auto", attacked, 1.5, 0.3, by_method, note=note)
        )
    return found


def _shares(points: list[Record]) -> Document:
    rows = [
        {"method": m, "mean_radius": 0.1234567, "median_radius": 0.2, "largest_on": 3, "points": 9}
        for m in METHODS
    ]
    titles = ("36/255", "72/255", "108/255", "1")
    return {
        "model": documents.mlp()["model"],
        "method": "auto",
        "claim": "no perturbation of l2 size below a point's radius changes its label",
        "curve": curve(points).to_json(),
        "clean_accuracy": 0.75,
        "robust_accuracy": {title: {"radius": 0.1, "certified": 0.5, "attacked": 0.6} for title in titles},
        "comparison": rows,
        "refused": {"global": "no form as neurons with bounded slopes for softmax (Softmax), [10]"},
        "rigour": "real",
    }


def single() -> tuple[Document, NDArray[Any]]:
    """A document of `radius`, and its points as images."""
    points = records(20, 0.0312345678)
    document = {
        **PLAIN,
        **_shares(points),
        "schema": "lipverify.radius/1",
        "command": "lipverify radius net.onnx --data test.npz --norm l2",
        "box": None,
        "points": [point.to_json() for point in points],
    }
    return document, np.linspace(0.0, 1.0, 20 * 64).reshape(20, 1, 8, 8)


def compared(count: int) -> Document:
    """A document of `compare --radii`."""
    models = []
    for k in range(count):
        points = records(20, 0.01 * (k + 1))
        entry = {
            "name": f"network-with-a-long-name-number-{k}.onnx",
            "radius": [p.radius for p in points],
            "attack_radius": [p.attack_radius for p in points],
            "mean_radius": 0.01 * (k + 1),
            "median_radius": 0.02 * (k + 1),
            "mean_radius_common": 0.015 * (k + 1),
            "mean_attack_radius": 0.2 * (k + 1),
            "seconds": 12.5,
        }
        models.append({**_shares(points), **entry})
    return {
        **PLAIN,
        "schema": "lipverify.compare-radii/1",
        "command": None,
        "points": 20,
        "common": list(range(15)),
        "models": models,
        "left_out": [{"name": "none.onnx", "reason": "no such file"}],
    }
