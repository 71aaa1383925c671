"""RNN, GRU and LSTM of known length with stored weights, written out step by step.

Gates as ONNX orders them: of LSTM input, output, forget, cell; of GRU update, reset, new. Clips, coupled gates and activations
with settings are not read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lipverify.checkers.kernel.arithmetic import times
from lipverify.checkers.kernel.program import Array, Constant
from lipverify.checkers.reader.building import Builder, Stored, Value, weights
from lipverify.checkers.reader.calls import Call
from lipverify.checkers.reader.matrices import product, shifted
from lipverify.checkers.reader.moves import Results, Run
from lipverify.checkers.reader.refusals import need
from lipverify.checkers.reader.sums import combined

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
LAWS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
_STEPS_AT_MOST = 1024
_KNOWN = ("Tanh", "Sigmoid", "Relu", "Softsign")


class _Cell(NamedTuple):
    """One direction. weight: [gates * hidden, inputs]; recurrent: [gates * hidden, hidden]; biases of both: [gates * hidden].

    peephole: [3, hidden], what the input, output and forget gate of an LSTM see of its memory, entry by entry.
    """

    weight: Stored
    recurrent: Stored
    bias: Array
    recurrent_bias: Array
    laws: tuple[str, ...]
    before: bool
    peephole: Array | None

    def rows(self, first: int, last: int) -> tuple[Stored, Array]:
        """Recurrent weights and biases of some gates."""
        some = slice(first * self.hidden, last * self.hidden)
        return self.recurrent.showing(self.recurrent.array[some]), self.recurrent_bias[some]

    @property
    def hidden(self) -> int:
        return int(self.recurrent.array.shape[1])


def _recurrent(p: Builder, c: Call) -> Results:
    x, batched = c.value(p, 0), c.flag("layout", 0)
    need(x.places.ndim == 3, f"{c.op} of a tensor that has not three axes")
    places = np.moveaxis(x.places, 1, 0) if batched else x.places
    need(len(places) <= _STEPS_AT_MOST, f"{c.op} of more than {_STEPS_AT_MOST} steps")
    direction = c.text("direction", "forward")
    backward = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}.get(direction)
    need(backward is not None, f"{c.op} in an unknown direction")
    assert backward is not None
    length = _length(c, len(places), places.shape[1])
    if c.op == "LSTM":
        need(not c.flag("input_forget", 0), "an LSTM with input_forget is not covered by the checker")
    cells = _cells(c, len(backward), x)
    starts = [c.operand(k) for k in ((5, 6) if c.op == "LSTM" else (5,))]
    rows = [x.showing(row) for row in places[:length]]
    outputs: list[list[Value]] = []
    ends: list[list[Value]] = []
    for d, (cell, turned) in enumerate(zip(cells, backward, strict=True)):
        state = [_start(p, s, d, batched, (len(backward), places.shape[1], cell.hidden), x) for s in starts]
        found: list[Value] = []
        for row in reversed(rows) if turned else rows:
            state = list(_STEPS[c.op](p, cell, row, *state))
            assert state[0] is not None
            found.append(state[0])
        rest = [found[0].showing(np.full(found[0].shape, -1))] * (len(places) - length)  # a place of -1 is 0
        outputs.append([*(found[::-1] if turned else found), *rest])
        ends.append([s for s in state if s is not None])
    axis = 1 if batched else 0
    whole = _stacked(p, [_stacked(p, list(each), axis) for each in zip(*outputs, strict=True)], axis)
    return [whole, *(_stacked(p, list(each), axis) for each in zip(*ends, strict=True))]


def _length(c: Call, steps: int, samples: int) -> int:
    """How many steps are read: all, or the one length that is stored for every sample. The states behind it are 0."""
    if c.operand(4) is None:
        return steps
    lengths = c.integers_at(4, True)
    need(len(lengths) == samples and len(set(lengths)) == 1, "sequences of unequal lengths")
    need(0 < lengths[0] <= steps, "a sequence longer than its input, or empty")
    return lengths[0]


def _cells(c: Call, ways: int, x: Value) -> list[_Cell]:
    weight, recurrent = (c.any(k) for k in (1, 2))
    need(isinstance(weight, Stored) and isinstance(recurrent, Stored), f"{c.op} with computed weights")
    assert isinstance(weight, Stored)
    assert isinstance(recurrent, Stored)
    need(weight.kind == recurrent.kind == x.kind, f"{c.op} of numbers of different types")
    hidden, gates = recurrent.shape[-1] if recurrent.shape else 0, _GATES[c.op]
    fits = weight.shape == (ways, gates * hidden, x.shape[2]) and recurrent.shape == (
        ways,
        gates * hidden,
        hidden,
    )
    need(
        fits and hidden > 0 and c.integer("hidden_size", hidden) == hidden,
        f"{c.op} with weights of other sizes",
    )
    bias = c.optional(3, x.kind)
    bias = np.zeros((ways, 2 * gates * hidden)) if bias is None else bias
    need(bias.shape == (ways, 2 * gates * hidden), f"{c.op} with a bias of another size")
    count = len(LAWS[c.op])
    laws = c.texts("activations", LAWS[c.op] * ways)
    need(len(laws) == count * ways and all(law in _KNOWN for law in laws), f"{c.op} with other activations")
    before = c.flag("linear_before_reset", 0) if c.op == "GRU" else True
    peephole = c.optional(7, x.kind) if c.op == "LSTM" else None
    need(peephole is None or peephole.shape == (ways, 3 * hidden), "peepholes of another size")
    return [
        _Cell(weight.showing(weight.array[d]), recurrent.showing(recurrent.array[d]), bias[d, : gates * hidden],
              bias[d, gates * hidden :], tuple(laws[count * d : count * (d + 1)]), before,
              None if peephole is None else peephole[d].reshape(3, hidden))
        for d in range(ways)
    ]  # fmt: skip


def _start(
    p: Builder, found: Value | Stored | None, way: int, batched: bool, shape: tuple[int, ...], x: Value
) -> Value | None:
    """The state before the first step, [samples, hidden]; None for zeros, stored ones too."""
    if found is None:
        return None
    zeros = isinstance(found, Stored) and not found.array.any()
    state = p.computed(found)
    places = np.moveaxis(state.places, 1, 0) if batched and state.places.ndim == 3 else state.places
    need(places.shape == shape and state.kind == x.kind, "a state of another size or type")
    return None if zeros else state.showing(places[way])


def _stacked(p: Builder, values: list[Value], axis: int) -> Value:
    sources, places = p.joined(values)
    p.charge(sum(a.size for a in places))
    return p.tidy(Value(sources, np.stack(places, axis), values[0].kind))


def _of_state(p: Builder, weight: Stored, bias: Array, h: Value | None) -> Value | None:
    """W h + b; None is h = 0, and then the caller adds b."""
    return None if h is None else _linear(p, weight, bias, h)


def _linear(p: Builder, weight: Stored, bias: Array, x: Value) -> Value:
    return shifted(p, product(p, x, weight.showing(weight.array.T)), bias)


def _added(p: Builder, own: Value, state: Value | None, bias: Array) -> Value:
    return p.scaled(own, 1.0, 0, bias) if state is None else combined(p, "Add", [own, state])


def _numbers(p: Builder, x: Value) -> Array | None:
    """A state that is stored, exactly: [samples, hidden]; None for a computed one."""
    steps = [p.steps[s] for s in x.sources]
    found = [step.values for step in steps if isinstance(step, Constant)]
    return np.concatenate([*found, [0.0]])[x.places] if len(found) == len(steps) else None


def _times(p: Builder, gate: Value, state: Value) -> Value:
    """A gate times a state; by a stored one it is a scaling, and no product of two functions of the input."""
    known = _numbers(p, state)
    return combined(p, "Mul", [gate, state]) if known is None else p.scaled(gate, known)


def _reset(p: Builder, gate: Value, weight: Stored, bias: Array, h: Value) -> Value:
    """gate * (W h + b), entry by entry; of a stored h the sum of gate * W_j h_j, whose factors are rounded once."""
    known = _numbers(p, h)
    if known is None:
        return combined(p, "Mul", [gate, _linear(p, weight, bias, h)])
    array, rounded = weights(weight)
    n, hidden = array.shape
    p.charge(len(known) * n * (hidden + 1))
    terms = times(array[None], known[:, None, :])
    terms = np.concatenate([terms, np.broadcast_to(bias[None, :, None], (len(known), n, 1))], 2)
    groups = np.broadcast_to(np.arange(gate.places.size)[:, None], (gate.places.size, hidden + 1))
    return p.summed(
        gate, np.ascontiguousarray(groups), gate.shape, terms.reshape(-1, hidden + 1), rounded + 1
    )


def _gate(x: Value, gate: int, hidden: int) -> Value:
    return x.showing(x.places[:, gate * hidden : (gate + 1) * hidden])


def _rnn(p: Builder, cell: _Cell, x: Value, h: Value | None) -> tuple[Value]:
    state = _of_state(p, *cell.rows(0, 1), h)
    own = _linear(p, cell.weight, cell.bias, x)
    return (p.scalar(_added(p, own, state, cell.recurrent_bias), cell.laws[0]),)


def _gru(p: Builder, cell: _Cell, x: Value, h: Value | None) -> tuple[Value]:
    """n + z (h - n)."""
    n, own = cell.hidden, _linear(p, cell.weight, cell.bias, x)
    gates, (weight, bias) = _of_state(p, *cell.rows(0, 2), h), cell.rows(2, 3)
    # The reset gate first: diagonals of a proof are of the neurons in the order of this module's layers and of the importer's.
    r, z = (
        p.scalar(
            _added(
                p, _gate(own, k, n), None if gates is None else _gate(gates, k, n), cell.rows(k, k + 1)[1]
            ),
            cell.laws[0],
        )
        for k in (1, 0)
    )
    if h is None:
        inner = p.scaled(r, bias) if cell.before else None
    elif cell.before:
        inner = _reset(p, r, weight, bias, h)
    else:
        inner = _linear(p, weight, bias, _times(p, r, h))
    new = p.scalar(_added(p, _gate(own, 2, n), inner, bias), cell.laws[1])
    apart = p.scaled(new, -1.0) if h is None else combined(p, "Sub", [h, new])
    return (combined(p, "Add", [new, combined(p, "Mul", [z, apart])]),)


def _lstm(p: Builder, cell: _Cell, x: Value, h: Value | None, memory: Value | None) -> tuple[Value, Value]:
    own, n = _linear(p, cell.weight, cell.bias, x), cell.hidden
    total = _added(p, own, _of_state(p, *cell.rows(0, 4), h), cell.recurrent_bias)

    def gate(k: int, seen: Value | None) -> Value:
        found = _gate(total, k, n)
        if cell.peephole is not None and seen is not None:
            found = combined(p, "Add", [found, p.scaled(seen, cell.peephole[k])])
        return p.scalar(found, cell.laws[0])

    first = gate(0, memory)
    left = None if memory is None else _times(p, gate(2, memory), memory)
    kept = combined(p, "Mul", [first, p.scalar(_gate(total, 3, n), cell.laws[1])])
    kept = kept if left is None else combined(p, "Add", [left, kept])
    return combined(p, "Mul", [gate(1, kept), p.scalar(kept, cell.laws[2])]), kept


_STEPS: dict[str, Callable[..., tuple[Value, ...]]] = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}
RECURRENT: dict[str, tuple[str, Run]] = dict.fromkeys(_GATES, ("7 14 22", _recurrent))
