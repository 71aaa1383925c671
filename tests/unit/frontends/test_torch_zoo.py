"""Every network of the model zoo through the torch front end."""

from __future__ import annotations

import pytest
import torch

from lipverify import zoo
from lipverify.frontends.torch_export import extract
from lipverify.interpreter import evaluate
from tests.tiers import also


@pytest.mark.parametrize(
    "name", [also(n, "test_zoo_both_ways.py reads it too") if k % 4 else n for k, n in enumerate(zoo.names())]
)
def test_zoo_network(name):
    module, card = zoo.load_module(name)
    graph = extract(module, zoo.example_input(card))
    x, _ = zoo.points(name, 6)
    x = x.to(torch.float32)
    with torch.no_grad():
        wanted = module(x)
    torch.testing.assert_close(evaluate(graph, x), wanted, rtol=1e-5, atol=1e-5)
    assert graph.parameters() > 0
