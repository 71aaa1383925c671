"""Slices of concatenations read their parts: as many neurons as are needed, and bounds that know it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify import ops
from lipverify.frontends.builder import Builder, Value
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Origin
from lipverify.passes.read_parts import read_parts


def sequence(*steps: ops.Slice | ops.Reshape, sums: int = 3) -> Graph:
    """Three states of two numbers, side by side, and what reads them."""
    b = Builder(symbolic_batch=True)
    x = b.input((1, 2), 0)
    states: list[Value] = [b.elementwise(ops.Tanh(), x)]
    for _ in range(sums - 1):
        states.append(b.elementwise(ops.Sin(), states[-1]))
    v = b.add(ops.Reshape((sums, 2)), (b.add(ops.Concat(0), tuple(states), 0),), 0)
    for op in steps:
        v = b.add(op, (v,), 0)
    return b.graph([b.elementwise(ops.Sigmoid(), v)], Origin())


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([ops.Slice(0, 1, 2)], {"Tanh": 1, "Sin": 1, "Reshape": 1, "Sigmoid": 1}),
        ([ops.Slice(0, 0, 2)], {"Tanh": 1, "Sin": 1, "Reshape": 3, "Concat": 1, "Sigmoid": 1}),
        ([ops.Slice(0, 0, 3)], None),
        ([ops.Slice(1, 0, 1)], None),
        ([ops.Reshape((6,)), ops.Slice(0, 1, 5)], None),
    ],
    ids=["one", "two", "all", "a half of each", "across parts"],
)
def test_parts_that_nothing_reads_are_gone(
    steps: list[ops.Slice | ops.Reshape], left: dict[str, int] | None
) -> None:
    before = sequence(*steps)
    after = read_parts(before)
    if left is None:
        assert after is before
        return
    assert after.operators() == left
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # Entries that lie apart pass other kernels of torch than those side by side.
    torch.testing.assert_close(evaluate(after, x), evaluate(before, x), rtol=1e-14, atol=0)
    assert read_parts(after) is after


def test_the_last_state_of_two_directions_needs_one_step_of_the_second() -> None:
    """The first layer has both directions of four steps, the second four of one and one of the other."""
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.RNN(2, 3, 2, batch_first=True, bidirectional=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[0][:, -1]

    graph = lv.extract(Last().eval(), torch.zeros(2, 4, 2))
    assert graph.operators()["Tanh"] == 4 + 4 + 4 + 1


def test_a_step_of_two_directions_side_by_side_needs_two_parts_of_all() -> None:
    """Concatenations of steps, concatenated again along features: the nearest one has two parts, of which both are read."""
    b = Builder(symbolic_batch=True)
    x = b.input((1, 2), 0)
    rows: list[list[Value]] = [[], []]
    for k in range(6):
        last = rows[k // 3][-1] if rows[k // 3] else x
        rows[k // 3].append(b.elementwise(ops.Tanh() if k < 3 else ops.Sin(), last))
    ways = [
        b.add(ops.Concat(0), tuple(b.add(ops.Reshape((1, 2)), (v,), 0) for v in row), 0)
        for row in (rows[0], rows[1][::-1])
    ]
    both = b.add(ops.Concat(1), tuple(ways), 0)
    before = b.graph([b.elementwise(ops.Sigmoid(), b.add(ops.Slice(0, 2, 3), (both,), 0))], Origin())
    after = read_parts(before)
    assert (after.operators()["Tanh"], after.operators()["Sin"]) == (3, 1)
    point = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(evaluate(after, point), evaluate(before, point), rtol=1e-14, atol=0)
    assert read_parts(after) is after
