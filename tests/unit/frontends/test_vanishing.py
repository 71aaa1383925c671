"""Products and quotients of stored numbers that underflow: the importers refuse them, whichever operator computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lipverify.errors import UnsupportedModel
from lipverify.frontends.onnx import extract_onnx
from lipverify.frontends.torch_export import extract
from tests.onnx_models import in_double, model, node

SMALL, LARGE = 2.0**-600, 2.0**600


def folded(op: str, kind: Any = np.float64, **stored: Any) -> Any:
    """y = x * op(stored numbers)."""
    nodes = [node(op, list(stored), ["w"]), node("Mul", ["x", "w"], ["y"])]
    if kind is np.float64:
        return in_double(nodes, (1, 1), stored)
    return model(nodes, (1, 1), 13, {name: np.asarray(value, kind) for name, value in stored.items()})


CASES = {
    "product": ("Mul", {"a": [SMALL], "b": [SMALL]}),
    "quotient": ("Div", {"a": [SMALL], "b": [LARGE]}),
    "subnormal": ("Mul", {"a": [2.0**-530], "b": [1.1 * 2.0**-530]}),
    "matrices": ("MatMul", {"a": [[SMALL]], "b": [[SMALL]]}),
    "gemm": ("Gemm", {"a": [[SMALL]], "b": [[SMALL]]}),
    "power": ("Pow", {"a": [SMALL], "b": [2.0]}),
    "reduction": ("ReduceProd", {"a": [[SMALL, SMALL]]}),
    "mean": ("ReduceMean", {"a": [[2.0**-1074, 2.0**-1074, 0.0, 0.0]]}),
    "norm": ("ReduceL2", {"a": [[SMALL, SMALL]]}),
    "exponential": ("Exp", {"a": [-800.0]}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_fold_that_vanishes_is_refused(case: str) -> None:
    op, stored = CASES[case]
    with pytest.raises(
        UnsupportedModel, match=r'"a".* too small for float64 .*scale the stored numbers'
    ) as caught:
        extract_onnx(folded(op, **stored))
    assert f'{op} "w_node"' in str(caught.value)


def test_a_fold_that_vanishes_in_float32_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="too small for float32"):
        extract_onnx(folded("Mul", np.float32, a=[1e-30], b=[1e-30]))


@pytest.mark.parametrize(
    ("op", "stored"),
    [
        ("Mul", {"a": [0.0], "b": [SMALL]}),
        ("Mul", {"a": [2.0**-1070], "b": [0.5]}),
        ("MatMul", {"a": [[1.0, 1.0]], "b": [[1.0], [-1.0]]}),
        ("MatMul", {"a": [[SMALL, 1.0]], "b": [[SMALL], [1.0]]}),
        ("ReduceL2", {"a": [[SMALL, 1.0]]}),
        ("Exp", {"a": [-700.0]}),
    ],
    ids=["zero", "exact", "cancelled", "beside a larger term", "norm", "exponential"],
)
def test_what_loses_nothing_is_folded(op: str, stored: dict[str, Any]) -> None:
    assert extract_onnx(folded(op, **stored)).nodes


def test_a_factor_of_a_stored_bias_may_not_vanish() -> None:
    numbers = {"a": np.full((1, 1), SMALL), "b": np.full((1, 1), SMALL)}
    gemm = node("Gemm", ["a", "b", "x"], ["y"], beta=2.0)
    with pytest.raises(UnsupportedModel, match="too small for float64"):
        extract_onnx(in_double([gemm], (1, 1), numbers))
    alpha = node("Gemm", ["x", "b", "c"], ["y"], beta=2.0**-149)
    numbers = {"b": np.ones((1, 1)), "c": np.full((1, 1), 2.0**-1000)}
    with pytest.raises(UnsupportedModel, match="too small for float64"):
        extract_onnx(in_double([alpha], (1, 1), numbers))


class Folded(nn.Module):
    def __init__(self, function: Any, *numbers: float) -> None:
        super().__init__()
        self.function = function
        self.numbers = nn.ParameterList([torch.full((2, 2), n, dtype=torch.float64) for n in numbers])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.function(*self.numbers)


FUNCTIONS = {
    "product": (torch.mul, (SMALL, SMALL)),
    "quotient": (torch.div, (SMALL, LARGE)),
    "matrices": (torch.matmul, (SMALL, SMALL)),
    "number": (lambda a: a * SMALL, (SMALL,)),
    "square": (torch.square, (SMALL,)),
    "norm": (lambda a: a / torch.linalg.vector_norm(a, dim=0, keepdim=True), (SMALL,)),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_parameters_of_a_module_that_vanish_are_refused(case: str) -> None:
    function, numbers = FUNCTIONS[case]
    with pytest.raises(UnsupportedModel, match=r"too small for float64 .*scale the stored numbers"):
        extract(Folded(function, *numbers), torch.zeros(2, 2, dtype=torch.float64))


def test_parameters_that_cancel_or_are_0_are_folded() -> None:
    for function, numbers in (
        (lambda a, b: a * b, (0.0, SMALL)),
        (lambda a, b: a * b, (2.0**-1070, 1.0)),
        (lambda a, b: a @ (b * torch.tensor([[1.0], [-1.0]])), (1.0, 1.0)),
    ):
        assert extract(Folded(function, *numbers), torch.zeros(2, 2, dtype=torch.float64)).nodes
