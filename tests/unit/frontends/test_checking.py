"""The check behind every import finds what it is there to find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.errors import ExtractionMismatch
from lipverify.frontends.builder import Builder
from lipverify.frontends.checking import SCALES, TOLERANCE, check_import
from lipverify.ir.graph import Graph, Origin

WEIGHT = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]])


def graph() -> Graph:
    b = Builder(symbolic_batch=False)
    x = b.input((1, 2), 0)
    return b.graph([b.elementwise(ops.ReLU(), b.linear(x, WEIGHT))], Origin())


def source(change: Callable[[Any], Any]) -> Callable[[Any], Sequence[Any]]:
    return lambda x: [change(np.maximum(x @ WEIGHT.numpy().T.astype(x.dtype), 0))]


def check(change: Callable[[Any], Any], dtype: torch.dtype = torch.float32) -> Any:
    return check_import(graph(), source(change), name="numpy", dtype=dtype)


def test_the_right_source_passes_with_its_numbers() -> None:
    done = check(lambda y: y)
    assert done.samples == 4 * 2 * len(SCALES)
    assert done.reference == "numpy"
    assert done.max_abs_output > 10
    assert done.max_abs_difference < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_difference_beyond_rounding_is_found(dtype: torch.dtype) -> None:
    check(lambda y: y * (1 + 0.2 * TOLERANCE[dtype]), dtype)
    with pytest.raises(ExtractionMismatch, match="differs from numpy"):
        check(lambda y: y * (1 + 5 * TOLERANCE[dtype]), dtype)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y + 0.01,
        lambda y: y[:, ::-1],
        lambda y: np.maximum(y, 0.001),
        lambda y: np.where(y > 20, 20, y),
        lambda y: np.where(y > 1, np.nan, y),
        lambda y: np.where(y > 1, np.inf, y),
    ],
    ids=["shift", "order", "leak", "saturation", "nan", "infinity"],
)
def test_wrong_functions_are_found(change: Callable[[Any], Any]) -> None:
    with pytest.raises(ExtractionMismatch, match="differs from numpy"):
        check(change)


def test_another_shape_is_found() -> None:
    with pytest.raises(ExtractionMismatch, match=r"shape \[2\] in the source, \[3\] in the graph"):
        check(lambda y: y[:, :2])


def test_a_source_without_numbers_proves_nothing() -> None:
    b = Builder(symbolic_batch=False)
    x = b.input((1, 2), 0)
    undefined = b.graph(
        [b.elementwise(ops.Sqrt(), b.minus(b.negative(b.elementwise(ops.Abs(), x)), torch.ones(2)))], Origin()
    )
    with pytest.raises(ExtractionMismatch, match="no finite number"), np.errstate(all="ignore"):
        check_import(undefined, lambda y: [np.sqrt(-np.abs(y) - 1)], name="numpy", dtype=torch.float32)


def test_the_seed_decides() -> None:
    seen: list[Any] = []

    def recording(x: Any) -> Sequence[Any]:
        seen.append(x.copy())
        return source(lambda y: y)(x)

    for seed in (0, 0, 1):
        check_import(graph(), recording, name="numpy", dtype=torch.float32, seed=seed)
    first, again, other = seen[:6], seen[6:12], seen[12:]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert sum(bool((x >= 0).all()) for x in first) == len(SCALES)
