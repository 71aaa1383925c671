"""Recurrent layers of known length, written out step by step.

Legend: x [steps, batch, features] as one tensor, h the state; W [gates * hidden, features], R [gates * hidden, hidden], the
biases of both of [gates * hidden]. Gates of LSTM: input, forget, cell, output; of GRU: reset, update, new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.frontends.builder import Builder, Operand, Value
from lipverify.frontends.building.vanishing import contracted
from lipverify.ir.op import Op

MAX_STEPS = 1024


@dataclass(frozen=True)
class Cell:
    """One layer in one direction. activations: for the gates, for the new values, for the state that LSTM puts out.

    before: GRU adds the state's bias before the reset gate multiplies; peephole: LSTM's weights of input, output, forget gate.
    projection: [state, hidden], by which an LSTM makes its state smaller than its memory; R is then [gates * hidden, state].
    """

    kind: str
    weight: Tensor
    recurrent: Tensor
    bias: Tensor
    recurrent_bias: Tensor
    activations: tuple[Op, ...]
    before: bool = True
    peephole: tuple[Tensor, Tensor, Tensor] | None = None
    projection: Tensor | None = None


def unrolled(
    b: Builder, x: Sequence[Value], cell: Cell, state: Operand, memory: Operand | None, backward: bool
) -> tuple[list[Value], Value, Value | None]:
    """The states after every step, in the order of the steps, and the last state (and memory of an LSTM).

    x: one value [batch, features] for each step; state, memory: [batch, hidden], a projected state [batch, state].
    """
    step = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}[cell.kind]
    outputs: list[Value | None] = [None] * len(x)
    h, c = state, memory
    for position in reversed(range(len(x))) if backward else range(len(x)):
        h, c = step(b, cell, x[position], h, c)
        assert isinstance(h, Value)
        outputs[position] = h
    assert isinstance(h, Value)
    return [y for y in outputs if y is not None], h, c if isinstance(c, Value) else None


def _inputs(b: Builder, cell: Cell, x: Value) -> Value:
    return b.linear(x, cell.weight, cell.bias)


def _of_state(b: Builder, weight: Tensor, bias: Tensor, h: Operand) -> Operand:
    if isinstance(h, Value):
        return b.linear(h, weight, bias)
    h = h.to(weight.dtype)
    contracted(b, h, weight.T)
    return torch.nn.functional.linear(h, weight, bias)


def _nothing(state: Operand) -> bool:
    """Whether a state is stored zeros: a gate that multiplies it does nothing, and is none of the network's neurons."""
    return not isinstance(state, Value) and not bool(state.any())


def _part(b: Builder, x: Operand, gate: int, size: int) -> Operand:
    if isinstance(x, Value):
        return b.slice(x, x.rank - 1, gate * size, (gate + 1) * size)
    return x[..., gate * size : (gate + 1) * size]


def _plus(b: Builder, *terms: Operand) -> Value:
    total = terms[0]
    for term in terms[1:]:
        total = b.plus(total, term)
    assert isinstance(total, Value)
    return total


def _activated(b: Builder, cell: Cell, which: int, x: Value) -> Value:
    return b.elementwise(cell.activations[which], x)


def _rnn(b: Builder, cell: Cell, x: Value, h: Operand, c: Operand | None) -> tuple[Operand, Operand | None]:
    own = _inputs(b, cell, x)
    return _activated(b, cell, 0, _plus(b, own, _of_state(b, cell.recurrent, cell.recurrent_bias, h))), None


def _gru(b: Builder, cell: Cell, x: Value, h: Operand, c: Operand | None) -> tuple[Operand, Operand | None]:
    size = cell.recurrent.shape[1]
    own = _inputs(b, cell, x)
    gates = slice(0, 2 * size)
    from_state = _of_state(b, cell.recurrent[gates], cell.recurrent_bias[gates], h)
    r, z = (
        _activated(b, cell, 0, _plus(b, _part(b, own, i, size), _part(b, from_state, i, size)))
        for i in range(2)
    )
    weight, bias = cell.recurrent[2 * size :], cell.recurrent_bias[2 * size :]
    if cell.before or _nothing(h):
        inner = _of_state(b, weight, bias, h)
        inner = b.times(r, inner) if cell.before else inner
    else:
        inner = b.linear(b.times(r, h), weight, bias)
    new = _activated(b, cell, 1, _plus(b, _part(b, own, 2, size), inner))
    # (1 - z) n + z h, with z once: it is known to lie between n and h then (propagation/everywhere.py).
    return _plus(b, new, b.times(z, b.minus(h, new))), None


def _lstm(b: Builder, cell: Cell, x: Value, h: Operand, c: Operand | None) -> tuple[Operand, Operand | None]:
    assert c is not None
    size = cell.recurrent.shape[0] // 4
    total = _plus(b, _inputs(b, cell, x), _of_state(b, cell.recurrent, cell.recurrent_bias, h))
    parts = [_part(b, total, gate, size) for gate in range(4)]

    def seen(gate: int, which: int, memory: Operand) -> Operand:
        if cell.peephole is None:
            return parts[gate]
        weight = cell.peephole[which]
        return _plus(
            b,
            parts[gate],
            b.times(memory, weight) if isinstance(memory, Value) else b.held(memory * weight, memory, weight),
        )

    def act(which: int, value: Operand) -> Value:
        assert isinstance(value, Value)
        return _activated(b, cell, which, value)

    i = act(0, seen(0, 0, c))
    left = [] if _nothing(c) else [b.times(act(0, seen(1, 2, c)), c)]
    memory = _plus(b, *left, b.times(i, act(1, parts[2])))
    o = act(0, seen(3, 1, memory))
    shown = b.times(o, b.elementwise(cell.activations[2], memory))
    return shown if cell.projection is None else b.linear(shown, cell.projection), memory


Step = Callable[[Builder, Cell, Value, Operand, Operand | None], tuple[Operand, Operand | None]]
