"""RNN, GRU and LSTM of known length with stored weights, and their single cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Operand, Value
from lipverify.frontends.building.recurrent import MAX_STEPS, Cell, unrolled
from lipverify.frontends.torch_export.lowering import Lowerer
from lipverify.frontends.torch_export.registry import lower
from lipverify.ir.op import Op

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def _cell(b: Lowerer, kind: str, parameters: Sequence[Any], activation: Op) -> Cell:
    weight, recurrent, *rest = (b.stored(p, "weight") for p in parameters)
    # Of an odd number of tensors the last one makes the state of an LSTM smaller: LSTM(..., proj_size=).
    biases, projection = (rest[:-1], rest[-1]) if len(rest) % 2 else (rest, None)
    zero = torch.zeros(weight.shape[0], dtype=weight.dtype)
    first, second = biases if biases else (zero, zero)
    acts = (activation,) if kind == "RNN" else (ops.Sigmoid(), ops.Tanh(), ops.Tanh())
    return Cell(kind, weight, recurrent, first, second, acts, projection=projection)


def _layers(
    b: Lowerer,
    kind: str,
    x: Any,
    states: Sequence[Any],
    parameters: Sequence[Any],
    settings: Sequence[Any],
    activation: Op,
) -> tuple[Value, list[Value], list[Value]]:
    """The result of the last layer, and the last states of all layers and directions."""
    has_biases, layers, dropout, train, bidirectional, batch_first = settings
    if train and dropout:
        raise b.refuse(
            "dropout between layers is active, so the output is random", (x,), "call module.eval() first"
        )
    v = b.value(x)
    if v.rank != 3:
        raise b.refuse("needs sequences [batch, steps, features] or [steps, batch, features]", (v,))
    time = 1 if batch_first else 0
    steps, each = v.source_shape[time], 4 if has_biases else 2
    if steps > MAX_STEPS:
        raise b.refuse(f"is written out for {steps} steps", (v,), f"use at most {MAX_STEPS}")
    each += kind == "LSTM" and len(parameters) == (each + 1) * layers * (1 + bool(bidirectional))
    rows = [b.squeeze(b.slice(v, time, t, t + 1), [time]) for t in range(steps)]
    ends: list[Value] = []
    memories: list[Value] = []
    for layer in range(layers):
        ways = []
        for way in range(1 + bool(bidirectional)):
            index = layer * (1 + bool(bidirectional)) + way
            cell = _cell(b, kind, parameters[each * index : each * (index + 1)], activation)
            h, c = _start(b, states[0], index), _start(b, states[1], index) if len(states) > 1 else None
            ys, last, memory = unrolled(b, rows, cell, h, c, way == 1)
            ways.append(ys)
            ends.append(last)
            memories += [memory] if memory is not None else []
        rows = [b.concat(list(parts), 1) if len(parts) > 1 else parts[0] for parts in zip(*ways, strict=True)]
    whole = b.concat([b.unsqueeze(row, [time]) for row in rows], time)
    return whole, ends, memories


def _start(b: Lowerer, states: Any, index: int) -> Operand:
    """The state of one layer before the first step."""
    if isinstance(states, Value):
        return b.squeeze(b.slice(states, 0, index, index + 1), [0])
    found: Tensor = b.stored(states, "state")[index]
    return found


def _stacked(b: Lowerer, states: list[Value]) -> Value:
    return b.concat([b.unsqueeze(state, [0]) for state in states], 0)


@lower.register("aten.lstm.input")
def _lstm(b: Lowerer, x: Any, hx: Sequence[Any], params: Sequence[Any], *settings: Any) -> tuple[Value, ...]:
    whole, ends, memories = _layers(b, "LSTM", x, hx, params, settings, ops.Tanh())
    return whole, _stacked(b, ends), _stacked(b, memories)


@lower.register("aten.gru.input")
def _gru(b: Lowerer, x: Any, hx: Any, params: Sequence[Any], *settings: Any) -> tuple[Value, ...]:
    whole, ends, _ = _layers(b, "GRU", x, [hx], params, settings, ops.Tanh())
    return whole, _stacked(b, ends)


@lower.register("aten.rnn_tanh.input")
def _rnn_tanh(b: Lowerer, x: Any, hx: Any, params: Sequence[Any], *settings: Any) -> tuple[Value, ...]:
    whole, ends, _ = _layers(b, "RNN", x, [hx], params, settings, ops.Tanh())
    return whole, _stacked(b, ends)


@lower.register("aten.rnn_relu.input")
def _rnn_relu(b: Lowerer, x: Any, hx: Any, params: Sequence[Any], *settings: Any) -> tuple[Value, ...]:
    whole, ends, _ = _layers(b, "RNN", x, [hx], params, settings, ops.ReLU())
    return whole, _stacked(b, ends)
