"""RNN, GRU and LSTM of known length with stored weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Operand, Value
from lipverify.frontends.building.recurrent import MAX_STEPS, Cell, unrolled
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.registry import lower
from lipverify.ir.op import Op

_ACTIVATIONS: dict[str, Op] = {
    "sigmoid": ops.Sigmoid(),
    "tanh": ops.Tanh(),
    "relu": ops.ReLU(),
    "softsign": ops.Softsign(),
}
_DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
# The order of ONNX's gates in that of a Cell: LSTM has i, o, f, c and GRU z, r, h.
_ORDER = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}


@lower.register("RNN", "GRU", "LSTM")
def _recurrent(c: Call) -> list[Any]:
    b, x = c.build, c.value()
    if x.rank != 3:
        raise c.invalid(f"its input has {x.rank} axes")
    for name in ("clip", "input_forget"):
        # Runtimes do not agree: whether the memory is clipped where an LSTM puts it out, or clips count at all.
        if c.attribute(name) not in (None, 0) or (name == "clip" and c.attribute(name) is not None):
            raise c.refuse(f"{name} is not covered", f"export the layer without {name}")
    batched = c.flag("layout")
    time, batch = (1, 0) if batched else (0, 1)
    steps, samples = x.source_shape[time], x.source_shape[batch]
    if steps > MAX_STEPS:
        raise c.refuse(f"is written out for {steps} steps", f"use at most {MAX_STEPS}")
    length = _length(c, steps, samples)
    direction = c.choice("direction", "forward", "forward", "reverse", "bidirectional")
    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    cells = [_cell(c, d, len(ways)) for d in range(len(ways))]
    hidden = cells[0].recurrent.shape[1]
    rows = [b.squeeze(b.free(b.slice(x, time, t, t + 1), time), [time]) for t in range(length)]
    outputs: list[list[Operand]] = []
    states: list[Operand] = []
    memories: list[Operand] = []
    for d, (cell, backward) in enumerate(zip(cells, ways, strict=True)):
        size = (len(ways), samples, hidden)
        h = _start(c, 5, d, size, batched)
        memory = _start(c, 6, d, size, batched) if c.op == "LSTM" else None
        ys, last, kept = unrolled(b, rows, cell, h, memory, backward)
        outputs.append([*ys, *[torch.zeros(samples, hidden, dtype=b.dtype)] * (steps - length)])
        states.append(last)
        memories += [] if kept is None else [kept]
    result: list[Any] = [
        _sequence(c, outputs, batched) if c.used[0] else None,
        _stack(c, states, 1 if batched else 0) if len(c.used) > 1 and c.used[1] else None,
    ]
    if c.op == "LSTM":
        result.append(_stack(c, memories, 1 if batched else 0) if len(c.used) > 2 and c.used[2] else None)
    return result[: max(len(c.used), 1)]


def _length(c: Call, steps: int, samples: int) -> int:
    """How many of the steps are read: all, or the one stored length of every sample. States after it are 0 in the results."""
    if c.raw(4) is None:
        return steps
    lengths = c.ints(4, "sequence lengths") or []
    if len(lengths) != samples or not all(0 < n <= steps for n in lengths):
        raise c.invalid(f"its sequence lengths {lengths[:8]} do not fit {samples} samples of {steps} steps")
    if len(set(lengths)) != 1:
        raise c.refuse("sequences of unequal lengths are not covered", "export one length")
    return int(lengths[0])


def _start(c: Call, position: int, direction: int, size: tuple[int, int, int], batched: bool) -> Operand:
    """The state before the first step, [batch, hidden], of states of `size` [directions, batch, hidden] in layout 0."""
    if c.raw(position) is None:
        return torch.zeros(*size[1:], dtype=c.build.dtype)
    found = c.operand(position)
    axis = 1 if batched else 0
    shape = found.source_shape if isinstance(found, Value) else tuple(found.shape)
    expected = (size[1], size[0], size[2]) if batched else size
    if position == 6 and tuple(shape[:-1]) == expected[:-1] and shape[-1] > expected[-1]:
        # A projection has an exporter write a memory larger than the state, and leave out its weights: runtimes refuse the file.
        raise c.refuse(
            f"has a memory of {shape[-1]} numbers and a state of {expected[-1]}: a projected state (proj_size), which an LSTM of "
            "ONNX does not have",
            "give the torch module itself, lipverify.audit(module, example=x)",
        )
    if tuple(shape) != expected:
        raise c.invalid(f"its state {list(shape)} does not fit its weights and its input")
    if isinstance(found, Value):
        b = c.build
        return b.squeeze(b.free(b.slice(found, axis, direction, direction + 1), axis), [axis])
    return found.select(axis, direction)


def _sequence(c: Call, outputs: list[list[Operand]], batched: bool) -> Operand:
    """[steps, directions, batch, hidden], or [batch, steps, directions, hidden]."""
    steps = [_stack(c, [ys[t] for ys in outputs], 1 if batched else 0) for t in range(len(outputs[0]))]
    return _stack(c, steps, 1 if batched else 0)


def _stack(c: Call, values: Sequence[Operand], axis: int) -> Operand:
    """Along a new axis; a tensor where all of them are."""
    b = c.build
    parts = [b.unsqueeze(v, [axis]) if isinstance(v, Value) else v.unsqueeze(axis) for v in values]
    tensors = [v for v in parts if not isinstance(v, Value)]
    return torch.cat(tensors, axis) if len(tensors) == len(parts) else b.concat(parts, axis)


def _cell(c: Call, direction: int, directions: int) -> Cell:
    weight, recurrent = (c.stored(i, role) for i, role in ((1, "weight"), (2, "recurrence weight")))
    gates, hidden = len(_ORDER[c.op]), recurrent.shape[-1]
    if tuple(recurrent.shape) != (directions, gates * hidden, hidden) or tuple(weight.shape[:2]) != (
        directions,
        gates * hidden,
    ):
        raise c.invalid(f"its weights {list(weight.shape)}, {list(recurrent.shape)} do not fit each other")
    if c.attribute("hidden_size", hidden) != hidden:
        raise c.invalid(f"hidden_size {c.attribute('hidden_size')} for weights {list(recurrent.shape)}")
    bias = c.optional(3, "bias")
    if bias is None:
        bias = torch.zeros(directions, 2 * gates * hidden, dtype=weight.dtype)
    if tuple(bias.shape) != (directions, 2 * gates * hidden):
        raise c.invalid(f"its bias {list(bias.shape)} does not fit its weights")
    count = len(_DEFAULTS[c.op])
    names = (c.attribute("activations") or _DEFAULTS[c.op] * directions)[
        direction * count : (direction + 1) * count
    ]
    if len(names) != count or c.attribute("activation_alpha") or c.attribute("activation_beta"):
        raise c.refuse("activations with settings are not covered", "use the default ones")
    unknown = [name for name in names if name.lower() not in _ACTIVATIONS]
    if unknown:
        raise c.refuse(
            f"activation {unknown[0][:30]!r} is not covered in a recurrent layer", "use the default ones"
        )
    peephole = c.optional(7, "peephole weights") if c.op == "LSTM" else None
    if peephole is not None and tuple(peephole.shape) != (directions, 3 * hidden):
        raise c.invalid(f"its peephole weights {list(peephole.shape)} do not fit its weights")
    order = [n for gate in _ORDER[c.op] for n in range(gate * hidden, (gate + 1) * hidden)]
    return Cell(
        c.op,
        weight[direction][order],
        recurrent[direction][order],
        bias[direction, : gates * hidden][order],
        bias[direction, gates * hidden :][order],
        tuple(_ACTIVATIONS[name.lower()] for name in names),
        before=c.flag("linear_before_reset"),
        peephole=None if peephole is None else _peepholes(peephole[direction], hidden),
    )


def _peepholes(found: Tensor, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the input, output and forget gates."""
    first, second, third = found.split(hidden)
    return first, second, third
