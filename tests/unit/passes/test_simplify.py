"""Cleaning passes, the fixed point, and the differential check that refutes a wrong pass."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lipverify import ops
from lipverify.errors import InternalError
from lipverify.frontends.builder import Builder, Value
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Node, Origin
from lipverify.ir.op import Input, Op
from lipverify.passes import simplify
from lipverify.passes.agreement import check_agreement
from lipverify.passes.drop_identities import drop_identities
from lipverify.passes.merge_duplicates import merge_duplicates
from lipverify.passes.rewriting import Draft, substitute


def _line(*steps: Op, shape: tuple[int, ...] = (2, 3)) -> Graph:
    b = Builder(symbolic_batch=True)
    v = b.elementwise(ops.Sin(), b.input((1, *shape), 0))
    for op in steps:
        v = b.add(op, (v,), 0)
    return b.graph([b.elementwise(ops.Tanh(), v)], Origin())


def _same(before: Graph, after: Graph) -> None:
    x = torch.randn(5, *before.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    old, new = (evaluate(graph.to(dtype=torch.float64), x) for graph in (before, after))
    torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "steps",
    [
        [ops.Reshape((2, 3))],
        [ops.Reshape((6,)), ops.Reshape((3, 2)), ops.Reshape((2, 3))],
        [ops.Transpose((0, 1))],
        [ops.Transpose((1, 0)), ops.Transpose((1, 0))],
        [ops.Slice(1, 0, 3)],
        [ops.Gather(1, torch.tensor([0, 1, 2]))],
        [ops.Gather(1, torch.tensor([2, 0, 1])), ops.Gather(1, torch.tensor([1, 2, 0]))],
        [ops.Expand((2, 3))],
        [ops.Pad(((0, 0), (0, 0)))],
        [ops.Upsample((1, 1))],
        [ops.Scale(None, None)],
        [ops.Scale(torch.ones(3), torch.zeros(()))],
        [ops.DivideBy(torch.tensor(1.0))],
        [ops.Power(1.0)],
        [ops.Concat(0)],
        [ops.Maximum()],
        [ops.GroupSort(1, 0)],
        [ops.Reshape((1, 6)), ops.Transpose((1, 0)), ops.Reshape((2, 3))],
    ],
    ids=repr,
)
def test_identities_disappear(steps: list[Op]) -> None:
    before = _line(*steps)
    after = simplify(before)
    assert after.operators() == {"Sin": 1, "Tanh": 1}
    _same(before, after)


@pytest.mark.parametrize(
    "step",
    [
        ops.Reshape((3, 2)),
        ops.Transpose((1, 0)),
        ops.Slice(1, 0, 2),
        ops.Gather(1, torch.tensor([0, 2, 1])),
        ops.Gather(1, torch.tensor([0, 1, 1])),
        ops.Expand((2, 3)),
        ops.Pad(((0, 0), (0, 1))),
        ops.Scale(torch.tensor([1.0, 1.0, 1.0 + 2**-23]), None),
        ops.Scale(None, torch.tensor([0.0, 0.0, 1e-30])),
        ops.DivideBy(torch.tensor(2.0)),
    ],
    ids=repr,
)
def test_near_identities_stay(step: Op) -> None:
    before = _line(step, shape=(2, 1) if isinstance(step, ops.Expand) else (2, 3))
    assert simplify(before).digest == before.digest
    assert drop_identities(before) is before


def test_two_transposes_are_one() -> None:
    before = _line(ops.Transpose((1, 2, 0)), ops.Transpose((1, 0, 2)), shape=(2, 3, 4))
    after = simplify(before)
    assert after.operators() == {"Sin": 1, "Transpose": 1, "Tanh": 1}
    _same(before, after)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (ops.ReLU(), ops.ReLU(), ops.ReLU()),
        (ops.ReLU(), ops.Clip(-math.inf, 0.5), ops.Clip(0.0, 0.5)),
        (ops.Clip(-math.inf, 0.5), ops.ReLU(), ops.Clip(0.0, 0.5)),
        (ops.Clip(-0.5, math.inf), ops.ReLU(), ops.ReLU()),
        (ops.Clip(-0.5, 0.2), ops.Clip(-0.1, 0.7), ops.Clip(-0.1, 0.2)),
        (ops.Clip(-0.5, -0.2), ops.Clip(0.1, 0.7), ops.Clip(0.1, 0.1)),
        (ops.Clip(0.3, -0.3), ops.Clip(-0.1, 0.7), ops.Clip(-0.1, -0.1)),
    ],
    ids=repr,
)
def test_two_clips_are_one(first: Op, second: Op, expected: Op) -> None:
    before = _line(first, second)
    after = simplify(before)
    (found,) = [node.op for node in after if isinstance(node.op, ops.Clip | ops.ReLU)]
    assert type(found) is type(expected)
    assert vars(found) == vars(expected)
    _same(before, after)


def test_an_identity_as_the_output() -> None:
    b = Builder(symbolic_batch=True)
    x = b.input((1, 3), 0)
    v = b.add(ops.Scale(None, None), (b.elementwise(ops.Sin(), x),), 0)
    both = b.graph([v, b.add(ops.Reshape((3,)), (x,), 0)], Origin())
    after = simplify(both)
    assert after.operators() == {"Sin": 1}
    for index in (0, 1):
        _same(both.select(index), after.select(index))


def _two(first: Op, second: Op) -> Graph:
    b = Builder(symbolic_batch=True)
    x = b.input((1, 4), 0)
    return b.graph([b.plus(b.elementwise(first, x), b.elementwise(second, x))], Origin())


def test_equal_nodes_are_computed_once() -> None:
    before = _two(ops.Scale(torch.ones(4) * 2), ops.Scale(torch.ones(4) * 2))
    after = merge_duplicates(before)
    assert after.operators() == {"Scale": 1, "Add": 1}
    _same(before, after)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ops.Scale(torch.ones(4) * 2), ops.Scale(torch.ones(4) * 3)),
        (ops.Scale(torch.ones(4) * 2), ops.Scale(None, torch.ones(4) * 2)),
        (ops.Sin(), ops.Cos()),
        (ops.Power(2.0), ops.Power(3.0)),
        (ops.Sub(), ops.Sub()),
    ],
    ids=repr,
)
def test_different_nodes_stay_apart(first: Op, second: Op) -> None:
    if isinstance(first, ops.Sub):  # a - b is not b - a
        b = Builder(symbolic_batch=True)
        x = b.input((1, 4), 0)
        y = b.elementwise(ops.Sin(), x)
        before = b.graph([b.times(b.minus(x, y), b.minus(y, x))], Origin())
    else:
        before = _two(first, second)
    assert merge_duplicates(before) is before


def _perceptron() -> Graph:
    rng = torch.Generator().manual_seed(1)
    b = Builder(symbolic_batch=True)
    v: Value = b.input((1, 5), 0)
    for width in (7, 6):
        v = b.linear(v, torch.randn(width, v.shape[0], generator=rng), torch.randn(width, generator=rng))
        v = b.elementwise(ops.ReLU(), v)
    return b.graph([v], Origin())


def test_a_graph_without_patterns_comes_back_as_it_is() -> None:
    graph = _perceptron()
    assert simplify(graph).digest == graph.digest
    assert simplify(graph).outputs == graph.outputs


def test_unneeded_nodes_are_removed() -> None:
    graph = _perceptron()
    unused = Node("unused", ops.Tanh(), (graph.input.name,), graph.input_shape)
    assert simplify(replace(graph, nodes=(*graph.nodes, unused))).digest == graph.digest


@pytest.mark.parametrize(
    "wrong",
    [
        lambda op: replace(op, weight=op.weight * (1 + 1e-6)),
        lambda op: replace(op, bias=None),
        lambda op: replace(op, bias=op.bias.flip(0)),
        lambda op: replace(op, weight=-op.weight),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_check_refutes_a_pass_that_changes_the_function(wrong, large: bool, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    if large:
        monkeypatch.setattr("lipverify.passes.agreement._EVERY_NODE", 10)
    graph = _perceptron()
    nodes = [replace(node, op=wrong(node.op)) if i == 1 else node for i, node in enumerate(graph.nodes)]
    with pytest.raises(InternalError, match="bad_pass changed"):
        check_agreement(graph, replace(graph, nodes=tuple(nodes)), "bad_pass")
    assert check_agreement(graph, graph, "good_pass") == 0.0


def test_check_sees_a_change_that_no_output_shows() -> None:
    """Every node that keeps its name keeps its function, also where a dead unit hides it."""
    b = Builder(symbolic_batch=True)
    v = b.plus(b.input((1, 3), 0), torch.tensor(1.0))
    before = b.graph(
        [b.elementwise(ops.ReLU(), b.minus(b.elementwise(ops.Sin(), v), torch.tensor(9.0)))], Origin()
    )
    nodes = [replace(n, op=ops.Cos()) if isinstance(n.op, ops.Sin) else n for n in before.nodes]
    after = replace(before, nodes=tuple(nodes))
    _same(before, after)
    with pytest.raises(InternalError, match="bad_pass changed Sin"):
        check_agreement(before, after, "bad_pass")


def test_rewrite_of_another_shape_is_a_bug() -> None:
    graph = _perceptron()
    draft = Draft(graph, graph.output)
    with pytest.raises(InternalError, match="gives the shape"):
        draft.finish(draft.add(ops.Tanh(), graph.input.name))


def test_names_in_use_are_not_taken_again() -> None:
    b = Builder(symbolic_batch=True)
    b.where = "a"
    x = b.input((1, 3), 0, name="a.tanh")
    graph = b.graph([b.elementwise(ops.Sin(), x)], Origin())
    draft = Draft(graph, graph.output)
    name = draft.chain([ops.Tanh(), ops.Tanh(), ops.Tanh()], x.name)
    after = substitute(graph, {graph.output.name: draft.finish(name)})
    assert after.operators() == {"Tanh": 3}
    assert after.outputs == graph.outputs
    assert isinstance(after.input.op, Input)


@pytest.mark.parametrize("large", [False, True])
def test_check_compares_samples_that_are_single_numbers(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr("lipverify.passes.agreement._EVERY_NODE", 1)
    b = Builder(symbolic_batch=True)
    v = b.reduce(ops.ReduceMax, b.input((1, 3), 0), [1], False)
    before = b.graph([b.elementwise(ops.Sin(), v)], Origin())
    nodes = [replace(n, op=ops.Tanh()) if isinstance(n.op, ops.Sin) else n for n in before.nodes]
    assert check_agreement(before, before, "good_pass") == 0.0
    with pytest.raises(InternalError, match="bad_pass changed Sin"):
        check_agreement(before, replace(before, nodes=tuple(nodes)), "bad_pass")


@pytest.mark.parametrize(
    ("cuts", "left"),
    [(((0, 2), (2, 6)), 0), (((2, 6), (0, 2)), 1), (((0, 2), (3, 6)), 1), (((0, 3), (2, 6)), 1)],
)
def test_slices_put_together_again_are_the_tensor(cuts: tuple[tuple[int, int], ...], left: int) -> None:
    """All of it, in its order; anything else stays a concatenation."""
    nodes = [Node("x", Input(), (), (6,))]
    nodes += [Node(f"s{k}", ops.Slice(0, *cut), ("x",), (cut[1] - cut[0],)) for k, cut in enumerate(cuts)]
    size = sum(b - a for a, b in cuts)
    nodes.append(Node("y", ops.Concat(0), tuple(f"s{k}" for k in range(len(cuts))), (size,)))
    nodes.append(Node("z", ops.Abs(), ("y",), (size,)))
    found = simplify(Graph(tuple(nodes), ("z",)))
    assert found.operators().get("Concat", 0) == left
