"""MaxMin in every spelling becomes GroupSort; what is not a permutation of sorted pairs stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lipverify import ops
from lipverify.frontends.builder import Builder, Value
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Origin
from lipverify.passes import simplify

Spelling = Callable[[Builder, Value], Value]


def _build(spelling: Spelling, *shape: int) -> Graph:
    b = Builder(symbolic_batch=True)
    v = b.elementwise(ops.Tanh(), b.input((1, *shape), 0))
    return b.graph([spelling(b, v)], Origin())


def _same(before: Graph, after: Graph) -> None:
    x = torch.randn(9, *before.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(evaluate(after, x), evaluate(before, x), rtol=1e-12, atol=1e-12)


def _ends(b: Builder, v: Value, axis: int = 1) -> tuple[Value, Value]:
    half = v.source_shape[axis] // 2
    return b.slice(v, axis, 0, half), b.slice(v, axis, half, 2 * half)


def chunk(b: Builder, v: Value) -> Value:
    first, second = _ends(b, v)
    return b.concat([b.maximum(first, second), b.minimum(first, second)], 1)


def chunk_smallest_first(b: Builder, v: Value) -> Value:
    first, second = _ends(b, v)
    return b.concat([b.minimum(second, first), b.maximum(first, second)], 1)


def interleaved(b: Builder, v: Value) -> Value:
    even, odd = b.slice(v, 1, 0, v.source_shape[1], 2), b.slice(v, 1, 1, v.source_shape[1], 2)
    pair = [b.unsqueeze(b.minimum(even, odd), [2]), b.unsqueeze(b.maximum(even, odd), [2])]
    return b.reshape(b.concat(pair, 2), v.source_shape)


def view_and_reduce(b: Builder, v: Value) -> Value:
    wide = b.reshape(v, (1, v.source_shape[1] // 2, 2, *v.source_shape[2:]))
    ends = [b.reduce(kind, wide, [2], True) for kind in (ops.ReduceMax, ops.ReduceMin)]
    return b.reshape(b.concat(ends, 2), v.source_shape)


def view_and_reduce_side_by_side(b: Builder, v: Value) -> Value:
    wide = b.reshape(v, (1, 2, v.source_shape[1] // 2, *v.source_shape[2:]))
    return b.concat([b.reduce(ops.ReduceMax, wide, [1], False), b.reduce(ops.ReduceMin, wide, [1], False)], 1)


def gathers(b: Builder, v: Value) -> Value:
    wide = b.reshape(v, (1, v.source_shape[1] // 2, 2))
    first, second = b.gather(wide, 2, torch.tensor(0)), b.gather(wide, 2, torch.tensor(1))
    pair = [b.unsqueeze(b.minimum(first, second), [2]), b.unsqueeze(b.maximum(first, second), [2])]
    return b.reshape(b.concat(pair, 2), v.source_shape)


def chunk_then_interleave(b: Builder, v: Value) -> Value:
    first, second = _ends(b, v)
    pair = [b.unsqueeze(b.maximum(first, second), [2]), b.unsqueeze(b.minimum(first, second), [2])]
    return b.reshape(b.concat(pair, 2), v.source_shape)


def channels_last(b: Builder, v: Value) -> Value:
    moved = b.transpose(v, (0, 2, 3, 1))
    even, odd = (b.slice(moved, 3, i, moved.source_shape[3], 2) for i in (0, 1))
    pair = [b.unsqueeze(x, [4]) for x in (b.maximum(even, odd), b.minimum(even, odd))]
    return b.transpose(b.reshape(b.concat(pair, 4), moved.source_shape), (0, 3, 1, 2))


def channels_last_chunk(b: Builder, v: Value) -> Value:
    moved = b.transpose(v, (0, 2, 3, 1))
    first, second = _ends(b, moved, 3)
    return b.transpose(b.concat([b.maximum(first, second), b.minimum(first, second)], 3), (0, 3, 1, 2))


def far_pairs(b: Builder, v: Value) -> Value:
    first, second = b.gather(v, 1, torch.tensor([0, 4, 1])), b.gather(v, 1, torch.tensor([5, 2, 3]))
    ends = b.concat([b.maximum(first, second), b.minimum(first, second)], 1)
    return b.gather(ends, 1, torch.tensor([2, 0, 5, 1, 3, 4]))


def by_sort(b: Builder, v: Value) -> Value:
    wide = b.reshape(v, (1, v.source_shape[1] // 2, 2, *v.source_shape[2:]))
    return b.reshape(b.sort(wide, 2, False), v.source_shape)


def only_some_channels(b: Builder, v: Value) -> Value:
    return chunk(b, b.slice(v, 1, 1, v.source_shape[1] - 1))


@pytest.mark.parametrize(
    ("spelling", "shape", "others"),
    [
        (chunk, (6,), {"Reshape": 2}),
        (chunk, (4, 3, 5), {"Reshape": 2}),
        (chunk_smallest_first, (6,), {"Reshape": 2}),
        (interleaved, (6,), {}),
        (interleaved, (4, 3, 5), {}),
        (view_and_reduce, (6,), {}),
        (view_and_reduce, (4, 3, 5), {}),
        (view_and_reduce_side_by_side, (6, 2), {"Reshape": 2}),
        (gathers, (6,), {}),
        (chunk_then_interleave, (6,), {"Reshape": 2, "Transpose": 1}),
        (channels_last, (4, 3, 5), {}),
        (channels_last_chunk, (4, 3, 5), {"Reshape": 2}),
        (chunk_then_interleave, (4, 3, 5), {"Reshape": 2, "Transpose": 1}),
        (far_pairs, (6,), {"Gather": 2}),
        (far_pairs, (6, 2), {"Gather": 2}),
        (by_sort, (6,), {}),
        (by_sort, (4, 3, 5), {}),
        (only_some_channels, (6,), {"Gather": 2}),
        (only_some_channels, (6, 2, 2), {"Gather": 2}),
    ],
)
def test_spelling_is_one_group_sort(
    spelling: Spelling, shape: tuple[int, ...], others: dict[str, int]
) -> None:
    before = _build(spelling, *shape)
    after = simplify(before)
    assert after.operators() == {"Tanh": 1, "GroupSort": 1, **others}
    assert next(node.op.group for node in after if isinstance(node.op, ops.GroupSort)) == 2
    _same(before, after)
    assert simplify(after).digest == after.digest


def test_pair_order_decides_the_direction() -> None:
    up, down = (simplify(_build(spelling, 6)) for spelling in (interleaved, view_and_reduce))
    directions = [next(n.op.descending for n in g if isinstance(n.op, ops.GroupSort)) for g in (up, down)]
    assert directions == [False, True]


def pairs_from_two_tensors(b: Builder, v: Value) -> Value:
    other = b.elementwise(ops.Sigmoid(), v)
    return b.concat([b.maximum(v, other), b.minimum(v, other)], 1)


def minimum_of_another_tensor(b: Builder, v: Value) -> Value:
    first, second = _ends(b, v)
    other = _ends(b, b.elementwise(ops.Sigmoid(), v))
    return b.concat([b.maximum(first, second), b.minimum(*other)], 1)


def overlapping_pairs(b: Builder, v: Value) -> Value:
    first, second = b.slice(v, 1, 0, 5), b.slice(v, 1, 1, 6)
    return b.concat([b.maximum(first, second), b.minimum(first, second)], 1)


def other_pairs_for_the_minimum(b: Builder, v: Value) -> Value:
    first, second = _ends(b, v)
    swapped = b.gather(second, 1, torch.tensor([1, 0, 2]))
    return b.concat([b.maximum(first, second), b.minimum(first, swapped)], 1)


def other_axis_for_the_minimum(b: Builder, v: Value) -> Value:
    square = b.reshape(v, (1, 2, 2))
    return b.concat(
        [b.reduce(kind, square, [axis], False) for kind, axis in ((ops.ReduceMax, 1), (ops.ReduceMin, 2))], 1
    )


def maxima_twice(b: Builder, v: Value) -> Value:
    first, second = _ends(b, v)
    return b.concat([b.maximum(first, second), b.maximum(first, second)], 1)


def groups_of_three(b: Builder, v: Value) -> Value:
    wide = b.reshape(v, (1, v.source_shape[1] // 3, 3))
    return b.concat([b.reduce(ops.ReduceMax, wide, [2], False), b.reduce(ops.ReduceMin, wide, [2], False)], 1)


def something_else_beside(b: Builder, v: Value) -> Value:
    first, second = _ends(b, v)
    return b.concat([b.maximum(first, second), b.minimum(first, second), v], 1)


@pytest.mark.parametrize(
    ("spelling", "width"),
    [
        (pairs_from_two_tensors, 6),
        (minimum_of_another_tensor, 6),
        (overlapping_pairs, 6),
        (other_pairs_for_the_minimum, 6),
        (other_axis_for_the_minimum, 4),
        (maxima_twice, 6),
        (groups_of_three, 6),
        (something_else_beside, 6),
    ],
)
def test_what_is_not_a_sort_stays(spelling: Spelling, width: int) -> None:
    before = _build(spelling, width)
    after = simplify(before)
    assert "GroupSort" not in after.operators()
    _same(before, after)


def test_another_reader_of_the_maximum_keeps_it() -> None:
    def spelling(b: Builder, v: Value) -> Value:
        first, second = _ends(b, v)
        high, low = b.maximum(first, second), b.minimum(first, second)
        return b.concat([b.linear(b.concat([high, low], 1), torch.eye(6, dtype=torch.float64)), high], 1)

    before = _build(spelling, 6)
    after = simplify(before)
    assert after.operators()["GroupSort"] == 1
    assert after.operators()["Maximum"] == 1
    assert "Minimum" not in after.operators()
    _same(before, after)


@pytest.mark.parametrize("seed", range(25))
def test_any_wiring_of_disjoint_pairs_is_one_sort(seed: int) -> None:
    """Random pairs of a random part of the entries, read and written in random order through a random view."""
    rng = torch.Generator().manual_seed(seed)
    shape = [(12,), (3, 4), (4, 1, 3), (2, 2, 3)][seed % 4]
    pairs = int(torch.randint(1, 7, (), generator=rng))
    chosen = torch.randperm(12, generator=rng)[: 2 * pairs]

    def spelling(b: Builder, v: Value) -> Value:
        flat = b.reshape(v, (1, 12))
        first, second = b.gather(flat, 1, chosen[:pairs]), b.gather(flat, 1, chosen[pairs:])
        shuffle = torch.randperm(2 * pairs, generator=rng)
        return b.gather(b.concat([b.minimum(first, second), b.maximum(second, first)], 1), 1, shuffle)

    before = _build(spelling, *shape)
    after = simplify(before)
    assert after.operators()["GroupSort"] == 1
    assert not {"Maximum", "Minimum", "Concat", "Slice"} & set(after.operators())
    indices = [node.op.indices for node in after if isinstance(node.op, ops.Gather)]
    assert all(len(index.unique()) == len(index) for index in indices), (
        "an entry is copied: the gain would grow"
    )
    _same(before, after)
