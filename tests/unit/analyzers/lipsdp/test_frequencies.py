"""LipSDP over frequencies: valid for zero padding, as tight as its multipliers allow, every rounding accounted for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.lipsdp.analyzer import LipSDP, LipSDPFast
from lipverify.analyzers.lipsdp.frequencies import analyzer as frequencies
from lipverify.analyzers.lipsdp.frequencies import form as forms
from lipverify.analyzers.lipsdp.frequencies.analyzer import ChannelMultipliers, LipSDPFrequencies
from lipverify.analyzers.lipsdp.frequencies.elimination import Frequencies
from lipverify.analyzers.lipsdp.frequencies.form import form_of
from lipverify.analyzers.lipsdp.frequencies.proof import above, proved
from lipverify.analyzers.lipsdp.frequencies.search import Multipliers, Search, closed_form, squares
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.certificates.nodes import described
from lipverify.certificates.writing import Writer
from lipverify.errors import NotCovered, RefutedCertificate, UnsupportedModel
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Node
from lipverify.ir.norm import Norm
from lipverify.ir.op import Input, Op
from lipverify.ir.region import Query


class Builder:
    """A graph under construction; shapes are found by evaluating what is there."""

    def __init__(self, seed: int, *shape: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes = [Node("x", Input(), (), shape)]

    def weights(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.tensor(self.rng.standard_normal(shape) * scale)

    def add(self, op: Op, *inputs: str) -> str:
        name = f"n{len(self.nodes)}"
        given = inputs or (self.nodes[-1].name,)
        graph = Graph((*self.nodes, Node(name, op, given, (1,))), (name,))
        shape = tuple(evaluate(graph, torch.zeros(1, *self.nodes[0].shape, dtype=torch.float64)).shape[1:])
        self.nodes.append(Node(name, op, given, shape))
        return name

    def conv(
        self,
        out: int,
        taps: int,
        *inputs: str,
        stride: int = 1,
        pad: int = 0,
        dilation: int = 1,
        groups: int = 1,
    ) -> str:
        source = self[inputs[0]] if inputs else self.nodes[-1]
        axes = len(source.shape) - 1
        inner = source.shape[0] // groups
        weight = self.weights(out, inner, *(taps,) * axes, scale=1 / math.sqrt(inner * taps**axes))
        op = ops.Conv(
            weight, self.weights(out), (stride,) * axes, ((pad, pad),) * axes, (dilation,) * axes, groups
        )
        return self.add(op, *inputs)

    def dense(self, out: int) -> str:
        self.add(ops.Reshape((self.nodes[-1].size,)))
        return self.add(ops.Linear(self.weights(out, self.nodes[-1].size, scale=0.3), None))

    def __getitem__(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def graph(self) -> Graph:
        return Graph(tuple(self.nodes), (self.nodes[-1].name,))


def plain() -> Graph:
    b = Builder(0, 2, 7, 6)
    b.conv(3, 3, stride=2, pad=1)
    b.add(ops.ReLU())
    b.conv(4, 3, pad=1)
    b.add(ops.ReLU())
    b.dense(5)
    b.add(ops.ReLU())
    b.add(ops.Linear(b.weights(3, 5), None))
    return b.graph()


def residual() -> Graph:
    """Strides in both branches, a normalisation, a slope below 0, a mean over all positions."""
    b = Builder(1, 2, 6, 6)
    first = b.add(ops.ReLU(), b.conv(3, 3, pad=1))
    inner = b.add(ops.LeakyReLU(0.2), b.conv(4, 3, first, stride=2, pad=1))
    var = torch.tensor(b.rng.uniform(0.5, 2.0, 4))
    inner = b.add(
        ops.BatchNorm(b.weights(4), b.weights(4), b.weights(4), var, 1e-5), b.conv(4, 3, inner, pad=1)
    )
    short = b.conv(4, 1, first, stride=2)
    b.add(ops.GELU(False), b.add(ops.Add(), inner, short))
    b.add(ops.ReduceMean((1, 2), False))
    b.add(ops.Linear(b.weights(3, 4), None))
    return b.graph()


def pooled() -> Graph:
    """Activations before a maximum, overlapping means, dilation, groups."""
    b = Builder(2, 2, 8, 8)
    b.conv(4, 3, pad=2, dilation=2)
    b.add(ops.ReLU())
    b.add(ops.MaxPool((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1)))
    b.conv(4, 3, pad=1, groups=2)
    b.add(ops.Tanh())
    b.add(ops.AvgPool((2, 2), (1, 1), ((0, 0), (0, 0)), True, (0, 0)))
    b.dense(3)
    return b.graph()


def shortcut() -> Graph:
    """Every second position with more channels, as in the first residual networks; two convolutions without anything between."""
    b = Builder(3, 2, 6, 6)
    first = b.add(ops.ReLU(), b.conv(3, 3, pad=1))
    thin = b.add(ops.Slice(2, 0, 6, 2), b.add(ops.Slice(1, 0, 6, 2), first))
    wide = b.add(ops.Pad(((1, 2), (0, 0), (0, 0))), thin)
    inner = b.conv(6, 3, b.conv(2, 3, first, pad=1), stride=2, pad=1)
    b.add(ops.ReLU(), b.add(ops.Sub(), inner, wide))
    b.dense(2)
    return b.graph()


def signal() -> Graph:
    """One axis; the output has positions."""
    b = Builder(4, 2, 9)
    b.conv(3, 3, stride=2, pad=1)
    b.add(ops.ReLU())
    b.conv(2, 3, pad=1)
    return b.graph()


GRAPHS = {f.__name__: f for f in (plain, residual, pooled, shortcut, signal)}


def steepest(graph: Graph, count: int = 60) -> float:
    """The largest norm of a Jacobian at random points of several sizes."""
    generator = torch.Generator().manual_seed(0)
    best = 0.0
    for k in range(count):
        x = torch.randn(1, *graph.input_shape, generator=generator, dtype=torch.float64) * 10 ** (k % 4 - 2.0)
        jacobian = torch.autograd.functional.jacobian(lambda x: evaluate(graph, x).flatten(), x).flatten(1)
        best = max(best, float(torch.linalg.matrix_norm(jacobian, 2)))
    return best


def bound(graph: Graph, evaluations: int) -> float:
    found = [Frequencies(form_of(graph))]
    first = closed_form(found)
    assert first is not None
    best, _ = Search(found, Compute(), evaluations=evaluations).run(first)
    upper = proved(found, best)
    assert upper is not None
    return float(upper)


@pytest.mark.parametrize("name", GRAPHS)
def test_bounds_lie_between_the_best_multipliers_of_all_neurons_and_the_closed_form(name: str) -> None:
    graph = GRAPHS[name]()
    best, first = bound(graph, 40), bound(graph, 0)
    every = LipSDP().bound(graph, Query(), Compute()).upper
    assert every is not None
    assert steepest(graph) <= best <= first
    # One multiplier a channel is a special case of one a neuron.
    assert float(every) <= best * (1 + 1e-4)
    assert best <= 3 * float(every)


@pytest.mark.parametrize("name", GRAPHS)
def test_proofs_cost_next_to_nothing_and_never_give_less(name: str) -> None:
    found = [Frequencies(form_of(GRAPHS[name]()))]
    told: list[float] = []
    multipliers = closed_form(found, told.append)
    assert multipliers is not None
    value = squares(found, multipliers)
    upper = proved(found, multipliers)
    assert value is not None
    assert upper is not None
    assert told == pytest.approx([math.sqrt(float(value.max()))])
    assert (
        math.sqrt(float(value.max())) * (1 - 1e-13)
        <= float(upper)
        <= math.sqrt(float(value.max())) * (1 + 1e-8)
    )


@pytest.mark.parametrize("name", GRAPHS)
def test_slabs_of_frequencies_are_the_whole_of_them(name: str) -> None:
    """Multipliers, values, gradients and proofs, a column at a time and all columns at once."""
    whole = [Frequencies(form_of(GRAPHS[name]()))]
    slabs = whole[0].slabs(100)
    assert len(slabs) == len(whole[0].columns)
    assert (len(slabs) > 1) is (name != "signal")
    some, other = closed_form(whole), closed_form(slabs)
    assert some is not None
    assert other is not None
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(some.all, other.all, strict=True))
    found = []
    for each in (whole, slabs):
        given = Multipliers(tuple(m.clone().requires_grad_() for m in some.channels), some.neurons)
        value = squares(each, given)
        assert value is not None
        # Eigenvalues of one frequency, with its multiplicity, or of the sum: largest ones are compared.
        found.append((value.max().detach(), torch.cat(torch.autograd.grad(value.max(), given.channels))))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-10)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-5, atol=1e-8 * float(found[0][1].abs().max()))
    a, b = proved(whole, some), proved(slabs, some)
    assert a is not None
    assert b is not None
    assert float(found[0][0].sqrt()) * (1 - 1e-13) <= float(b) <= float(a) * (1 + 1e-9)


def test_infeasible_multipliers_prove_nothing() -> None:
    found = [Frequencies(form_of(plain()))]
    multipliers = closed_form(found)
    assert multipliers is not None
    larger = Multipliers(tuple(4.0 * m for m in multipliers.channels), multipliers.neurons)
    assert squares(found, larger) is None
    assert proved(found, larger) is None


def test_a_convolution_alone_has_the_norm_of_its_matrix_on_a_torus_that_nothing_wraps_around() -> None:
    """Differences of neighbours: on a torus of three points, which wraps around, the bound would be below the norm."""
    weight = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    op = ops.Conv(weight, None, (1,), ((1, 0),), (1,))
    graph = Graph((Node("x", Input(), (), (1, 3)), Node("y", op, ("x",), (1, 3))), ("y",))
    norm = steepest(graph, 1)
    form = form_of(graph)
    assert form.torus[1, 1] == (4, 1)
    square = squares([Frequencies(form)], Multipliers(()))
    assert square is not None
    assert norm <= math.sqrt(float(square.max()))
    wrapped = squares([Frequencies(replace(form, torus={(1, 1): (3, 1)}))], Multipliers(()))
    assert wrapped is not None
    assert math.sqrt(float(wrapped.max())) < norm - 0.05


def test_a_window_between_two_convolutions_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the block that cuts to the window, the second convolution would read what the first leaves outside."""
    form = form_of(shortcut())
    assert [block.name for block in form.blocks if "window" in block.name]

    def kept(
        self: forms._Compiler, x: forms.Signal, kernel: forms.Kernel, size: forms.Pair, name: str
    ) -> forms.Signal:
        return convolved(self, replace(x, inside=True), kernel, size, name)

    convolved = forms._Compiler.convolved
    monkeypatch.setattr(forms._Compiler, "convolved", kept)
    assert not [block.name for block in form_of(shortcut()).blocks if "window" in block.name]


def test_above_is_above() -> None:
    """Against forty digits of the same expression."""
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(0)
    root = rng.standard_normal((4, 4)) + 1j * rng.standard_normal((4, 4))
    a = torch.tensor(root @ root.conj().T + 0.01 * np.eye(4))
    a = (a + a.mH) / 2
    b = torch.tensor(rng.standard_normal((4, 3)) + 1j * rng.standard_normal((4, 3)))
    found = above(a[None], b[None])
    assert found is not None
    with mpmath.workdps(40):
        exact = (
            mpmath.matrix(b.mH.tolist())
            * mpmath.inverse(mpmath.matrix(a.tolist()))
            * mpmath.matrix(b.tolist())
        )
        rest = mpmath.matrix(found[0].tolist()) - exact
        smallest = min(mpmath.re(e) for e in mpmath.eighe(rest, eigvals_only=True))
    assert 0 <= smallest < 1e-6


def test_searches_are_the_same_for_the_same_network_and_keep_the_best() -> None:
    found = [Frequencies(form_of(plain()))]
    first = closed_form(found)
    assert first is not None
    runs = [Search(found, Compute(), evaluations=15).run(first)[0] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0].all, runs[1].all, strict=True))
    again, none = (
        squares(found, m) for m in (runs[0], Search(found, Compute(), evaluations=0).run(first)[0])
    )
    assert again is not None
    assert none is not None
    assert float(again.max()) < float(none.max())


def test_float32_is_for_searching_alone() -> None:
    form = form_of(residual())
    single, double = [Frequencies(form, single=True)], [Frequencies(form)]
    a, b = closed_form(single), closed_form(double)
    assert a is not None
    assert b is not None
    assert all(torch.allclose(x, y, rtol=1e-3) for x, y in zip(a.all, b.all, strict=True))
    assert proved(double, a) is not None


def test_networks_too_large_for_one_program_are_answered_over_frequencies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lipverify.analyzers.lipsdp.analyzer.whole_fits", lambda graph, compute: False)
    graph = plain()
    assert LipSDP().reject(graph, Query()) is None
    found = LipSDP().bound(graph, Query(), Compute())
    product = Product().bound(graph, Query(), Compute()).upper
    assert isinstance(found.evidence, ChannelMultipliers)
    assert found.evidence.notes == ("one multiplier a channel, over frequencies",)
    assert found.upper is not None
    assert product is not None
    assert steepest(graph) <= float(found.upper) < float(product)


def test_the_closed_form_answers_where_dense_matrices_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipverify.analyzers.lipsdp.canonical.MAX_BYTES", 50_000)
    found = LipSDPFast().bound(plain(), Query(), Compute())
    assert isinstance(found.evidence, ChannelMultipliers)


def one(op: Op, *shape: int) -> Graph:
    return Graph((Node("x", Input(), (), shape), Node("y", op, ("x",), shape)), ("y",))


@pytest.mark.parametrize(
    ("graph", "said"),
    [(one(ops.ReLU(), 4), "no positions"), (one(ops.Softmax(0), 2, 3, 3), "no form over frequencies")],
)
def test_refusals_name_the_node(graph: Graph, said: str) -> None:
    reason = LipSDPFrequencies().reject(graph, Query())
    assert reason is not None
    assert said in reason
    with pytest.raises(UnsupportedModel, match=said):
        LipSDPFrequencies().bound(graph, Query(), Compute())


def test_other_norms_are_refused() -> None:
    assert "l2 to l2" in str(LipSDPFrequencies().reject(plain(), Query(Norm.LINF, Norm.LINF)))


def test_memory_is_counted_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frequencies, "available_memory", lambda device: 1000)
    assert "GiB for symbols at every frequency" in str(LipSDPFrequencies().reject(plain(), Query()))


def in_the_checker(graph: Graph, upper_times: float = 1.0) -> float:
    """The limit that the checker takes for the closed form, over the bound; none where it refuses."""
    certificate = frequencies.bound_frequencies(
        LipSDPFrequencies(), graph, Query(), Compute(), searched=False
    )
    program = described(graph).program
    writer = Writer(graph, program, np.zeros((0, program.steps[0].size)))
    evidence = certificate.evidence
    assert isinstance(evidence, ChannelMultipliers)
    fact = evidence.proof(writer, writer.part(None, ("l2", "l2"), upper_times * float(certificate.upper)))
    return writer.limit(fact) / float(certificate.upper)


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_the_checker_proves_the_bound_from_its_multipliers(name: str) -> None:
    assert in_the_checker(GRAPHS[name]()) <= 1.0 + 2.0**-22
    with pytest.raises(RefutedCertificate):
        in_the_checker(GRAPHS[name](), 0.9)


@pytest.mark.parametrize(
    ("name", "said"), [("signal", "end in values over positions"), ("pooled", "over frequencies")]
)
def test_what_the_checker_has_no_form_for_is_said(name: str, said: str) -> None:
    with pytest.raises(NotCovered, match=said):
        in_the_checker(GRAPHS[name]())


def test_deep_networks_whose_multipliers_shrink_from_block_to_block_are_proved() -> None:
    """Errors of an entry are shared by two diagonals in proportion: else those of the output take a multiplier of 1e-12 whole."""
    b = Builder(5, 1, 6, 6)
    for _ in range(10):
        b.conv(4, 3, pad=1)
        b.nodes[-1] = replace(b.nodes[-1], op=replace(b.nodes[-1].op, weight=3.0 * b.nodes[-1].op.weight))
        b.add(ops.ReLU())
    b.dense(2)
    found = [Frequencies(form_of(b.graph()))]
    first = closed_form(found)
    assert first is not None
    assert float(first.channels[-1].max()) < 1e-12
    upper, seen = proved(found, first), squares(found, first)
    assert upper is not None
    assert seen is not None
    assert float(seen.max().sqrt()) <= float(upper) <= float(seen.max().sqrt()) * (1 + 1e-6)
