"""Masks of attention: stored -infinity ahead of a softmax is read, anywhere else it is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lipverify.checkers.evaluation import evaluate, shown
from lipverify.checkers.reader import Model, model_of_bytes
from lipverify.checkers.reader.agreement import agree
from tests.onnx_models import ints, model, random
from tests.unit.checkers.reader.test_operators import graph

N = 4
BELOW = np.tril(np.ones((N, N), bool))
MASK = np.where(BELOW, 0, -np.inf).astype(np.float32)
SLOPED = (MASK + random(N, N)).astype(np.float32)
LOWEST = np.float32(-np.inf)
PADDED = np.where(np.arange(N) < 2, 0, -np.inf).astype(np.float32)


def source(nodes: list[Any], stored: dict[str, Any]) -> Any:
    return model(nodes, [1, 2, N, N], 17, stored)


def read(nodes: list[Any], stored: dict[str, Any]) -> Model:
    return model_of_bytes("m.onnx", source(nodes, stored).SerializeToString())


def softmax(scores: Any, axis: int = -1) -> Any:
    with np.errstate(all="ignore"):
        e = np.exp(scores - scores.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


SAFE = ("Softmax s -> p", "IsNaN p -> n", "Where n zero p -> y")
ADDED = ("Add x m -> s", "Softmax s -> y")
READ: dict[str, tuple[list[Any], dict[str, Any], Any]] = {
    "added": (graph(*ADDED), {"m": MASK}, lambda x: softmax(x + MASK)),
    "a bias": (graph("Add m x -> s", "Softmax s -> y"), {"m": SLOPED}, lambda x: softmax(x + SLOPED)),
    "padded": (graph(*ADDED), {"m": PADDED}, lambda x: softmax(x + PADDED)),
    "another axis": (graph(*ADDED, Softmax={"axis": 2}), {"m": MASK}, lambda x: softmax(x + MASK, 2)),
    "a choice": (graph("Where b x low -> s", "Softmax s -> y"), {"b": BELOW, "low": LOWEST}, lambda x: softmax(x + MASK)),
    "the other choice": (graph("Not b -> c", "Where c low x -> s", "Softmax s -> y"), {"b": BELOW, "low": LOWEST},
                         lambda x: softmax(x + MASK)),
    "stored choices": (graph("Equal t zero -> b", "Where b low zero -> m", "Add x m -> s", *SAFE),
                       {"t": BELOW.astype(np.float32), "zero": np.float32(0), "low": LOWEST}, lambda x: softmax(x + MASK)),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_masks_ahead_of_a_softmax(name: str) -> None:
    nodes, stored, function = READ[name]
    found = read(nodes, stored)
    assert found.program is not None, found.reason
    assert found.data is not None
    x = np.random.default_rng(0).standard_normal((3, 2 * N * N))
    ours = shown(found.program.outputs[0].view, evaluate(found.program, x))
    np.testing.assert_allclose(
        ours.reshape(3, 2, N, N), function(x.reshape(3, 2, N, N)), rtol=1e-12, atol=1e-12
    )
    agree(found.data, found.program, 0)


EMPTY = MASK.copy()
EMPTY[1] = -np.inf
REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "a line of nothing": (graph(*ADDED), {"m": EMPTY}, "over no entry"),
    "an infinity above": (graph(*ADDED), {"m": -MASK}, "not finite"),
    "no number": (graph(*ADDED), {"m": MASK + np.nan}, "not finite"),
    "no softmax": (graph("Add x m -> s", "Relu s -> y"), {"m": MASK}, "anything but a softmax"),
    "an output": (graph("Add x m -> y"), {"m": MASK}, "anything but a softmax"),
    "a stored output": (graph("Identity m -> y"), {"m": MASK}, "not finite"),
    "a logarithm of it": (graph("Add x m -> s", "LogSoftmax s -> y"), {"m": MASK}, "but a softmax"),
    "taken off": (graph("Sub x m -> s", "Softmax s -> y"), {"m": MASK}, "not finite"),
    "times": (graph("Mul x m -> s", "Softmax s -> y"), {"m": MASK}, "not finite"),
    "turned round": (graph("Neg m -> w", "Add x w -> s", "Softmax s -> y"), {"m": MASK}, "not finite"),
    "a padding": (graph("Pad x p low -> s", "Softmax s -> y"), {"p": ints(0, 0, 0, 0, 0, 0, 0, 1), "low": LOWEST}, "infinity"),
    "compared": (graph("Equal m low -> b", "Where b zero x -> y"), {"m": MASK, "low": LOWEST, "zero": np.float32(0)}, "infinity"),
    "two masks": (graph("Add x m -> s", "Add s m -> t", "Softmax t -> y"), {"m": MASK}, "but a softmax"),
    "no number where there is no value": (graph("Log x -> s", *SAFE), {"zero": np.float32(0)}, "may have no value"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_infinities_anywhere_else(name: str) -> None:
    nodes, stored, words = REFUSED[name]
    found = read(nodes, stored)
    assert found.program is None
    assert words in found.reason
