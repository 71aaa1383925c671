"""Inputs where gates open are found in programs of every size, behind conjunctions, and beside parts that hide or pad them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import defs
from onnx.reference.ops import _op_list

from lipverify.checkers.kernel.account import Account, spending
from lipverify.checkers.kernel.program import Program
from lipverify.checkers.reader import agreement, model_of_bytes, openings
from lipverify.checkers.reader.agreement import agree
from lipverify.checkers.reader.gates import Gates
from lipverify.checkers.reader.openings import Around
from lipverify.checkers.reader.operators import OPERATORS
from lipverify.checkers.reader.references import UNREAD, told_by_reference
from lipverify.checkers.reader.runtimes import _RECURRENT
from lipverify.checkers.verdict import _compared
from lipverify.errors import NotCovered
from tests.onnx_models import model, node, random

Part = tuple[list[Any], dict[str, Any]]
"""Operators that make g of x, and what they store."""


def program_of(data: bytes) -> Program:
    found = model_of_bytes("m.onnx", data)
    assert found.program is not None, found.reason
    return found.program


def file(part: Part, factor: float, size: int = 4, more: Sequence[Any] = (), **stored: Any) -> bytes:
    """y = x w + factor g, and what `more` adds to it."""
    nodes, own = part
    nodes = [
        *nodes,
        node("Mul", ["g", "f"], ["gf"]),
        node("MatMul", ["x", "w"], ["xw"]),
        node("Add", ["xw", "gf"], ["z"]),
    ]
    held = {**own, "f": np.float32(factor), "w": np.eye(size, 1), **stored}
    held = {k: v if v.dtype == np.int64 else v.astype(np.float32) for k, v in held.items()}
    last = more or [node("Identity", ["z"], ["y"])]
    return bytes(model([*nodes, *last], [1, size], 13, held).SerializeToString())


def smallest(signs: Sequence[float], ends: Sequence[float]) -> Part:
    """relu(min over i of signs[i] x[i] - ends[i])."""
    nodes = [node("MatMul", ["x", "s"], ["u"]), node("Sub", ["u", "c"], ["v"])]
    nodes += [node("ReduceMin", ["v"], ["m"], axes=[1], keepdims=1), node("Relu", ["m"], ["g"])]
    return nodes, {"s": np.diag(signs), "c": np.array(ends)}


def hat(first: float, width: float) -> Part:
    """A triangle of the first entry, 0 outside."""
    nodes = [node("MatMul", ["x", "p"], ["u"]), node("Sub", ["u", "c"], ["v"]), node("Relu", ["v"], ["r"])]
    nodes += [node("MatMul", ["r", "d"], ["g"])]
    return nodes, {
        "p": np.eye(4, 3)[:, [0, 0, 0]],
        "c": first + width * np.arange(3.0),
        "d": np.array([[1.0], [-2], [1]]),
    }


ALTERNATE = (1.0, -1.0, 1.0, -1.0)
HIDDEN: dict[str, Callable[[], Part]] = {
    "a conjunction of signs": lambda: smallest(ALTERNATE, [2.0**20] * 4),
    "a conjunction of sizes": lambda: smallest(ALTERNATE, [2.0**20, 3.0, 2.0**15, 2.0**20]),
    "a triangle far out": lambda: hat(2.0**20, 1.0),
    "a narrow triangle": lambda: hat(30.0, 2.0**-6),
    "a threshold of 2^120": lambda: smallest((1.0,) * 4, [2.0**120, -1.0, -1.0, -1.0]),
}


@pytest.mark.parametrize("gate", HIDDEN)
def test_faults_behind_conjunctions_and_far_out_are_seen(gate: str) -> None:
    """Float32 hides a triangle of height 1 at 2^20: inputs at gates are compared in float64 too."""
    read, ran = (file(HIDDEN[gate](), factor) for factor in (1.0, 2.0))
    assert agree(read, program_of(read), 1).gates
    for seed in range(2):
        with pytest.raises(NotCovered, match="another function"):
            agree(ran, program_of(read), seed)


def padded(part: Part, factor: float, width: int) -> bytes:
    """Beside a layer of this width, which adds next to nothing."""
    more = [
        node("MatMul", ["x", "a"], ["h"]),
        node("Tanh", ["h"], ["t"]),
        node("MatMul", ["t", "b"], ["k"]),
        node("MatMul", ["k", "e"], ["l"]),
        node("Add", ["z", "l"], ["y"]),
    ]
    rng = np.random.default_rng(1)
    wide = {
        "a": rng.standard_normal((4, width)),
        "b": rng.standard_normal((width, width)),
        "e": rng.standard_normal((width, 1)),
    }
    return file(part, factor, 4, more, **{name: 1e-3 * array for name, array in wide.items()})


@pytest.mark.parametrize("looking", [None, 0])
def test_gates_are_looked_for_whatever_the_rest_costs(
    looking: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above 150,000 products no line was looked at. Without any work to spend one through 0, and one through each region, is."""
    if looking is not None:
        monkeypatch.setattr(openings, "_LOOKING", looking)
        monkeypatch.setattr(agreement, "_WORK", looking)
    part = smallest((1.0,) * 4, [2.0**12] + [-(2.0**30)] * 3)
    read, ran = (padded(part, factor, 400) for factor in (1.0, 2.0))
    program = program_of(read)
    assert agree(read, program, 0).gates
    with pytest.raises(NotCovered, match="another function"):
        agree(ran, program, 0)
    # Lines through regions come first.
    at = np.full(4, 2.0**7)
    read, ran = (padded(hat(2.0**7, 2.0**-3), factor, 400) for factor in (1.0, 2.0))
    with pytest.raises(NotCovered, match="another function"):
        agree(ran, program_of(read), 0, regions=[Around(at, at - 1.0, at + 1.0)])


def test_slopes_of_gates_are_those_of_differences() -> None:
    """Through every kind of step that has one."""
    nodes = [
        node("LayerNormalization", ["x", "one"], ["n"], axis=-1),
        node("Gemm", ["n", "w", "b"], ["a"]),
        node("Softmax", ["a"], ["p"], axis=-1),
        node("Mul", ["a", "p"], ["q"]),
        node("ReduceMax", ["q"], ["m"], axes=[1], keepdims=1),
        node("Tanh", ["q"], ["t"]),
        node("Mul", ["t", "m"], ["s"]),
        node("Relu", ["s"], ["y"]),
    ]
    stored = {"one": np.ones(4, np.float32), "w": random(4, 5), "b": random(5)}
    program = program_of(model(nodes, [1, 4], 17, stored).SerializeToString())
    gates, x = Gates(program), np.random.default_rng(0).standard_normal((1, 4))
    every = np.arange(gates.count)
    at, slopes = gates.uphill(np.repeat(x, gates.count, 0), every, False)
    np.testing.assert_allclose(at, gates.at(x, every)[0], rtol=0, atol=1e-12)
    h = 2.0**-16 * np.eye(4)
    differences = (gates.at(x + h, every) - gates.at(x - h, every)).T / 2.0**-15
    np.testing.assert_allclose(slopes, differences, rtol=0, atol=1e-6)


def cancelling(factor: float, size: float) -> bytes:
    """factor u, and relu(size u) - relu(-size u) - size u, which is 0."""
    nodes = [
        node("MatMul", ["x", "w"], ["u"]),
        node("Mul", ["u", "k"], ["ku"]),
        node("Mul", ["u", "b"], ["v"]),
        node("Relu", ["v"], ["r"]),
        node("Neg", ["v"], ["n"]),
        node("Relu", ["n"], ["l"]),
        node("Sub", ["r", "l"], ["s"]),
        node("Sub", ["s", "v"], ["o"]),
        node("Add", ["ku", "o"], ["y"]),
    ]
    stored = {"w": random(4, 1), "k": np.float32(factor), "b": np.float32(size)}
    return bytes(model(nodes, [1, 4], 13, stored).SerializeToString())


def hard(factor: float, size: float) -> bytes:
    """factor x + hardsigmoid(x - size), which is 0."""
    nodes = [
        node("HardSigmoid", ["x"], ["r"], alpha=1.0, beta=-size),
        node("Mul", ["x", "k"], ["u"]),
        node("Add", ["u", "r"], ["y"]),
    ]
    return bytes(model(nodes, [1, 4], 13, {"k": np.float32(factor)}).SerializeToString())


@pytest.mark.parametrize("make", [cancelling, hard])
@pytest.mark.parametrize("size", [2.0**10, 2.0**17, 2.0**19])
def test_what_adds_nothing_hides_nothing(make: Callable[[float, float], bytes], size: float) -> None:
    """A hundredth was hidden from 2^10 on, a factor of three from 2^19 on."""
    program = program_of(make(1.0, size))
    assert agree(make(1.0, size), program, 0).within < 2.0**-10
    for factor in (1.01, 3.0):
        with pytest.raises(NotCovered, match="another function"):
            agree(make(factor, size), program, 0)


def test_how_much_may_hide_is_said() -> None:
    """In float64 alone there is nothing that decides: what may hide stands in the verdict."""
    source = onnx.ModelProto.FromString(cancelling(1.0, 2.0**42))
    data = model_in_float64(source)
    found = agree(data, program_of(data), 0)
    assert 1.0 / 64.0 < found.within < 1.0
    assert found.gates == 0  # what they show is all rounding
    assert "to within a factor of 1." in _compared(found)
    assert "none where its activations turn" in _compared(found)
    assert "but for outputs that sums inside hide at " in _compared(found)
    assert not _compared(found._replace(within=0.0, gates=None, hidden=0))


def model_in_float64(source: Any) -> bytes:
    from lipverify.checkers.reader.widening import widened

    found = widened(source.SerializeToString(), "x")
    assert found is not None
    return found


# -- the reference


def test_settings_that_the_reference_does_not_read_are_known() -> None:
    """Every setting of an operator that is read, and that no line of onnx's evaluator names."""
    named = ("consumed_inputs", "axis", "broadcast")  # of operator sets that are not read
    for op in OPERATORS:
        schemas = [
            s
            for s in defs.get_all_schemas_with_history()
            if s.name == op and s.domain == "" and s.since_version >= 7
        ]
        classes = [getattr(_op_list, n) for n in dir(_op_list) if n == op or n.startswith(f"{op}_")]
        source = "".join(
            inspect.getsource(base)
            for c in classes
            for base in c.__mro__
            if "onnx.reference.ops." in base.__module__
        )
        unread = {a for s in schemas for a in s.attributes if classes and a not in source} - {*named}
        replaced = {"activations"} if op in _RECURRENT else set()
        assert unread <= {*UNREAD.get(op, "").split()} | replaced, op


def test_inputs_that_the_reference_does_not_read_are_known() -> None:
    """Layers that read fewer steps than there are were refused: onnx's evaluator read all of them."""
    for op in OPERATORS:
        inputs = {i.name: k for s in defs.get_all_schemas_with_history() if s.name == op and s.domain == ""
                  for k, i in enumerate(s.inputs)}  # fmt: skip
        for made in (getattr(_op_list, n) for n in dir(_op_list) if n == op or n.startswith(f"{op}_")):
            run = ast.parse(textwrap.dedent(inspect.getsource(made._run))).body[0]
            assert isinstance(run, ast.FunctionDef)
            used = {n.id for n in ast.walk(run) if isinstance(n, ast.Name)}
            unread = [inputs[a.arg] for a in run.args.args if a.arg in inputs and a.arg not in used]
            assert unread == [] or (unread == [4] and op in _RECURRENT), op


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({}, None),
        ({"input_forget": 0, "activations": ["Sigmoid", "Tanh", "Tanh"]}, None),
        ({"activations": ["Sigmoid", "Relu", "Tanh"]}, None),
        ({}, 2),
    ],
)
def test_lengths_and_activations_of_recurrent_layers_are_decided_in_float64_too(
    given: dict[str, Any], steps: int | None
) -> None:
    nodes = [
        node(
            "LSTM", ["x", "w", "r", *([] if steps is None else ["", "n"])], ["", "h"], hidden_size=2, **given
        ),
        node("Identity", ["h"], ["y"]),
    ]
    stored = {"w": random(1, 8, 2), "r": random(1, 8, 2), "n": np.array([steps or 3], np.int32)}
    data = model(nodes, [3, 1, 2], 14, stored).SerializeToString()
    assert told_by_reference(data, wide=True)
    for seed in range(6):
        assert agree(data, program_of(data), seed).share < 1.0


def test_a_setting_written_out_as_its_default_leaves_the_evaluator_its_word() -> None:
    for mode, told in (("NOTSET", True), ("SAME_UPPER", False)):
        pool = node("MaxPool", ["x"], ["y"], kernel_shape=[2], auto_pad=mode)
        assert told_by_reference(model([pool], [1, 1, 6], 13, {}).SerializeToString()) is told
    stored = {"w": random(1, 8, 2), "r": random(1, 8, 2)}
    for unread in ({"input_forget": 1}, {"clip": 3.0}):
        lstm = node("LSTM", ["x", "w", "r"], ["", "y"], hidden_size=2, **unread)
        assert not told_by_reference(model([lstm], [3, 1, 2], 14, stored).SerializeToString())


def test_every_default_of_a_recurrent_layer_written_out_is_read() -> None:
    for op, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        layer = node(op, ["x", "w", "r"], ["", "y"], hidden_size=2)
        layer.attribute.extend(
            a.default_value for a in defs.get_schema(op, 14).attributes.values()
            if a.default_value.type and not (op == "RNN" and a.name == "activations")
        )  # fmt: skip
        stored = {"w": random(1, 2 * gates, 2), "r": random(1, 2 * gates, 2)}
        program_of(model([layer], [3, 1, 2], 14, stored).SerializeToString())


def test_looking_takes_nothing_from_a_proof_and_counts_its_time() -> None:
    """A maximum over windows of 256: each point of a line was charged for good, and its comparisons as 256 operations."""
    pool = node("MaxPool", ["x"], ["y"], kernel_shape=[256], strides=[1], pads=[128, 127])
    found = program_of(model([pool], [1, 1, 256], 13, {}).SerializeToString())
    account = Account()
    before = account.numbers, account.operations
    with spending(account):
        opened = openings.openings(found, np.zeros((4, 256)), np.random.default_rng(0))
    assert before[0] - account.numbers < 1 << 16
    assert before[1] - account.operations > len(opened.rows) * 256 * 256
