"""Every network of the zoo through both front ends: the same function, the same operators, the same bound."""

from __future__ import annotations

import io
import warnings

import onnx
import pytest
import torch
from torch.nn.utils import parametrize

from lipverify import zoo
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.analyzers.tokens import Tokens
from lipverify.frontends.onnx import extract_onnx
from lipverify.interpreter import evaluate
from lipverify.ir.norm import Norm
from lipverify.ir.region import Bounded, Query
from lipverify.passes import simplify
from lipverify.pipeline import load


def exported(name: str) -> onnx.ModelProto:
    """The network as torch's exporter without further packages writes it; the batch axis is open."""
    module, card = zoo.load_module(name)
    for part in module.modules():
        if parametrize.is_parametrized(
            part, "weight"
        ):  # the exporter cannot write them; the folded weights are the same
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    file = io.BytesIO()
    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (zoo.example_input(card),),
            file,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    return onnx.load_from_string(file.getvalue())


ONE_WAY = {"digits-deq"}
"""An implicit layer has no ONNX operator."""


@pytest.mark.parametrize("name", sorted(set(zoo.names()) - ONE_WAY))
def test_both_ways_agree(name: str) -> None:
    by_torch = load(f"zoo:{name}")
    by_onnx = simplify(extract_onnx(exported(name)))
    for graph in (by_torch, by_onnx):
        check = graph.origin.import_check
        assert check is not None
        assert check.max_abs_difference <= 1e-4 * check.max_abs_output
    x = zoo.points(name, 8)[0].double()
    left, right = (evaluate(graph.to(dtype=torch.float64), x) for graph in (by_torch, by_onnx))
    assert torch.allclose(left, right, rtol=1e-5, atol=1e-5 * float(left.abs().max()))
    claim = zoo.card(name).claim
    if claim is not None and claim.within is not None:
        query = Query(Norm(claim.norm), Norm(claim.norm), Bounded(claim.within))
        upper = Tokens().bound(by_torch, query, Compute()).upper
        assert upper is not None
        assert float(upper) <= claim.constant
        # The exporter spells tanh GELU as products, which importer and checker put together.
        again = Tokens().bound(by_onnx, query, Compute()).upper
        assert again is not None
        assert float(again) == pytest.approx(float(upper), rel=1e-4)
        return
    bounds = [Product().bound(graph, Query(), Compute()).upper for graph in (by_torch, by_onnx)]
    assert bounds[0] is not None
    assert bounds[1] is not None
    assert float(bounds[1]) == pytest.approx(float(bounds[0]), rel=1e-4)
