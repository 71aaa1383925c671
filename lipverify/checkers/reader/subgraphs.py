"""If, Loop and Scan whose course is stored: the branch that is taken, and a body written out as often as it runs.

A body sees its own inputs and stored tensors, and what is around it. No name has two meanings, and no body holds another one.
How often a loop runs, and which branch is taken, are stored numbers: a course that depends on the input is not continuous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lipverify.checkers.kernel.program import Array
from lipverify.checkers.reader.building import Builder, Missing, Operand, Stored, TooLarge, Value, stored
from lipverify.checkers.reader.calls import Body, Call
from lipverify.checkers.reader.refusals import need, shown
from lipverify.checkers.reader.wire import Message
from lipverify.errors import NotCovered

MAX_ROUNDS = 1024
_SINCE = 11
"""The operator set since when the three have the form that is read."""


Round = Callable[[Body, Mapping[str, Operand]], list[Operand]]
"""The outputs of a body for these inputs."""


def all_nodes(graph: Message) -> Iterator[Message]:
    """The nodes of a graph and of the bodies in it."""
    for node in graph["node"]:
        yield node
        for attribute in node["attribute"]:
            if "g" in attribute:
                yield from all_nodes(attribute["g"])


def written_out(p: Builder, c: Call, once: Round) -> list[Operand]:
    """The results of an If, Loop or Scan.

    Raises:
        NotCovered: how often it runs is not stored, or something does not fit.
    """
    need(c.version >= _SINCE, f"{c.op} of operator set {c.version} is not covered by the checker")
    found = SUBGRAPHS[c.op](p, c, once)
    c.finish()
    need(len(found) >= c.results, f"{c.op} with more results than its body has")
    return found


def _called(p: Builder, c: Call, once: Round, body: Body, given: Sequence[Operand]) -> list[Operand]:
    """One round. Raises NotCovered for inputs of another type or size than the body says."""
    p.charge(len(body.nodes) + len(body.seen) + len(body.own))
    need(len(given) == len(body.inputs), f"{c.op} with a body of another number of inputs")
    for name, x in zip(body.inputs, given, strict=True):
        if isinstance(x, Missing) or name not in body.told:
            continue
        assert x is not None
        kind, dims = body.told[name]
        need(x.kind == kind, f"{c.op} gives its body {shown(name)} of another type")
        fits = dims is None or (
            len(dims) == len(x.shape) and all(n in (-1, m) for n, m in zip(dims, x.shape, strict=True))
        )
        need(fits, f"{c.op} gives its body {shown(name)} of another size")
    return once(body, dict(zip(body.inputs, given, strict=True)))


def _branch(p: Builder, c: Call, once: Round) -> list[Operand]:
    condition, bodies = _truth(c, 0), {name: c.body(f"{name}_branch") for name in ("then", "else")}
    need(
        len({len(body.outputs) for body in bodies.values()}) == 1,
        "branches with different numbers of results",
    )
    return _called(p, c, once, bodies["then" if condition else "else"], [])


def _loop(p: Builder, c: Call, once: Round) -> list[Operand]:
    count, go_on = c.operand(0), True if c.operand(1) is None else _truth(c, 1)
    limit = MAX_ROUNDS + 1
    if count is not None:
        array = c.stored(0)
        need(array.dtype == np.dtype("<i8") and array.size == 1, "Loop with a count that is no integer")
        limit = int(array.reshape(()))
    state: list[Operand] = [c.any(k) for k in range(2, len(c.operands))]
    body, first = c.body("body"), list(state)
    need(len(body.outputs) > len(state), "Loop with a body of another number of results")
    collected: list[list[Operand]] = [[] for _ in body.outputs[1 + len(state) :]]
    rounds = 0
    while rounds < limit and go_on:
        need(rounds < MAX_ROUNDS, f"Loop of more than {MAX_ROUNDS} rounds")
        counter, truth = stored(np.array(rounds, "<i8")), stored(np.array(True))
        after, *found = _called(p, c, once, body, [counter, truth, *state])
        need(
            isinstance(after, Stored) and after.kind == np.dtype("?") and after.array.size == 1,
            "Loop with a condition that is computed",
        )
        assert isinstance(after, Stored)
        go_on, state = bool(after.array.reshape(())), found[: len(state)]
        # By ONNX's text it goes on, runtimes end: what the last round says is alike for all.
        need(
            go_on or c.operand(1) is not None or rounds + 1 == limit,
            "Loop without a condition that ends by one is not covered by the checker",
        )
        _stays(c, first, state)
        for rows, row in zip(collected, found[len(state) :], strict=True):
            rows.append(row)
        rounds += 1
    return [*state, *(_stacked(p, c, rows, 0) for rows in collected)]


def _scan(p: Builder, c: Call, once: Round) -> list[Operand]:
    body, count = c.body("body"), c.integer("num_scan_inputs", None)
    states = len(c.operands) - count
    need(
        count > 0 and 0 <= states <= len(body.outputs),
        "Scan with a body of another number of inputs or results",
    )
    results = len(body.outputs) - states
    axes, places = c.integers("scan_input_axes", [0] * count), c.integers("scan_output_axes", [0] * results)
    back = c.integers("scan_input_directions", [0] * count)
    turned = c.integers("scan_output_directions", [0] * results)
    need(len(axes) == len(back) == count and len(places) == len(turned) == results
         and all(n in (0, 1) for n in (*back, *turned)), "Scan with settings of other lengths")  # fmt: skip
    state: list[Operand] = [c.any(k) for k in range(states)]
    sequences, first = [c.any(k) for k in range(states, len(c.operands))], list(state)
    for k, x in enumerate(sequences):
        rank = len(x.shape)
        need(rank > 0 and -rank <= axes[k] < rank, "Scan along an axis that is not there")
    lengths = {x.shape[axis] for x, axis in zip(sequences, axes, strict=True)}
    need(
        len(lengths) == 1 and 0 < max(lengths) <= MAX_ROUNDS, "Scan of unequal lengths, or of too many rounds"
    )
    length = max(lengths)
    collected: list[list[Operand]] = [[] for _ in range(results)]
    for i in range(length):
        rows = [
            _entry(p, x, axis, length - 1 - i if backward else i)
            for x, axis, backward in zip(sequences, axes, back, strict=True)
        ]
        found = _called(p, c, once, body, [*state, *rows])
        state = found[:states]
        _stays(c, first, state)
        for kept, row in zip(collected, found[states:], strict=True):
            kept.append(row)
    ordered = [kept[::-1] if backward else kept for kept, backward in zip(collected, turned, strict=True)]
    return [*state, *(_stacked(p, c, rows, axis) for rows, axis in zip(ordered, places, strict=True))]


def _truth(c: Call, place: int) -> bool:
    """A stored condition."""
    array = c.stored(place)
    need(array.dtype == np.dtype("?") and array.size == 1, f"{c.op} with a condition that is no truth value")
    return bool(array.reshape(()))


def _entry(p: Builder, x: Value | Stored, axis: int, index: int) -> Value | Stored:
    """One entry of an axis, without the axis."""
    array: Array = np.take(x.array if isinstance(x, Stored) else x.places, index, axis)
    p.charge(array.size)
    return x.showing(array)


def _stays(c: Call, first: Sequence[Operand], last: Sequence[Operand]) -> None:
    """That a state has the type and the size with which it began."""
    for a, b in zip(first, last, strict=True):
        if isinstance(a, Value | Stored) and isinstance(b, Value | Stored):
            need(
                a.kind == b.kind and a.shape == b.shape, f"{c.op} with a state that changes its type or size"
            )


def _stacked(p: Builder, c: Call, rows: Sequence[Operand], axis: int) -> Operand:
    """Results of all rounds along a new axis; Missing where one of them is."""
    try:
        need(rows, f"{c.op} that collects the results of no round")
        values = [p.computed(row) for row in rows]
        rank = values[0].places.ndim + 1
        alike = len({(v.shape, v.kind) for v in values}) == 1
        need(alike and -rank <= axis < rank, f"{c.op} that collects results of unequal sizes")
        sources, places = p.joined(values)
        p.charge(sum(a.size for a in places))
        return p.tidy(Value(sources, np.stack(places, axis), values[0].kind))
    except TooLarge:
        raise
    except NotCovered as error:
        return Missing(str(error))


SUBGRAPHS: dict[str, Callable[[Builder, Call, Round], list[Operand]]] = {
    "If": _branch,
    "Loop": _loop,
    "Scan": _scan,
}
