"""Operators that are linear in an input which other front ends store: their matrix is exact beside whatever is added."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lipverify.frontends.onnx import extract_onnx
from tests.onnx_models import in_double, node

Z = np.array([[[1.0, 2, 3, 4], [4, 3, 2, 7]]])
X = np.arange(12.0).reshape(1, 2, 6) - 3
CASES: dict[str, tuple[str, tuple[str, ...], tuple[int, ...], dict[str, Any], dict[str, Any]]] = {
    "scale of InstanceNormalization": ("InstanceNormalization", ("z", "x", "b"), (2,), {"z": Z}, {}),
    "scale of LayerNormalization": ("LayerNormalization", ("z", "x", "b4"), (4,), {"z": Z}, {}),
    "scale of BatchNormalization": (
        "BatchNormalization", ("z", "x", "b", "m", "v"), (2,), {"z": Z, "m": np.ones(2), "v": np.ones(2)}, {},
    ),
    "weights of Conv": ("Conv", ("z", "x", "b3"), (3, 2, 2), {"z": X}, {}),
    "bias of Conv": ("Conv", ("z", "w", "x"), (3,), {"z": X, "w": 1e17 * np.ones((3, 2, 2))}, {}),
    "bias of InstanceNormalization": ("InstanceNormalization", ("z", "s", "x"), (2,), {"z": Z, "s": 1e17 * np.ones(2)}, {}),
    "slope of PRelu": ("PRelu", ("z", "x"), (6,), {"z": X * 1e17}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_matrices_are_exact_beside_large_numbers_that_are_added(name: str) -> None:
    """A difference of two results lost the entries: scales beside a bias of 1e17 had a matrix of zeros."""
    op, names, shape, constants, attributes = CASES[name]
    opset = {"LayerNormalization": 17}.get(op, 15)
    found = []
    for bias in (0.0, 1e17):
        biases = {b: np.full(n, bias) for b, n in (("b", 2), ("b3", 3), ("b4", 4)) if b in names}
        source = in_double([node(op, names, ["y"], **attributes)], shape, {**constants, **biases})
        source.opset_import[0].version = opset
        graph = extract_onnx(source)
        (layer,) = [n.op for n in graph.nodes if n.op.kind() == "Linear"]
        found.append(layer.weight)
    assert torch.equal(*found)
    assert bool(found[0].any())
    if name.startswith("bias"):
        assert set(found[0].unique().tolist()) == {0.0, 1.0}


def test_the_same_tensor_may_be_data_and_bias() -> None:
    """Only the bias is left out, where one stored tensor is two operands."""
    source = in_double(
        [node("InstanceNormalization", ("z", "x", "b"), ["y"])], (2,), {"z": Z, "b": np.zeros(2)}
    )
    twice = in_double(
        [node("Conv", ("w", "x", "w1"), ["y"])], (4, 4, 1), {"w": np.ones((1, 4, 4)), "w1": np.ones(4)}
    )
    for model in (source, twice):
        model.opset_import[0].version = 15
        assert extract_onnx(model).nodes
    one = in_double(
        [node("LayerNormalization", ("z", "x", "z"), ["y"])], (4,), {"z": np.array([1.0, 2, 3, 5])}
    )
    one.opset_import[0].version = 17
    (layer,) = [n.op for n in extract_onnx(one).nodes if n.op.kind() == "Linear"]
    centred = np.array([1.0, 2, 3, 5]) - 2.75
    wanted = np.diag(centred / np.sqrt((centred**2).mean() + 1e-5))
    np.testing.assert_allclose(layer.weight.numpy(), wanted, rtol=1e-7, atol=1e-12)
