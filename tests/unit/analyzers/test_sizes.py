"""Products of bounded values have constants over all inputs; which attention has one is told apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.analyzers.sizes import Sizes
from lipverify.interpreter import evaluate, evaluate_all
from lipverify.ir.graph import Graph, Node
from lipverify.ir.norm import Norm
from lipverify.ir.op import Input, Op
from lipverify.ir.region import Query
from lipverify.rules import Unbounded
from tests.attention_networks import random_transformer

TOKENS, WIDTH = 4, 6


def attention(queries: bool, values: bool) -> Graph:
    """softmax(q k') v of tokens, with q = k normalised or not, and v normalised or not."""
    nodes = [Node("x", Input(), (), (TOKENS, WIDTH))]

    def add(name: str, op: Op, inputs: tuple[str, ...], shape: tuple[int, ...]) -> None:
        nodes.append(Node(name, op, inputs, shape))

    add("n", ops.RMSNorm((WIDTH,), None, 1e-2), ("x",), (TOKENS, WIDTH))
    q, v = "n" if queries else "x", "n" if values else "x"
    add("k", ops.Transpose((1, 0)), (q,), (WIDTH, TOKENS))
    add("s", ops.MatMul(), (q, "k"), (TOKENS, TOKENS))
    add("p", ops.Softmax(1), ("s",), (TOKENS, TOKENS))
    add("y", ops.MatMul(), ("p", v), (TOKENS, WIDTH))
    return Graph(tuple(nodes), ("y",))


def slope(graph: Graph, norm: Norm, scale: float, seed: int) -> float:
    """The largest slope met near random inputs."""
    generator = torch.Generator().manual_seed(seed)
    size = (200, *graph.input_shape)
    x = scale * torch.randn(size, generator=generator, dtype=torch.float64)
    step = torch.randn(size, generator=generator, dtype=torch.float64)
    step = 1e-3 * scale * step * torch.rand(200, *[1] * len(graph.input_shape), generator=generator)

    def length(part: Tensor) -> Tensor:
        return torch.linalg.vector_norm(part.flatten(1), ord=norm.order, dim=1)

    moved = evaluate(graph, x + step) - evaluate(graph, x)
    return float((length(moved) / length(step)).max())


@pytest.mark.parametrize(("queries", "values"), [(False, False), (True, False), (False, True)])
def test_attention_with_a_factor_that_is_not_bounded_is_refused(queries: bool, values: bool) -> None:
    with pytest.raises(Unbounded, match=r"Input|\"x\"|Transpose"):
        Product().bound(attention(queries, values), Query(), Compute())


@pytest.mark.parametrize("norm", list(Norm))
def test_attention_on_normalised_tokens_has_a_constant(norm: Norm) -> None:
    graph = attention(True, True)
    upper = Product().bound(graph, Query(norm, norm), Compute()).upper
    assert upper is not None
    assert bool(torch.isfinite(upper))
    for scale in (1e-6, 0.1, 1.0, 100.0):
        assert slope(graph, norm, scale, 0) <= float(upper)


def test_gates_of_bounded_values_have_a_small_constant() -> None:
    """|d(sigmoid(z) tanh(h))| <= |dh| + |dz|/4."""
    nodes = (
        Node("x", Input(), (), (3,)),
        Node("z", ops.Sigmoid(), ("x",), (3,)),
        Node("h", ops.Tanh(), ("x",), (3,)),
        Node("y", ops.Mul(), ("z", "h"), (3,)),
    )
    upper = Product().bound(Graph(nodes, ("y",)), Query(), Compute()).upper
    assert upper is not None
    assert 1.0 < float(upper) <= 1.25 + 1e-9


def test_values_and_slopes_of_random_transformers_stay_below() -> None:
    answered = 0
    for seed in range(14, 30):
        graph, _ = random_transformer(seed)
        sizes = Sizes.everywhere(graph)
        rng = np.random.default_rng(seed)
        x = torch.tensor(rng.normal(size=(64, *graph.input_shape)) * 10.0 ** rng.uniform(-5, 5, (64, 1, 1)))
        for name, value in evaluate_all(graph, x).items():
            for norm, most in sizes.of[name].items():
                met = torch.linalg.vector_norm(value.flatten(1), ord=norm.order, dim=1).max()
                assert float(met) <= float(most) * (1 + 1e-12), f"seed {seed}, {name}, {norm}"
        for norm in (Norm.L2, Norm.LINF)[: 1 + seed % 2]:
            try:
                upper = Product().bound(graph, Query(norm, norm), Compute()).upper
            except Unbounded:
                continue
            answered += 1
            if upper is not None:
                for scale in (1e-5, 1.0, 1e3):
                    assert slope(graph, norm, scale, seed) <= float(upper), f"seed {seed}, {norm}"
    assert answered > 2
