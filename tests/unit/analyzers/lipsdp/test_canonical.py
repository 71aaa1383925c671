"""The canonical form computes what the graph computes: without biases both are positively homogeneous and must agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.lipsdp.canonical import canonical_form
from lipverify.analyzers.lipsdp.comparators import sorting_network
from lipverify.analyzers.lipsdp.system import BlockSystem
from lipverify.errors import UnsupportedModel
from lipverify.frontends.builder import Builder, Value
from lipverify.interpreter import evaluate, evaluate_all
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.interval import Interval
from tests.networks import tensor


def run(system: BlockSystem, x: Tensor) -> Tensor:
    """The system with ReLU neurons and without constants. x [batch, inputs].

    Right for activations whose larger slope is on the positive side.
    """
    w: list[Tensor] = []
    for k, size in enumerate(system.sizes):
        v = x.new_zeros(len(x), size)
        if k in system.U:
            v = v + x @ system.U[k].T
        for j in range(k):
            if (k, j) in system.C:
                v = v + w[j] @ system.C[k, j].T
        w.append(v.clamp_min(0))
    y = x.new_zeros(len(x), system.outputs) if system.V0 is None else x @ system.V0.T
    for k, matrix in system.V.items():
        y = y + w[k] @ matrix.T
    return y


def homogeneous_vector_layer(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    n = v.shape[0]
    match rng.integers(10):
        case 0 | 1:
            return b.linear(v, tensor(rng, int(rng.integers(2, 9)), n))
        case 2:
            return b.elementwise(ops.ReLU(), v)
        case 3:
            return b.elementwise(ops.LeakyReLU(float(rng.uniform(-2, 1))), v)
        case 4:
            return b.elementwise(ops.Abs(), v)
        case 5:
            group = next(g for g in (6, 5, 4, 3, 2, 1) if n % g == 0)
            return b.add(ops.GroupSort(group, 0, bool(rng.integers(2))), (v,), v.batch)
        case 6:
            return b.plus(v, b.linear(b.elementwise(ops.ReLU(), v), tensor(rng, n, n)))
        case 7:
            return (
                b.concat([v, b.elementwise(ops.ReLU(), v)], 1)
                if n < 7
                else b.elementwise(ops.PReLU(tensor(rng, n).clamp(max=1)), v)
            )
        case 8:
            w = b.linear(v, tensor(rng, n, n))
            return b.maximum(v, w) if rng.random() < 0.5 else b.minimum(v, w)
        case _:
            size = 2 if n % 2 == 0 else 1
            return b.add(ops.Householder(tensor(rng, n // size, size)), (v,), v.batch)


def homogeneous_image_layer(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    match rng.integers(5):
        case 0 | 1:
            return b.conv(
                v, ops.Conv(tensor(rng, 4, v.shape[0], 3, 3), None, (1, 1), ((1, 1), (1, 1)), (1, 1))
            )
        case 2:
            relu = b.elementwise(ops.ReLU(), v)
            return (
                b.max_pool(relu, (2, 2), (2, 2), ((0, 1), (1, 0)), (1, 1), False)
                if min(v.shape[1:]) > 2
                else relu
            )
        case 3:
            return (
                b.add(ops.GroupSort(2, 0), (v,), v.batch)
                if v.shape[0] % 2 == 0
                else b.elementwise(ops.ReLU(), v)
            )
        case _:
            return b.max_pool(v, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), False)


def homogeneous_graph(rng: np.random.Generator) -> Graph:
    b = Builder(symbolic_batch=True)
    if rng.random() < 0.4:
        v = b.input((1, 2, 5, 5), 0)
        for index in range(int(rng.integers(1, 5))):
            b.where = f"image{index}"
            v = homogeneous_image_layer(b, v, rng)
        v = b.flatten(b.reduce(ops.ReduceMax, v, [2], False) if rng.random() < 0.5 else v, 1, -1)
        v = b.linear(v, tensor(rng, 6, v.shape[0]))
    else:
        v = b.input((1, int(rng.integers(2, 7))), 0)
    for index in range(int(rng.integers(1, 7))):
        b.where = f"layer{index}"
        v = homogeneous_vector_layer(b, v, rng)
    return b.graph([v], Origin())


@pytest.mark.parametrize("seed", range(80))
def test_same_function(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = homogeneous_graph(rng)
    x = torch.tensor(rng.standard_normal((20, *graph.input_shape)))
    expected = evaluate(graph.to(dtype=torch.float64), x).flatten(1)
    found = run(canonical_form(graph), x.flatten(1))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("seed", range(40))
def test_same_function_near_a_point_with_stable_neurons_gone(seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    graph = homogeneous_graph(rng).to(dtype=torch.float64)
    center = torch.tensor(rng.standard_normal((1, *graph.input_shape)))
    near = center + 1e-4 * torch.tensor(rng.uniform(-1, 1, (300, *graph.input_shape)))
    # Ranges seen on samples are no proof, but they are the exact ranges of these samples, which is all this test needs.
    values = evaluate_all(graph, near)
    boxes = {name: Interval(v.amin(0, keepdim=True), v.amax(0, keepdim=True)) for name, v in values.items()}
    whole, local = canonical_form(graph), canonical_form(graph, boxes)
    assert local.neurons <= whole.neurons
    expected = evaluate(graph, near).flatten(1)
    found = run(local, near.flatten(1))
    # A neuron whose slope is known is exact on the samples; constants vanish because there are no biases.
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("size", range(1, 17))
def test_sorting_networks_sort_all_zero_one_inputs(size: int) -> None:
    # The zero-one principle (Knuth, volume 3, section 5.3.4, theorem Z).
    words = (torch.arange(1 << size)[:, None] >> torch.arange(size)) & 1
    for stage in sorting_network(size):
        used = [wire for pair in stage for wire in pair]
        assert len(used) == len(set(used))
        for i, j in stage:
            low, high = torch.minimum(words[:, i], words[:, j]), torch.maximum(words[:, i], words[:, j])
            words[:, i], words[:, j] = low, high
    assert bool((words[:, 1:] >= words[:, :-1]).all())


def test_max_pooling_takes_the_relu_behind_it() -> None:
    b = Builder(symbolic_batch=True)
    v = b.input((1, 1, 4, 4), 0)
    v = b.max_pool(b.elementwise(ops.ReLU(), v), (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), False)
    system = canonical_form(b.graph([v], Origin()))
    assert system.sizes == (8, 4, 4)


def test_a_pair_costs_one_neuron() -> None:
    b = Builder(symbolic_batch=True)
    v = b.add(ops.GroupSort(2, 0), (b.input((1, 10), 0),), 0)
    assert canonical_form(b.graph([v], Origin())).neurons == 5


def test_what_has_no_form_is_refused_by_name() -> None:
    b = Builder(symbolic_batch=True)
    v = b.input((1, 4), 0)
    b.where = "attention"
    with pytest.raises(UnsupportedModel, match='Softmax "attention"'):
        canonical_form(b.graph([b.along(ops.Softmax, v, 1)], Origin()))
