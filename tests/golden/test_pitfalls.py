"""The report on wrong constants says what the methods give, and every refutation stands."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.tiers import also

REPORT = Path(__file__).resolve().parents[2] / "reports" / "pitfalls"
NAMES = (
    "concatenated_heads",
    "power_iteration",
    "reshaped_kernel",
    "circular_fft",
    "lipsdp_network",
    "gelu_slope_one",
    "truncated_exponential",
    "clipped_orthogonal",
    "recurrent_weights",
    "average_overlap",
    "residual_maxmin",
)
HERE = ("concatenated_heads", "power_iteration", "gelu_slope_one", "average_overlap")
"""One of each kind: two norms, a slope, and a constant that is too large."""


@pytest.fixture(scope="module")
def build() -> ModuleType:
    sys.path.insert(0, str(REPORT))
    try:
        return importlib.import_module("build")
    finally:
        sys.path.remove(str(REPORT))


@pytest.fixture(scope="module")
def stored() -> dict[str, dict[str, object]]:
    rows = json.loads((REPORT / "result.json").read_text(encoding="utf-8"))["mistakes"]
    return {row["title"]: row for row in rows}


def test_every_mistake_is_in_the_report(build: ModuleType, stored: dict[str, object]) -> None:
    assert tuple(mistake.__name__ for mistake in build.MISTAKES) == NAMES
    assert len(stored) == len(NAMES)


@pytest.mark.parametrize(
    "name",
    [
        name if name in HERE else also(name, "seconds each; `make reports` makes every row again")
        for name in NAMES
    ],
)
def test_the_committed_row_is_found_again(
    name: str, build: ModuleType, stored: dict[str, dict[str, object]]
) -> None:
    (mistake,) = (make() for make in build.MISTAKES if make.__name__ == name)
    row = build.examine(mistake)
    assert row["refuted"] == mistake.wrong
    assert row["lower"] <= row["upper"]
    if mistake.wrong:
        assert row["value"] < row["lower"]
    else:
        assert row["value"] > 1.5 * row["upper"]
    for key in ("value", "lower", "upper"):
        # Other processors round the search and the solver differently; the figures shown have four digits in common.
        assert row[key] == pytest.approx(stored[mistake.title][key], rel=1e-4)


def test_positive_parts_of_orthogonal_matrices_grow_with_the_root_of_their_size() -> None:
    """By singular values; about 0.4 sqrt n."""
    draws = np.random.default_rng(0)
    for n, wanted in ((16, 1.6463), (64, 3.1258), (256, 6.4216)):
        weight = np.linalg.qr(draws.standard_normal((n, n)))[0]
        norm = float(np.linalg.norm(np.maximum(weight, 0.0), 2))
        assert norm == pytest.approx(wanted, abs=5e-5)
        assert norm == pytest.approx(0.4 * n**0.5, rel=0.03)


def test_the_page_opens_offline_and_names_every_source(build: ModuleType, stored: dict[str, object]) -> None:
    text = (REPORT / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text
    for mistake in build.MISTAKES:
        assert mistake().source.split(",")[0] in text
