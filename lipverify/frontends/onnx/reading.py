"""Which inputs of a file vary, and how long its sequences are: several inputs joined to one vector, open lengths.

Legend: a state is an input that a recurrent layer begins with, and that nothing but moves of entries stand before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lipverify.errors import UnsupportedModel, UsageError
from lipverify.frontends.onnx.inputs import FLOATS, Constant, declared_sizes, filled
from lipverify.ir.op import Shape
from lipverify.ir.reading import Reading
from lipverify.loading.names import display

STATES = ("given", "zero", "free")
_CELLS = ("RNN", "GRU", "LSTM")
_MOVES = (
    "Identity",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Reshape",
    "Slice",
    "Split",
    "Gather",
    "Concat",
    "Cast",
    "Expand",
)


@dataclass(frozen=True)
class Choice:
    """What varies and what is fixed, before sizes are known. free: several that vary as one vector; empty where one does."""

    input: str | None
    constants: Mapping[str, Constant]
    free: tuple[str, ...] = ()


def chosen(graph: Any, name: str | None, constants: Mapping[str, Constant], state: str) -> Choice:
    """The inputs that vary, by the user's words about one of them, about fixed ones and about all others.

    Raises:
        UsageError: there is no such word for the others.
    """
    if state not in STATES:
        raise UsageError(f"the state is one of {', '.join(STATES)}, not {display(str(state), 40)}")
    stored = {tensor.name for tensor in graph.initializer}
    left = [v for v in graph.input if v.name not in stored and v.name not in constants]
    real = [v.name for v in left if v.type.HasField("tensor_type") and v.type.tensor_type.elem_type in FLOATS]
    if state == "given" or len(real) < 2:
        return Choice(name, constants)
    if state == "free":
        ordered = [*([name] if name in real else []), *(n for n in real if n != name)]
        return Choice(None, constants, tuple(ordered))
    if name is None:
        begun = states_of(graph)
        others = [n for n in real if n not in begun]
        if len(others) != 1:
            return Choice(None, constants)  # which one varies is asked where inputs are counted
        (name,) = others
    return Choice(name, {**constants, **{n: 0.0 for n in real if n != name}})


def states_of(graph: Any) -> set[str]:
    """Names of the inputs that recurrent layers begin with."""
    begins = [n for node in graph.node if node.op_type in _CELLS for n in list(node.input)[5:7] if n]
    return {name for start in begins for name in _behind(graph, start)}


def _behind(graph: Any, name: str) -> set[str]:
    """Inputs of the graph of which a tensor only moves entries."""
    writers = {output: node for node in graph.node for output in node.output if output}
    inputs = {value.name for value in graph.input}
    found, seen, waiting = set[str](), {name}, [name]
    while waiting:
        current = waiting.pop()
        if current in inputs:
            found.add(current)
        node = writers.get(current)
        if node is None or node.op_type not in _MOVES:
            continue
        more = list(node.input) if node.op_type == "Concat" else list(node.input)[:1]
        waiting += [n for n in more if n not in seen]
        seen.update(more)
    return found


def time_axis(graph: Any, name: str, sizes: Sequence[int | None]) -> int | None:
    """The axis of an input along which a recurrent layer goes; else its one open axis behind the first. None: there is none."""
    writers = {output: node for node in graph.node for output in node.output if output}
    found = set()
    for cell in (node for node in graph.node if node.op_type in _CELLS):
        layout = next((a.i for a in cell.attribute if a.name == "layout"), 0)
        axis, tensor = (1 if layout == 1 else 0), cell.input[0]
        while tensor != name and (node := writers.get(tensor)) is not None:
            if node.op_type == "Transpose":
                order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [2, 1, 0])
                axis = order[axis] if axis < len(order) else axis
            elif node.op_type not in ("Identity", "Cast"):
                break
            tensor = node.input[0]
        if tensor == name:
            found.add(axis)
    if len(found) == 1:
        return found.pop()
    opened = [axis for axis, size in enumerate(sizes) if axis and size is None]
    return opened[0] if len(opened) == 1 and not found else None


@dataclass(frozen=True)
class Sizes:
    """The sizes of one input for a batch of one. time: the axis of its sequence, where the user gave its length."""

    shape: Shape
    time: int | None = None


def sizes_of(graph: Any, name: str, input_shape: Sequence[int] | None, steps: int | None) -> Sizes | None:
    """The sizes of an input, its sequence of `steps` steps where that is given; None: the rules for files without any.

    Raises:
        UsageError: it has no sequence of open length, or one of another length. UnsupportedModel: other sizes are open.
    """
    if steps is None:
        return None
    value = next(v for v in graph.input if v.name == name)
    shown = f'input "{display(name)}"'
    if input_shape is not None:
        raise UsageError("give the length of a sequence by --steps or within --input-shape, not by both")
    if steps < 1:
        raise UsageError(f"a sequence has at least 1 step, not {steps}")
    declared = declared_sizes(value)
    axis = None if declared is None else time_axis(graph, name, declared)
    if declared is None or axis is None or axis >= len(declared):
        raise UsageError(
            f"{shown} has no axis that is known to be that of a sequence; give the sizes of one sample with --input-shape"
        )
    if declared[axis] not in (None, steps):
        raise UsageError(f"{shown} {[s or '?' for s in declared]} has {declared[axis]} steps, not {steps}")
    declared[axis] = steps
    batch = 1 if axis == 0 else 0
    if batch < len(declared) and declared[batch] is None and len(declared) > 2:
        declared[batch] = 1
    return Sizes(filled(declared, None, shown), axis)


def joined(
    model: Any, names: Sequence[str], steps: int | None
) -> tuple[str, tuple[tuple[str, Shape], ...], list[str]]:
    """Makes several inputs the parts of one vector, in place: its name, the parts with their sizes, and this in words.

    Raises:
        UnsupportedModel: they are of different types, or sizes are open.
    """
    graph = model.graph
    values = {value.name: value for value in graph.input}
    kinds = {values[name].type.tensor_type.elem_type for name in names}
    if len(kinds) != 1:
        raise UnsupportedModel(
            f"the inputs {', '.join(display(n, 30) for n in names)} are of different types, which no vector joins; fix some with "
            "--constant NAME=VALUE"
        )
    parts, begun, timed = [], states_of(graph), False
    for name in names:
        declared, shown = declared_sizes(values[name]), f'input "{display(name)}"'
        axis = None if declared is None or name in begun else time_axis(graph, name, declared)
        if steps is not None and axis is not None:
            found, timed = sizes_of(graph, name, None, steps), True
            assert found is not None
            shape = found.shape
        elif declared is not None and name in begun:
            shape = tuple(size or 1 for size in declared)
        else:
            shape = filled(declared, None, shown)
        parts.append((name, shape))
    if steps is not None and not timed:
        raise UsageError("none of the inputs has a sequence of open length")
    taken = (
        {n for node in graph.node for n in (*node.input, *node.output)}
        | {t.name for t in graph.initializer}
        | set(values)
    )

    def fresh(name: str) -> str:
        free = next(n for k in itertools.count() if (n := f"{name}{k or ''}") not in taken)
        taken.add(free)
        return free

    whole, start, nodes = fresh("inputs"), 0, []
    for name, shape in parts:
        size = math.prod(shape)
        places, sizes, flat = fresh(f"{name}/places"), fresh(f"{name}/sizes"), fresh(f"{name}/flat")
        graph.initializer.append(numpy_helper.from_array(np.arange(start, start + size), places))
        graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), sizes))
        nodes.append(helper.make_node("Gather", [whole, places], [flat], name=flat, axis=0))
        nodes.append(helper.make_node("Reshape", [flat, sizes], [name], name=f"{flat}/shape"))
        start += size
    later = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *later])
    kept = [value for value in graph.input if value.name not in names]
    del graph.input[:]
    graph.input.extend([*kept, onnx.helper.make_tensor_value_info(whole, kinds.pop(), [start])])
    listed = ", ".join(f'"{display(name, 30)}" {list(shape)}' for name, shape in parts)
    return whole, tuple(parts), [f"its inputs {listed} joined to one vector of {start} numbers"]


def reading_of(
    declared: Sequence[Any],
    inputs: Sequence[tuple[str, Shape]],
    fixed: Mapping[str, Any],
    stored: set[str],
    steps: int | None,
) -> Reading | None:
    """What a checker has to know beside the file. declared: the inputs of the whole file; stored: its tensors.

    None where the file alone says it: one input, of which nothing but a batch axis is open.
    """
    free = [value for value in declared if value.name not in stored]
    if len(free) == len(inputs) == 1 and not fixed:
        sizes = declared_sizes(free[0])
        plain = sizes is not None and len(sizes) > 0
        shape = [
            1 if a == 0 and s is None and sizes is not None and len(sizes) > 1 else s
            for a, s in enumerate(sizes or ())
        ]
        if plain and tuple(shape) == tuple(inputs[0][1]):
            return None
    return Reading(tuple(inputs), dict(fixed), steps)
