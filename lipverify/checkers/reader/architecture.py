"""The architecture that a certificate states for a file of weights: operators of ONNX and a few beside them, as a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lipverify.checkers.kernel.program import Array, Output, Program
from lipverify.checkers.reader.building import FLOATS, MAX_AXES, Builder, Operand, stored
from lipverify.checkers.reader.calls import Call
from lipverify.checkers.reader.finishing import finished
from lipverify.checkers.reader.operators import run
from lipverify.checkers.reader.refusals import need, shown
from lipverify.errors import LipverifyError, NotCovered

MAX_NODES = 50_000
_KIND = np.dtype("<f8")
_VERSION = 17


def architecture(document: Any, tensors: Mapping[str, Array]) -> Program:
    """The program of {"input": name, "shape": [1, ...], "nodes": [...], "outputs": [names]}.

    A node is {"op", "inputs", "output", "given"}: inputs are names of earlier results or of `tensors`, "" where one is left out;
    settings are integers, words, lists of integers, and real numbers written in hexadecimal. Every name has one meaning.

    Raises:
        NotCovered: an operator, setting or size that is not read, or a document of another form.
    """
    _fields(document, {"input", "shape", "nodes", "outputs"})
    shape, nodes, outputs = document["shape"], document["nodes"], document["outputs"]
    need(
        _integers(shape) and 0 < len(shape) <= MAX_AXES and 1 in (shape[0], len(shape)),
        "the shape of the input",
    )
    need(isinstance(nodes, list) and len(nodes) <= MAX_NODES, "the nodes of an architecture")
    need(
        _names([document["input"]]) and _names(outputs) and len(set(outputs)) == len(outputs) > 0,
        "the names of an architecture",
    )
    builder = Builder(shape, _KIND, sum({id(a): a.nbytes for a in tensors.values()}.values()))
    values: dict[str, Operand] = {name: stored(_wide(builder, a)) for name, a in tensors.items()}
    need(document["input"] not in values and "" not in values, "a name of two meanings")
    values[document["input"]] = builder.input
    for node in nodes:
        _fields(node, {"op", "inputs", "output", "given"})
        need(
            isinstance(node["inputs"], list) and isinstance(node["given"], dict), "a node of an architecture"
        )
        need(
            _names([node["op"], node["output"]]) and all(isinstance(n, str) for n in node["inputs"]),
            "a node of an architecture",
        )
        need(node["output"] not in values, f"the name {shown(node['output'])} has two meanings")
        need(all(n in values for n in node["inputs"] if n), f"{shown(node['op'])} reads what nothing writes")
        given = {key: _setting(value) for key, value in node["given"].items()}
        operands = [values[n] if n else None for n in node["inputs"]]
        try:
            values[node["output"]] = run(
                builder, Call(builder, node["op"], _VERSION, operands, given, 1, words=True)
            )[0]
        except LipverifyError:
            raise
        except (ValueError, IndexError, TypeError, OverflowError) as error:
            raise NotCovered(f"{shown(node['op'])} does not fit together ({type(error).__name__})") from error
    found = []
    for name in outputs:
        need(name in values, f"output {shown(name)} is written by nothing")
        value = builder.computed(values[name])
        found.append(
            Output(
                name,
                builder.view(value),
                value.shape[1:] if len(value.shape) > 1 and value.shape[0] == 1 else value.shape,
            )
        )
    return finished(Program(tuple(builder.steps), tuple(found), tuple(shape)))


def tensors_read(document: Any) -> frozenset[str]:
    """The names that nodes read and no node writes, the input aside, behind the outputs of an architecture that was read."""
    writers = {node["output"]: node for node in document["nodes"]}
    found, waiting = set(document["outputs"]), list(document["outputs"])
    while waiting:
        node = writers.get(waiting.pop())
        for name in () if node is None else node["inputs"]:
            if name and name not in found:
                found.add(name)
                waiting.append(name)
    return frozenset(found - writers.keys() - {document["input"]})


def _fields(value: Any, names: set[str]) -> None:
    need(isinstance(value, dict) and value.keys() == names, "the fields of an architecture")


def _names(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(n, str) and 0 < len(n) <= 4096 for n in values)


def _integers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(type(n) is int for n in values)


def _setting(value: Any) -> Any:
    if isinstance(value, list):
        need(_integers(value), "a setting that is no list of integers")
        return tuple(value)
    need(type(value) in (int, str), "a setting of an unknown type")
    if isinstance(value, str) and value.lstrip("-")[:2] == "0x":
        need(len(value) <= 30, "a setting that is no number")
        try:
            return float.fromhex(value)
        except (ValueError, OverflowError):
            raise NotCovered("a setting that is no number") from None
    return value


def _wide(builder: Builder, array: Array) -> Array:
    """Stored floats as float64, exactly; integers as int64."""
    builder.charge(array.size)
    if array.dtype in FLOATS:
        need(bool(np.isfinite(array).all()), "a stored tensor that is not finite")
        return array.astype(_KIND)
    need(array.dtype.kind in "iu" and array.dtype != np.dtype("<u8"), "a stored tensor of another type")
    return array.astype(np.int64)
