"""Analyzers on a device that is not there: nothing mixes, results are the same, searches wait as often in every step."""

from __future__ import annotations

import pytest
import torch

from lipverify.analyzers.lipsdp.frequencies import analyzer as frequencies
from lipverify.analyzers.lipsdp.frequencies.elimination import Frequencies
from lipverify.analyzers.lipsdp.frequencies.form import form_of
from lipverify.analyzers.lipsdp.frequencies.search import Search, closed_form
from lipverify.analyzers.protocol import Compute
from lipverify.analyzers.registry import resolve
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from tests.pretended import CUDA, Pretended
from tests.unit.analyzers.lipsdp.test_frequencies import GRAPHS
from tests.unit.analyzers.local.test_devices import NETWORKS


def test_tensors_of_the_device_mix_with_no_others_and_are_counted() -> None:
    with Pretended() as device:
        x = torch.ones(3, 2).to("cuda")
        y = x @ torch.ones(2, 4, device="cuda:0", dtype=torch.float32)
        assert y.device == CUDA
        assert device.waits == 0
        assert float(y.sum()) == 24.0
        assert bool((y > 1).all())
        assert y.cpu().device.type == "cpu"
        assert y[y > 1].shape == (12,)
        assert device.waits == 4
        with pytest.raises(RuntimeError, match="on cuda:0 and on the CPU"):
            x @ torch.ones(2, 4)
        assert float((x + torch.tensor(1.0)).sum()) == 12.0


def test_gradients_pass_to_the_device_and_back() -> None:
    x = torch.ones(3, requires_grad=True)
    with Pretended():
        y = (x.to("cuda") ** 2).sum().cpu()
        (gradient,) = torch.autograd.grad(y, x)
    assert gradient.tolist() == [2.0, 2.0, 2.0]
    assert gradient.device.type == "cpu"


@pytest.mark.parametrize("name", ["plain", "residual", "pooled"])
def test_bounds_over_frequencies_are_those_of_the_cpu(name: str) -> None:
    graph, method = GRAPHS[name](), frequencies.LipSDPFrequencies()
    here = frequencies.bound_frequencies(method, graph, Query(), Compute(), searched=False)
    with Pretended() as device:
        there = frequencies.bound_frequencies(
            method, graph, Query(), Compute(device=torch.device("cuda")), searched=False
        )
    assert device.launches > 100
    assert float(there.upper) == pytest.approx(float(here.upper), rel=1e-9)


METHODS = ("product", "lipsdp-fast", "lipsdp", "local", "local:interval")


def on_the_device(name: str) -> tuple[float, float, Pretended]:
    """The bounds on the CPU and there, of a small dense network; around a point where the method asks for one."""
    graph = NETWORKS["relu"]
    region = Ball(torch.zeros(1, *graph.input_shape, dtype=torch.float64), 0.1, Norm.LINF)
    query, method = Query(region=region) if name.startswith("local") else Query(), resolve(name)
    here = method.bound(graph, query, Compute()).upper
    with Pretended() as device:
        there = method.bound(graph, query, Compute(device=torch.device("cuda"))).upper
    assert here is not None
    assert there is not None
    assert there.device.type == "cpu"
    return float(here), float(there), device


@pytest.mark.parametrize("name", METHODS)
def test_no_method_mixes_devices(name: str) -> None:
    here, there, device = on_the_device(name)
    assert there == pytest.approx(here, rel=1e-9)
    assert device.launches > 500 or name == "product"  # gains are proved on the CPU


def waits(graph: Graph, evaluations: int) -> int:
    """How often a search of so many evaluations waits."""
    with Pretended() as device:
        found = [Frequencies(form_of(graph), torch.device("cuda"))]
        first = closed_form(found)
        assert first is not None
        before = device.waits
        Search(found, Compute(device=torch.device("cuda")), evaluations=evaluations).run(first)
        return device.waits - before


def test_a_search_waits_as_often_in_every_evaluation() -> None:
    graph = GRAPHS["plain"]()
    blocks = len(form_of(graph).blocks)
    few, more = waits(graph, 5), waits(graph, 15)
    # A factorisation that may fail for each block, and what is left, which is taken to the CPU.
    assert (more - few) / 10 <= blocks + 1
