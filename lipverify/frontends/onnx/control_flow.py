"""If, Loop and Scan whose course is stored: the branch that is taken, and the body written out as often as it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lipverify.frontends.builder import Masked, Value
from lipverify.frontends.onnx import forms
from lipverify.frontends.onnx.call import Call, Result

if TYPE_CHECKING:
    from lipverify.frontends.onnx.walk import Scope, Walk

MAX_ROUNDS = 4096
"""Rounds of one loop."""


def _branch(walk: Walk, call: Call, scope: Scope, node: Any) -> list[Result | None]:
    """An If whose condition is known is one of its branches."""
    condition = call.raw(0)
    if condition is None or isinstance(condition, (Value, Masked)):
        raise call.refuse(
            "branches on computed numbers, so it is not continuous", "export the branch you need"
        )
    if condition.size != 1:
        raise call.invalid("its condition is not one number")
    branch = call.attribute("then_branch" if bool(condition.reshape(()).item()) else "else_branch")
    if len(branch.output) < len(node.output):
        raise call.invalid("its branch has fewer outputs than the node")
    found = _round(walk, branch, {}, scope, call.used)
    return [*found, *[None] * (len(node.output) - len(found))]


def _round(
    walk: Walk, body: Any, given: dict[str, Result | None], scope: Scope, used: tuple[bool, ...] | None = None
) -> list[Result | None]:
    """The outputs of a body for these inputs; None for those that are not used."""
    names = [value.name for value in body.output]
    wanted = [name for i, name in enumerate(names) if used is None or (i < len(used) and used[i])]
    inner = walk.run(body, _Visible(given, scope), wanted)
    return [inner[name] if name in wanted else None for name in names]


class _Visible(dict[str, Any]):
    """What a body sees: its own inputs, then what is around it."""

    def __init__(self, own: dict[str, Any], outer: Scope) -> None:
        super().__init__(own)
        self._outer = outer

    def __missing__(self, name: str) -> Any:
        return self._outer[name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._outer


def _loop(walk: Walk, call: Call, scope: Scope, node: Any) -> list[Result | None]:
    """A loop whose count and condition are stored numbers."""
    body = call.attribute("body")
    where, what = walk.build.where, walk.build.what
    count, go_on = call.raw(0), call.raw(1)
    if isinstance(count, (Value, Masked)) or isinstance(go_on, (Value, Masked)):
        raise call.refuse(
            "how often it runs depends on computed numbers, so it is not continuous", "export it unrolled"
        )
    state = call.raws(2)
    if len(body.input) != 2 + len(state) or len(body.output) < 1 + len(state):
        raise call.invalid("its body does not fit its inputs")
    limit = MAX_ROUNDS + 1 if count is None else int(count.reshape(()).item())
    collected: list[list[Result]] = [[] for _ in body.output[1 + len(state) :]]
    rounds, told = 0, go_on is not None
    while rounds < limit and (go_on is None or bool(np.asarray(go_on).reshape(()).item())):
        if rounds >= MAX_ROUNDS:
            raise call.refuse(f"runs more than {MAX_ROUNDS} times", "export a smaller model")
        names = [value.name for value in body.input]
        given = dict(zip(names, [np.asarray(rounds, np.int64), _truth(go_on), *state], strict=True))
        found = _round(walk, body, given, scope)
        walk.build.where, walk.build.what = where, what
        after, state = found[0], found[1 : 1 + len(state)]
        if isinstance(after, (Value, Masked)):
            raise call.refuse(
                "how often it runs depends on computed numbers, so it is not continuous", "export it unrolled"
            )
        go_on = after
        if not told and rounds + 1 < limit and not bool(np.asarray(after).reshape(()).item()):
            raise call.refuse(
                "has no condition and ends by one, where readers disagree whether it does",
                "give it the condition True",
            )
        for rows, row in zip(collected, found[1 + len(state) :], strict=True):
            assert row is not None
            rows.append(row)
        rounds += 1
    return [*state, *(_stacked(call, rows, 0) if used else None
                      for rows, used in zip(collected, call.used[len(state) :], strict=False))]  # fmt: skip


def _truth(value: Any) -> Any:
    return np.asarray(True) if value is None else value


def _stacked(call: Call, rows: list[Result], axis: int) -> Result:
    """Results of all rounds along a new axis."""
    if not rows:
        raise call.refuse("collects the results of no round at all")
    b = call.build
    if all(isinstance(row, np.ndarray) for row in rows):
        return np.stack(rows, axis)  # type: ignore[arg-type]
    if any(isinstance(row, Masked) for row in rows):
        raise call.refuse("collects -infinity")
    parts: list[Any] = []
    for row in rows:
        if isinstance(row, Value):
            parts.append(b.unsqueeze(row, [axis % (row.rank + 1)]))
        else:
            parts.append(b.tensor(np.expand_dims(row, axis)))  # type: ignore[arg-type]
    return b.concat(parts, axis % max(p.rank if isinstance(p, Value) else p.ndim for p in parts))


def _scan(walk: Walk, call: Call, scope: Scope, node: Any) -> list[Result | None]:
    """A scan along axes of known size."""
    if call.version < 9:
        raise call.refuse("the form of operator set 8 is not covered", "export with opset_version 9 or later")
    body, count = call.attribute("body"), call.attribute("num_scan_inputs")
    where, what = walk.build.where, walk.build.what
    states = len(call.inputs) - count
    if states < 0 or len(body.input) != len(call.inputs) or len(body.output) < states or count < 1:
        raise call.invalid("its body does not fit its inputs")
    state: list[Result | None] = call.raws()[:states]
    sequences = call.raws(states)
    results = len(body.output) - states
    axes = _settings(call, "scan_input_axes", count)
    backward = _settings(call, "scan_input_directions", count)
    places = _settings(call, "scan_output_axes", results)
    reversed_output = _settings(call, "scan_output_directions", results)
    lengths = set()
    for position, (x, axis) in enumerate(zip(sequences, axes, strict=True)):
        if x is None or isinstance(x, Masked):
            raise call.refuse(f"its input {states + position} is missing or holds -infinity")
        shape = x.source_shape if isinstance(x, Value) else x.shape
        axes[position] = forms.normalised(call, axis, len(shape))
        lengths.add(shape[axes[position]])
    if len(lengths) != 1:
        raise call.invalid("its inputs have different lengths")
    length = lengths.pop()
    if length > MAX_ROUNDS:
        raise call.refuse(f"runs more than {MAX_ROUNDS} times", "export a smaller model")
    collected: list[list[Result]] = [[] for _ in range(results)]
    names = [value.name for value in body.input]
    for i in range(length):
        rows = [
            _entry(call, x, axis, length - 1 - i if back else i)
            for x, axis, back in zip(sequences, axes, backward, strict=True)
        ]
        found = _round(walk, body, dict(zip(names, [*state, *rows], strict=True)), scope)
        walk.build.where, walk.build.what = where, what
        state = found[:states]
        for kept, row in zip(collected, found[states:], strict=True):
            assert row is not None
            kept.append(row)
    stacked = [
        _stacked(call, kept[::-1] if back else kept, axis)
        for kept, axis, back in zip(collected, places, reversed_output, strict=True)
    ]
    return [*state, *stacked]


def _settings(call: Call, name: str, count: int) -> list[int]:
    found = call.attribute(name) or [0] * count
    if len(found) != count:
        raise call.invalid(f"its {name} {list(found)[:8]} do not fit {count} tensors")
    return list(found)


def _entry(call: Call, x: Any, axis: int, index: int) -> Result:
    """One entry of an axis, without the axis."""
    if isinstance(x, np.ndarray):
        return np.asarray(np.take(x, index, axis))
    b = call.build
    return b.squeeze(b.free(b.slice(x, axis, index, index + 1), axis), [axis])


OPERATORS: dict[str, Callable[[Walk, Call, Scope, Any], list[Result | None]]] = {
    "If": _branch,
    "Loop": _loop,
    "Scan": _scan,
}
