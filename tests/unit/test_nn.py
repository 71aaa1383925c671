"""The implicit layer as a torch module: gradients, extraction as one node, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify import ops, zoo
from lipverify.errors import UnsupportedModel, UsageError
from lipverify.nn import Implicit, implicit


def parts(seed: int, inputs: int = 3, size: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    w, u, b = (
        torch.randn(s, generator=generator, dtype=torch.float64)
        for s in ((size, size), (size, inputs), (size,))
    )
    return [0.7 * w / torch.linalg.matrix_norm(w, 2), u, b]


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_gradients_in_every_argument(activation: str) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    arguments = tuple(t.requires_grad_(True) for t in (x, *parts(2)))
    assert torch.autograd.gradcheck(lambda *a: implicit(*a, activation), arguments, atol=1e-6)
    assert torch.autograd.gradcheck(
        lambda x, w, u: implicit(x, w, u, None, activation), arguments[:3], atol=1e-6
    )


def test_the_operator_keeps_its_promises_to_torch() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(implicit, (x, *parts(1), "relu"))


def test_a_module_becomes_one_node() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Implicit(6, 5, "tanh"), nn.Linear(5, 2))
    graph = lv.extract(network, example=torch.zeros(2, 4))
    found = [node.op for node in graph.nodes if isinstance(node.op, ops.Implicit)]
    assert len(found) == 1
    assert isinstance(found[0].activation, ops.Tanh)
    assert graph.origin.import_check is not None
    x = torch.randn(3, 4)
    assert torch.allclose(lv.evaluate(graph, x), network(x), atol=1e-5)


def test_a_layer_without_a_unique_equilibrium_is_refused_by_name() -> None:
    layer = Implicit(2, 2)
    layer.recurrent.data = torch.tensor([[0.0, 3.0], [3.0, 0.0]])
    with pytest.raises(UnsupportedModel, match="unique"):
        lv.extract(nn.Sequential(layer), example=torch.zeros(2, 2))


def test_unknown_activations_are_refused() -> None:
    with pytest.raises(UsageError, match="relu, tanh, sigmoid"):
        implicit(torch.zeros(1, 3), *[p.float() for p in parts(0)], "swish")


def test_the_zoo_network_is_monotone_and_no_contraction() -> None:
    module, _ = zoo.load_module("digits-deq")
    recurrent = module[0].recurrent.detach().double()
    # W + W' <= 2 (1 - m) with m = 1/2, up to the rounding of W to float32.
    assert float(torch.linalg.eigvalsh(recurrent + recurrent.T)[-1]) < 1.001
    assert float(torch.linalg.matrix_norm(recurrent, 2)) > 1.0
