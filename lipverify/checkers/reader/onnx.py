"""ONNX files as programs. Everything in a file is read or refused, and nothing beside the file is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.program import Array, Output, Program, View
from lipverify.checkers.reader.building import (
    FLOATS,
    Builder,
    Missing,
    Operand,
    TooLarge,
    stored,
)
from lipverify.checkers.reader.calls import Body, Call
from lipverify.checkers.reader.finishing import finished
from lipverify.checkers.reader.operators import OPERATORS, run
from lipverify.checkers.reader.reading import Reading
from lipverify.checkers.reader.recurrent import RECURRENT
from lipverify.checkers.reader.refusals import need, shown
from lipverify.checkers.reader.subgraphs import SUBGRAPHS, written_out
from lipverify.checkers.reader.tensors import KINDS, known, tensor
from lipverify.checkers.reader.wire import Message, parse_model
from lipverify.errors import NotCovered, UnreadableCertificate

OLDEST, NEWEST = 7, 28
"""Operator sets that are read."""
_STANDARD = ("", "ai.onnx")
_CONTRIBUTED = "com.microsoft"
"""onnxruntime's own domain, of which some operators are read, as it defines them."""


@dataclass(frozen=True)
class Read:
    """What a file says. refused: why the outputs with these numbers are not covered. used: stored tensors behind the others."""

    program: Program
    refused: Mapping[int, str]
    tensors: Mapping[str, Array]
    used: frozenset[str]
    several: bool
    """Whether the file computes any number of samples at once; the program is what it does with one."""


@dataclass(frozen=True)
class _Node:
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    given: Mapping[str, Any]

    @property
    def reads(self) -> tuple[str, ...]:
        """Its inputs, and what its bodies see of the graph around them."""
        bodies = [found for found in self.given.values() if isinstance(found, Body)]
        return (
            (*self.inputs, *sorted(set().union(*(body.seen for body in bodies)))) if bodies else self.inputs
        )


def read_onnx(data: bytes, reading: Reading | None = None) -> Read:
    """The program of a file, its inputs read as a claim says where the file alone does not.

    Raises:
        NotCovered: something in the file that is not read.
    """
    model = parse_model(data)
    need(
        3 <= model.get("ir_version", 0) <= 14,
        f"ONNX of version {model.get('ir_version')} is not covered by the checker",
    )
    need("graph" in model, "a model without a graph")
    graph, version = model["graph"], _version(model["opset_import"])
    tensors: dict[str, Array] = {}
    for entry in graph["initializer"]:
        name = entry.get("name", "")
        need(name and name not in tensors, f"the name {shown(name)} has two meanings")
        tensors[name] = tensor(entry)
    nodes = [_node(entry, version) for entry in graph["node"]]
    given = _given(graph["input"], tensors, reading)
    tensors |= given.fixed
    outputs = _outputs(graph["output"])
    writers = _writers(nodes, {*given.shapes, *given.silent, *tensors})
    for body in (found for node in nodes for found in node.given.values() if isinstance(found, Body)):
        hidden = body.own & {*given.shapes, *given.silent, *tensors, *writers}
        need(not hidden, f"the name {shown(min(hidden, default=''))} has two meanings")
    for node in nodes:
        if node.op == "Constant":
            name, array = _named(node, version)
            tensors[name] = array
    builder = Builder(given.shape, given.kind, len(data))
    values: dict[str, Operand] = {n: stored(a) for n, a in tensors.items()}
    values |= dict.fromkeys(given.silent, Missing("an input of which the claim says nothing")) | given.parts(
        builder
    )
    for output, _ in outputs:
        need(output in values or output in writers, f"output {shown(output)} is written by nothing")
    order, wanted = _order(nodes, writers), _behind([o for o, _ in outputs], nodes, writers)
    for k in order:
        if nodes[k].op != "Constant" and not wanted.isdisjoint(nodes[k].outputs):
            _translate(nodes[k], values, builder, version)
    found: list[Output] = []
    refused: dict[int, str] = {}
    for k, (output, told) in enumerate(outputs):
        try:
            found.append(_output(builder, output, values[output], told))
        except TooLarge:
            raise
        except NotCovered as error:
            refused[k] = str(error)
            found.append(Output(output, View((), np.empty(0, np.int64)), (0,)))
    if len(refused) == len(outputs):
        raise NotCovered(refused[0])
    program = finished(Program(tuple(builder.steps), tuple(found), given.shape))
    used = _behind([o.name for k, o in enumerate(found) if k not in refused], nodes, writers)
    own = {name: array for name, array in tensors.items() if name not in given.fixed}
    return Read(program, refused, own, frozenset(used & own.keys()), given.several)


def _version(imports: Sequence[Message]) -> int:
    domains = ["" if entry.get("domain", "") in _STANDARD else entry["domain"] for entry in imports]
    need(len(set(domains)) == len(domains), "two versions of one operator set")
    need("" in domains, "a model that does not say which operator set it means")
    version = imports[domains.index("")].get("version", 0)
    need(OLDEST <= version <= NEWEST, f"operator set {version} is not covered by the checker")
    return int(version)


# -- operators


def _node(entry: Message, version: int) -> _Node:
    op, domain = entry.get("op_type", ""), entry.get("domain", "")
    need("." not in op, f"an operator called {shown(op)}")
    if f"{domain}.{op}" in OPERATORS and domain == _CONTRIBUTED:
        op = f"{domain}.{op}"
    else:
        need(domain in _STANDARD, f"operators of the domain {shown(domain)} are not covered by the checker")
    need(not entry.get("overload") and op, "an operator without a name, or one of several of its name")
    given: dict[str, Any] = {}
    for attribute in entry["attribute"]:
        name = attribute.get("name", "")
        need(name and name not in given, f"the setting {shown(name)} of {shown(op)} occurs twice")
        given[name] = _body(attribute, op, version) if "g" in attribute else _attribute(attribute, op)
    need(entry["output"], f"{shown(op)} without results")
    return _Node(op, tuple(entry["input"]), tuple(entry["output"]), given)


def _body(entry: Message, op: str, version: int) -> Body:
    """A subgraph: stored tensors and operators as those of the graph around it, and the names that it only reads."""
    need(entry.get("type") == 5 and not entry.keys() - {"name", "type", "g", "doc_string"},
         f"a setting of {shown(op)} with values of another type")  # fmt: skip
    need(op in SUBGRAPHS, f"a subgraph of {shown(op)} is not covered by the checker")
    graph = entry["g"]
    inputs, outputs = ([value.get("name", "") for value in graph[side]] for side in ("input", "output"))
    need(
        all(inputs) and all(outputs) and len(set(outputs)) == len(outputs),
        "a subgraph with values without names",
    )
    tensors: dict[str, Array] = {}
    nodes = [_node(inner, version) for inner in graph["node"]]
    named = [(stated.get("name", ""), tensor(stated)) for stated in graph["initializer"]]
    named += [_named(node, version) for node in nodes if node.op == "Constant"]
    for name, array in named:
        need(name and name not in tensors, f"the name {shown(name)} has two meanings")
        tensors[name] = array
    own = [
        *inputs,
        *tensors,
        *(name for node in nodes if node.op != "Constant" for name in node.outputs if name),
    ]
    need(len(set(own)) == len(own), "a name in a subgraph has two meanings")
    need(set(outputs) <= set(own), "a subgraph with a result that it does not compute")
    seen = {name for node in nodes for name in node.inputs if name} - set(own)
    writers = {name: k for k, node in enumerate(nodes) for name in node.outputs if name}
    order = [nodes[k] for k in _order(nodes, writers) if nodes[k].op != "Constant"]
    told = {value["name"]: _type(value) for value in graph["input"] if "type" in value}
    return Body(tuple(inputs), tuple(outputs), tuple(order), {n: stored(a) for n, a in tensors.items()}, told,
                frozenset(seen), frozenset(own))  # fmt: skip


_ATTRIBUTES = {
    1: ("f", 0.0),
    2: ("i", 0),
    3: ("s", b""),
    4: ("t", None),
    6: ("floats", ()),
    7: ("ints", ()),
    8: ("strings", ()),
}


def _attribute(entry: Message, op: str) -> Any:
    """The one value of a setting, of the type that it states."""
    need(
        entry.get("type", 0) in _ATTRIBUTES,
        f"a setting of {shown(op)} of a type that is not covered by the checker",
    )
    field, default = _ATTRIBUTES[entry["type"]]
    filled = {
        name
        for name, _ in _ATTRIBUTES.values()
        if name in entry and (name[-1] != "s" or name == "s" or len(entry[name]))
    }
    need(filled <= {field}, f"a setting of {shown(op)} with values of another type")
    value = entry.get(field, default)
    if field == "t":
        need(value is not None, f"a setting of {shown(op)} without its tensor")
        return tensor(value)
    if field in ("s", "strings"):
        try:
            found = tuple(text.decode("utf-8", "strict") for text in ([value] if field == "s" else value))
        except UnicodeDecodeError:
            raise NotCovered(f"a setting of {shown(op)} that is no text") from None
        return found[0] if field == "s" else found
    if field == "floats":
        return tuple(float(n) for part in value for n in np.atleast_1d(part))
    return tuple(value) if field == "ints" else value


def _named(node: _Node, version: int) -> tuple[str, Array]:
    """Name and numbers of a Constant."""
    need(not node.inputs and len(node.outputs) == 1 and node.outputs[0], "a constant with operands")
    return node.outputs[0], _constant(node, version)


def _constant(node: _Node, version: int) -> Array:
    """The numbers of a Constant: the one setting that it has."""
    need(len(node.given) == 1, "a constant of several values")
    ((name, value),) = node.given.items()
    if name == "value":
        need(isinstance(value, np.ndarray), "a constant of another type")
        return np.asarray(value)
    need(
        version >= 12, f"a constant by {shown(name)} in operator set {version} is not covered by the checker"
    )
    kinds: dict[str, tuple[type, Any]] = {"value_float": (float, np.float32), "value_int": (int, np.int64)}
    many: dict[str, tuple[type, Any]] = {"value_floats": (float, np.float32), "value_ints": (int, np.int64)}
    need(name in kinds or name in many, f"a constant by {shown(name)} is not covered by the checker")
    kind, dtype = (kinds | many)[name]
    need(
        type(value) is kind
        if name in kinds
        else type(value) is tuple and all(type(v) is kind for v in value),
        "a constant of another type",
    )
    return known(np.array(value, dtype))


# -- names


@dataclass(frozen=True)
class _Given:
    """What goes in. shapes: of the inputs that vary, for one sample; fixed: what stands for others; silent: the rest.

    several: whether the file leaves open how many samples there are.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kind: np.dtype[Any]
    fixed: Mapping[str, Array]
    silent: Sequence[str]
    several: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the one input, or of the vector of several."""
        shapes = list(self.shapes.values())
        return shapes[0] if len(shapes) == 1 else (sum(math.prod(shape) for shape in shapes),)

    def parts(self, builder: Builder) -> dict[str, Operand]:
        """Every input that varies, of the builder's input."""
        if len(self.shapes) == 1:
            return dict.fromkeys(self.shapes, builder.input)
        ends = np.cumsum([0, *(math.prod(shape) for shape in self.shapes.values())])
        places = builder.positions(builder.input)
        return {
            name: builder.input.showing(places[a:b].reshape(shape))
            for (name, shape), a, b in zip(self.shapes.items(), ends, ends[1:], strict=False)
        }


def _given(entries: Sequence[Message], tensors: Mapping[str, Array], reading: Reading | None) -> _Given:
    """The inputs of a file; stored tensors may be listed as inputs too, with their own shape."""
    names = [entry.get("name", "") for entry in entries]
    need(all(names) and len(set(names)) == len(names), "an input without a name, or two of one name")
    free = [name for name in names if name not in tensors]
    told = {entry["name"]: _type(entry) for entry in entries}
    need(free or reading is not None, "models with 0 inputs are not covered by the checker")
    for name in names:
        if name in tensors:
            _fits(told[name], tensors[name], "a stored tensor that is an input of another shape")
    if reading is None:
        need(len(free) == 1, f"models with {len(free)} inputs are not covered by the checker")
        kind, dims = told[free[0]]
        need(dims is not None and len(dims) > 0, "an input without a shape is not covered by the checker")
        assert dims is not None
        shape = tuple(1 if k == 0 and n == -1 and len(dims) > 1 else n for k, n in enumerate(dims))
        need(min(shape) >= 1, "inputs without a fixed shape are not covered by the checker")
        shapes, fixed, several = {free[0]: shape}, {}, shape != tuple(dims)
    else:
        shapes, fixed, several = dict(reading.inputs), dict(reading.arrays), False
        need(shapes.keys() <= set(free), "a claim about inputs that the file does not have, or stores itself")
        need(
            fixed.keys() <= set(free),
            "a claim that fixes inputs which the file does not have, or stores itself",
        )
        for name, array in fixed.items():
            _fits(told[name], array, "what stands for an input is of another type or size")
        kinds = {told[name][0] for name in shapes}
        need(len(kinds) == 1, "inputs of different types as one vector are not covered by the checker")
        kind = kinds.pop()
        for name, shape in shapes.items():
            dims = told[name][1]
            if dims is not None:
                fits = len(dims) == len(shape) and all(
                    n in (-1, m) for n, m in zip(dims, shape, strict=False)
                )
                need(fits, "a claim about an input of another size than the file says")
    need(kind in FLOATS, "inputs that are no real numbers are not covered by the checker")
    return _Given(
        shapes, kind, fixed, [name for name in free if name not in shapes and name not in fixed], several
    )


def _fits(told: tuple[np.dtype[Any], list[int] | None], array: Array, words: str) -> None:
    """Numbers of the type that an input says, and of its sizes where they are told."""
    kind, dims = told
    fits = kind == array.dtype and (dims is None or len(dims) == array.ndim)
    need(fits and all(n in (-1, m) for n, m in zip(dims or (), array.shape, strict=False)), words)
    need(array.dtype.kind != "f" or bool(np.isfinite(array).all()), words)


def _type(entry: Message) -> tuple[np.dtype[Any], list[int] | None]:
    """Element type and axes (-1 where a name stands) of a value; None: no shape is given."""
    told = entry.get("type", {}).get("tensor_type")
    need(told is not None, f"{shown(entry.get('name', ''))} is no tensor")
    kind = told.get("elem_type", 0)
    need(kind in KINDS, f"element type {kind} is not covered by the checker")
    if "shape" not in told:
        return np.dtype(KINDS[kind][0]), None
    dims = []
    for axis in told["shape"]["dim"]:
        need(not ("dim_value" in axis and "dim_param" in axis), "an axis with two sizes")
        dims.append(axis.get("dim_value", -1))
        need(dims[-1] >= 1 or "dim_value" not in axis or dims[-1] == 0, "an axis of a negative size")
    # Some exporters write an unknown size as 0.
    return np.dtype(KINDS[kind][0]), [n or -1 for n in dims]


def _outputs(entries: Sequence[Message]) -> list[tuple[str, np.dtype[Any] | None]]:
    names = [entry.get("name", "") for entry in entries]
    need(names and all(names) and len(set(names)) == len(names), "outputs without names, or two of one name")
    return [(entry["name"], _type(entry)[0] if "type" in entry else None) for entry in entries]


def _writers(nodes: Sequence[_Node], given: set[str]) -> dict[str, int]:
    """Name -> the node that writes it. Every name has one meaning, and every name that is read has one."""
    writers: dict[str, int] = {}
    for k, node in enumerate(nodes):
        for name in node.outputs:
            need(
                not name or (name not in writers and name not in given),
                f"the name {shown(name)} has two meanings",
            )
            if name:
                writers[name] = k
    for node in nodes:
        for name in node.reads:
            need(
                not name or name in given or name in writers,
                f"{shown(node.op)} reads {shown(name)}, which nothing writes",
            )
    return writers


def _order(nodes: Sequence[_Node], writers: Mapping[str, int]) -> list[int]:
    """All nodes, each after those that it reads."""
    readers: list[list[int]] = [[] for _ in nodes]
    waiting_for = []
    for k, node in enumerate(nodes):
        before = {writers[n] for n in node.reads if n in writers}
        waiting_for.append(len(before))
        for b in before:
            readers[b].append(k)
    ready, order = [k for k, count in enumerate(waiting_for) if not count], []
    while ready:
        order.append(ready.pop())
        for k in readers[order[-1]]:
            waiting_for[k] -= 1
            if not waiting_for[k]:
                ready.append(k)
    need(len(order) == len(nodes), "operators in a cycle, which wait for each other")
    # As the file has it, where that is an order: programs then follow the file.
    return list(range(len(nodes))) if _in_order(nodes, writers) else order


def _in_order(nodes: Sequence[_Node], writers: Mapping[str, int]) -> bool:
    return all(writers.get(name, -1) < k for k, node in enumerate(nodes) for name in node.reads)


def _behind(outputs: Sequence[str], nodes: Sequence[_Node], writers: Mapping[str, int]) -> set[str]:
    """The names that outputs rest on, their own among them."""
    found, waiting = set(outputs), list(outputs)
    while waiting:
        k = writers.get(waiting.pop())
        for name in () if k is None else nodes[k].reads:
            if name and name not in found:
                found.add(name)
                waiting.append(name)
    return found


def _translate(node: _Node, values: dict[str, Operand], builder: Builder, version: int) -> None:
    """One operator. What is not covered makes results that cannot be used; an output that needs none of them is still read."""
    charge(0)  # whoever waits may have waited long enough, for every operator of every round of a body
    operands = [values[name] if name else None for name in node.inputs]
    results: Sequence[Operand]
    try:
        call = Call(builder, node.op, version, operands, node.given, len(node.outputs))
        if node.op in SUBGRAPHS:
            results = written_out(builder, call, partial(_round, values, builder, version))
        else:
            results = run(builder, call)
    except TooLarge:
        raise
    except NotCovered as error:
        results = [Missing(str(error))] * len(node.outputs)
    except (ValueError, IndexError, TypeError, OverflowError, UnreadableCertificate) as error:
        reason = f"{shown(node.op)} does not fit together ({type(error).__name__})"
        results = [Missing(reason)] * len(node.outputs)
    for name, result in zip(node.outputs, results, strict=False):
        if name:
            values[name] = result
        else:
            # Results of a layer, and of a body, are all optional.
            left_out = isinstance(result, Missing) or node.op in RECURRENT or node.op in SUBGRAPHS
            need(left_out, f"a result of {shown(node.op)} without a name")


def _round(
    around: Mapping[str, Operand], builder: Builder, version: int, body: Body, given: Mapping[str, Operand]
) -> list[Operand]:
    """The outputs of a body, which reads what it is given and names around it."""
    values: dict[str, Operand] = {name: around[name] for name in body.seen} | {**body.tensors, **given}
    for node in body.nodes:
        _translate(node, values, builder, version)
    return [values[name] for name in body.outputs]


def _output(builder: Builder, name: str, x: Operand, told: np.dtype[Any] | None) -> Output:
    value = builder.computed(x)
    need(told is None or told == value.kind, "an output of another type than the file says")
    need(value.kind in FLOATS, "an output of integers is not covered by the checker")
    shape = value.shape[1:] if len(value.shape) > 1 and value.shape[0] == 1 else value.shape
    return Output(name, builder.view(value), shape)


# -- for a runtime


def input_of(data: bytes) -> tuple[str, tuple[int, ...], np.dtype[Any], bool]:
    """Name, shape for one sample and type of the one input of a file that was read; whether its first axis is open."""
    graph = parse_model(data)["graph"]
    given = _given(graph["input"], {entry["name"]: tensor(entry) for entry in graph["initializer"]}, None)
    return next(iter(given.shapes)), given.shape, given.kind, given.several


def only(data: bytes, outputs: Sequence[str]) -> bytes:
    """The file with these outputs alone and the operators behind them: a runtime runs what the reader has measured, no more."""
    graph = parse_model(data)["graph"]
    nodes = [_node(entry, NEWEST) for entry in graph["node"]]
    writers = {name: k for k, node in enumerate(nodes) for name in node.outputs if name}
    needed = {writers[name] for name in _behind(outputs, nodes, writers) if name in writers}
    if len(needed) == len(nodes) and len(outputs) == len(graph["output"]):
        return data
    import onnx

    model, wanted = onnx.ModelProto.FromString(data), set(outputs)
    charge(0)
    for field, kept in (
        (model.graph.node, [k for k in range(len(nodes)) if k in needed]),
        (model.graph.output, [k for k, entry in enumerate(graph["output"]) if entry["name"] in wanted]),
    ):
        entries = [field[k] for k in kept]
        del field[:]
        field.extend(entries)
    return bytes(model.SerializeToString())
