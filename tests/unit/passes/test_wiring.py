"""Index maps of views: every entry is traced to the computed entry it copies, and maps are emitted with few operators."""

from __future__ import annotations

import pytest
import torch

from lipverify import ops
from lipverify.frontends.builder import Builder, Value
from lipverify.interpreter import evaluate_all
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.op import Op
from lipverify.passes.wiring import Wiring, is_view, view_ops
from lipverify.rules import forward


def _graph() -> Graph:
    b = Builder(symbolic_batch=True)
    x = b.input((1, 4, 2, 3), 0)
    y = b.elementwise(ops.Sin(), x)
    views: list[Value] = [
        b.add(ops.Transpose((2, 0, 1)), (y,), 0),
        b.add(ops.DepthToSpace(2, True), (y,), 0),
        b.add(ops.DepthToSpace(2, False), (x,), 0),
        b.add(ops.Upsample((1, 2, 3)), (y,), 0),
        b.add(ops.Pad(((0, 0), (1, 0), (2, 1)), "reflect"), (y,), 0),
        b.add(ops.Pad(((0, 0), (1, 0), (2, 1)), "circular"), (x,), 0),
        b.add(ops.Slice(0, 1, 4, 2), (x,), 0),
        b.add(ops.Gather(2, torch.tensor([2, 0, 2])), (y,), 0),
    ]
    flat = [b.reshape(v, (1, v.source_shape[1] * v.source_shape[2] * v.source_shape[3])) for v in views]
    return b.graph([b.concat(flat, 1)], Origin())


def test_every_entry_is_a_copy_of_the_entry_it_is_traced_to() -> None:
    graph = _graph()
    wiring = Wiring(graph)
    ids = wiring.ids(graph.output.name)
    values = evaluate_all(graph, torch.randn(3, 4, 2, 3, dtype=torch.float64))
    assert {node.op.kind() for node in wiring.owners(ids)} == {"Input", "Sin"}
    for owner in wiring.owners(ids):
        start = wiring.start(owner)
        here = (ids >= start) & (ids < start + owner.size)
        copied = values[owner.name].flatten(1)[:, wiring.local(ids[here])]
        assert torch.equal(values[graph.output.name][:, here], copied)


def test_padding_with_numbers_is_no_view() -> None:
    b = Builder(symbolic_batch=True)
    v = b.add(ops.Pad(((1, 0),)), (b.input((1, 3), 0),), 0)
    assert not is_view(b.graph([v], Origin()).output)


@pytest.mark.parametrize(
    ("have", "steps", "expected"),
    [
        ((2, 3), [], []),
        ((2, 3), [ops.Reshape((6,))], ["Reshape"]),
        ((2, 3, 4), [ops.Transpose((2, 0, 1))], ["Transpose"]),
        ((2, 3, 4), [ops.Transpose((2, 0, 1)), ops.Reshape((4, 6))], ["Transpose", "Reshape"]),
        ((4, 2, 3), [ops.Slice(0, 1, 4, 2)], ["Gather"]),
        ((4, 2, 3), [ops.Gather(1, torch.tensor([1, 0, 1]))], ["Gather"]),
        (
            (4, 3),
            [ops.Gather(0, torch.tensor([2, 0])), ops.Gather(1, torch.tensor([1, 0]))],
            ["Reshape", "Gather", "Reshape"],
        ),
    ],
)
def test_maps_are_emitted_with_few_operators(
    have: tuple[int, ...], steps: list[Op], expected: list[str]
) -> None:
    positions = torch.arange(torch.Size(have).numel()).reshape(1, *have)
    wanted = positions
    for op in steps:
        wanted = forward(op, wanted)
    found = view_ops(have, tuple(wanted.shape[1:]), wanted.squeeze(0))
    assert [op.kind() for op in found] == expected
    for op in found:
        positions = forward(op, positions)
    assert torch.equal(positions, wanted)
