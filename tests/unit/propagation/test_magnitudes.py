"""Products of stored numbers that leave the range of float64 and come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.affine_runs import run_gain, runs
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.propagation.magnitudes import refuse_lost_products
from tests.networks import chain


def file(path: Path, factors: list[float]) -> Path:
    """x times one number after the other, in doubles."""
    names = ["x", *(f"h{k}" for k in range(len(factors) - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[k], f"w{k}"], [names[k + 1]]) for k in range(len(factors))]
    stored = [numpy_helper.from_array(np.eye(2) * f, f"w{k}") for k, f in enumerate(factors)]
    ends = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, [1, 2]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def scaled(factors: list[float]) -> Graph:
    return chain([f * torch.eye(2, dtype=torch.float64) for f in factors])


@pytest.mark.parametrize(
    "factors", [[1e-110] * 3 + [1e110] * 3, [1e110] * 3 + [1e-110] * 3, [1e-38] * 9 + [1e38] * 9]
)
def test_a_network_that_is_the_identity_by_way_of_nothing_is_refused(factors: list[float]) -> None:
    with pytest.raises(UnsupportedModel, match="float64 would lose the small ones"):
        refuse_lost_products(scaled(factors))


@pytest.mark.parametrize("factors", [[1e-60] * 3 + [1e60] * 3, [1e-110] * 9, [1e100] * 9, [1e-20, 1e20] * 30])
def test_what_loses_nothing_that_counts_is_taken(factors: list[float]) -> None:
    refuse_lost_products(scaled(factors))


def test_files_are_looked_at_where_they_are_read(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="float64 would lose the small ones"):
        lv.load(file(tmp_path / "net.onnx", [1e-110] * 3 + [1e110] * 3))


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2, Norm.LINF])
@pytest.mark.parametrize("factors", [[1e-110] * 3 + [1e110] * 3, [1e-200] * 2])
def test_gains_of_runs_count_what_underflows(norm: Norm, factors: list[float]) -> None:
    graph = chain([torch.tensor([[f, f / 2], [0.0, f]], dtype=torch.float64) for f in factors])
    (run,) = (run for run in runs(graph) if not isinstance(run.first.op, ops.Input) and len(run.nodes) > 1)
    found = run_gain(run, norm, norm).factors[0]
    # The product of the diagonals is a lower bound of every norm.
    assert float(found.value.log10()) >= sum(np.log10(f) for f in factors) - 1e-9


def test_layers_of_zeros_have_no_size() -> None:
    refuse_lost_products(chain([torch.zeros(1, 1)] * 4))
