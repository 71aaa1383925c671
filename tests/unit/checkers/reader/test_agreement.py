"""Every program is held against a runtime on inputs of all sizes: a wrong reading shows, rounding does not."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lipverify.checkers.evaluation import evaluate, shown
from lipverify.checkers.kernel.program import Affine, Program, Scalar
from lipverify.checkers.reader import agreement, model_of_bytes, read_model, runtimes
from lipverify.checkers.reader.agreement import agree
from lipverify.checkers.reader.openings import Around, Opened
from lipverify.checkers.reader.widening import widened
from lipverify.errors import NotCovered
from tests.onnx_models import ints, model, node, random
from tests.tiers import long
from tests.unit.frontends.test_onnx_operators import CASES

CHECKPOINTS = Path(__file__).resolve().parents[5] / "shared" / "checkpoints"


def program_of(data: bytes) -> Program:
    found = model_of_bytes("m.onnx", data)
    assert found.program is not None, found.reason
    return found.program


def small(**change: Any) -> bytes:
    """Two layers with tiny weights beside ordinary ones."""
    stored = {"w": random(6, 5) * np.float32(1e-4), "b": random(5), "v": random(5, 3)} | change
    nodes = [
        node("Gemm", ["x", "w", "b"], ["a"]),
        node("Tanh", ["a"], ["h"]),
        node("MatMul", ["h", "v"], ["y"]),
    ]
    return bytes(model(nodes, ["N", 6], 13, stored).SerializeToString())


def test_what_is_read_is_what_runs() -> None:
    found = agree(small(), program_of(small()))
    assert found.evaluator.startswith("onnx")
    assert found.inputs >= 10
    assert found.share < 0.2


def test_inputs_one_by_one_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = agree(small(), program_of(small()), 3)
    monkeypatch.setattr(agreement, "_HELD", 1)
    assert agree(small(), program_of(small()), 3) == found


@pytest.mark.usefixtures("system_child")
def test_a_process_of_its_own_gives_the_same_numbers() -> None:
    data, seed = small(), 5
    assert agree(data, program_of(data), seed) == agree(data, program_of(data), seed, apart=60.0)
    # A file of two outputs, and one that no runtime takes.
    nodes = [node("Relu", ["x"], ["y"]), node("MatMul", ["y", "w"], ["z"])]
    data = model(nodes, [1, 6], 13, {"w": random(6, 2)}, outputs=("y", "z")).SerializeToString()
    assert agree(data, program_of(data), seed) == agree(data, program_of(data), seed, apart=60.0)
    data = model([node("Celu", ["x"], ["y"])], [1, 6], 13, kind=10).SerializeToString()
    with pytest.raises(NotCovered, match="no runtime that is installed evaluates the file"):
        agree(data, program_of(data), apart=60.0)


BROKEN = {
    "import time\ntime.sleep(600)": "did not end in time",
    "while True: pass": "ended with the code -|did not end in time",  # a busy machine is waited for in vain
    "import os\nos.abort()": "ended with the code -6",
    "print('{}')\nimport os\nos._exit(0)": "ended with the code 0",
    "x = bytearray(1 << 40)": "MemoryError",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits and signals of Unix")
@pytest.mark.usefixtures("system_child")
@pytest.mark.parametrize("code", BROKEN, ids=["sleeps", "loops", "aborts", "answers itself", "takes memory"])
def test_what_breaks_a_runtime_proves_nothing(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: the verification goes on, and refuses the file."""
    (tmp_path / "onnxruntime.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(runtimes, "_WAIT", 3)
    data = small()
    with pytest.raises(NotCovered, match=BROKEN[code]):
        agree(data, program_of(data), apart=2.0)


@pytest.mark.usefixtures("system_child")
def test_without_an_interpreter_nothing_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "")
    with pytest.raises(NotCovered, match="could not be started"):
        agree(small(), program_of(small()), apart=60.0)


SOME = [c for c in CASES if c.op in ("Conv", "Softmax", "LayerNormalization", "Resize", "Gelu")][::4]


@pytest.mark.parametrize("case", SOME, ids=str)
def test_operators_agree(case: Any) -> None:
    inputs = case.inputs or ("x", *case.constants)
    nodes = [node(case.op, inputs, case.outputs, **case.attributes)]
    data = model(nodes, [1, *case.shape], case.opsets[-1], dict(case.constants))
    found = model_of_bytes("m.onnx", data.SerializeToString())
    if found.program is not None:
        assert found.data is not None
        assert agree(found.data, found.program).share < 0.5


def changed(program: Program, kind: type, **fields: Any) -> Program:
    """The program with the first step of this kind changed."""
    k = next(k for k, s in enumerate(program.steps) if isinstance(s, kind))
    steps = [*program.steps]
    steps[k] = replace(steps[k], **{name: change(getattr(steps[k], name)) for name, change in fields.items()})
    return replace(program, steps=tuple(steps))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Affine, {"kernel": lambda k: k * 1.001}),
        (Affine, {"kernel": lambda k: k * 0}),
        (Affine, {"offset": lambda b: b + 1e-4}),
        (Affine, {"index": lambda i: i[..., ::-1].copy()}),
        (Scalar, {"law": lambda law: "Softsign"}),
    ],
)
def test_a_program_of_something_else_does_not_agree(kind: type, fields: Any) -> None:
    with pytest.raises(NotCovered, match="computes another function than the checker read"):
        agree(small(), changed(program_of(small()), kind, **fields))


def cancelling(scale: float) -> bytes:
    """tanh(x) + v tanh(x) - v tanh(x), with weights v of this size."""
    v = random(6, 6) * np.float32(scale)
    nodes = [
        node("Tanh", ["x"], ["h"]),
        node("MatMul", ["h", "v"], ["p"]),
        node("MatMul", ["h", "u"], ["q"]),
        node("Add", ["p", "q"], ["s"]),
        node("Add", ["s", "h"], ["y"]),
    ]
    return bytes(model(nodes, [1, 6], 13, {"v": v, "u": -v}).SerializeToString())


def test_what_float32_hides_is_decided_in_float64() -> None:
    data = cancelling(2.0**24)
    found = agree(data, program_of(data))
    assert found.evaluator.startswith("onnx.reference")
    assert found.share < 0.5
    with pytest.raises(NotCovered, match="computes another function than the checker read"):
        agree(data, changed(program_of(data), Scalar, law=lambda law: "Softsign"))
    # Where float64 hides it too, nothing is decided.
    data = cancelling(2.0**60)
    with pytest.raises(NotCovered, match="sums inside hide"):
        agree(data, program_of(data))


def test_a_file_of_several_types_of_floats_is_not_widened() -> None:
    """Its roundings to a smaller type are part of what it computes."""
    nodes = [
        node("Cast", ["x"], ["a"], to=10),
        node("Cast", ["a"], ["b"], to=1),
        node("MatMul", ["b", "w"], ["y"]),
    ]
    data = model(nodes, [1, 6], 13, {"w": random(6, 2)}).SerializeToString()
    assert widened(data, "x") is None
    assert widened(small(), "x") is not None
    assert widened(small(), "w") is None


def test_a_file_of_float16_is_decided_in_float64() -> None:
    """Of 40 seeds 7 left too few inputs on which float16 shows what is computed."""
    whole = {"w": random(6, 8).astype(np.float16), "v": random(8, 2).astype(np.float16)}
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("MatMul", ["b", "v"], ["y"])]
    data = model(nodes, [1, 6], 13, whole, kind=10).SerializeToString()
    wide = widened(data, "x")
    assert wide is not None
    assert {t.data_type for t in onnx.ModelProto.FromString(wide).graph.initializer} == {11}
    for seed in range(8):
        assert agree(data, program_of(data), seed).share < 1
    with pytest.raises(NotCovered, match="another function"):
        agree(data, changed(program_of(data), Scalar, law=lambda law: "Softplus"), 0)


def test_inputs_that_nobody_knows_before() -> None:
    data = small()
    first, second = (agree(data, program_of(data)) for _ in range(2))
    assert first.seed != second.seed
    assert agree(data, program_of(data), first.seed) == first
    kind, program = np.dtype("<f4"), program_of(data)
    rows = [
        agreement._inputs(program, kind, np.random.default_rng(seed))
        for seed in ([1, 2], [1, 2], [1, 3], [2, 2])
    ]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    assert not np.array_equal(rows[0], rows[3])


@long("a quarter of a minute")
@pytest.mark.third_party
@pytest.mark.skipif(not CHECKPOINTS.exists(), reason="the folder shared/checkpoints is not there")
def test_a_deep_network_of_small_weights() -> None:
    """In float32 its roundings hide more than its outputs change."""
    found = read_model(next((CHECKPOINTS / "ultraface-slim").glob("*.onnx")))
    assert found.data is not None
    assert found.program is not None
    assert agree(found.data, found.program).share < 0.9


def test_types_that_onnxruntime_lacks_are_held_against_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    weight = {"w": random(2, 1, 3)}
    source = model([node("Conv", ["x", "w"], ["y"])], [1, 1, 6], 13, weight, kind=11)
    source.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight["w"].astype(np.float64), "w"))
    data = source.SerializeToString()
    assert agree(data, program_of(data)).evaluator.startswith("onnx.reference")

    def absent(*arguments: Any) -> Any:
        raise ImportError("onnxruntime")

    monkeypatch.setitem(runtimes.RUNTIMES, "onnxruntime", absent)
    assert agree(small(), program_of(small())).evaluator.startswith("onnx.reference")
    monkeypatch.setitem(runtimes.RUNTIMES, "reference", absent)
    with pytest.raises(NotCovered, match="no runtime that is installed"):
        agree(small(), program_of(small()))


def test_a_file_that_runtimes_refuse_is_not_covered() -> None:
    pytest.importorskip("onnxruntime")
    # Celu is defined for float32 alone.
    data = model([node("Celu", ["x"], ["y"])], [1, 6], 13, kind=10).SerializeToString()
    with pytest.raises(NotCovered, match="no runtime that is installed evaluates the file"):
        agree(data, program_of(data))


def test_outputs_that_are_not_covered_are_not_run() -> None:
    nodes = [
        node("ArgMax", ["x"], ["label"], axis=1),
        node("Relu", ["x"], ["hidden"]),
        node("Tanh", ["hidden"], ["logits"]),
    ]
    source = model(nodes, [1, 6], 13, outputs=("label", "logits"))
    source.graph.output[0].type.tensor_type.elem_type = 7
    data = source.SerializeToString()
    found = model_of_bytes("m.onnx", data)
    assert found.program is not None
    assert list(found.refused) == [0]
    assert "ArgMax" in found.refused[0]
    assert [o.name for o in found.program.outputs] == ["label", "logits"]
    agree(data, found.program)


def test_evaluation_shows_all_steps() -> None:
    program = program_of(small())
    x = np.random.default_rng(0).standard_normal((4, 6))
    results = evaluate(program, x)
    assert [r.shape for r in results] == [(4, s.size) for s in program.steps]
    np.testing.assert_array_equal(shown(program.outputs[0].view, results), results[-1])


@pytest.mark.third_party
@pytest.mark.skipif(not CHECKPOINTS.exists(), reason="the folder shared/checkpoints is not there")
def test_networks_of_others() -> None:
    """Every network that the checker reads computes what onnxruntime computes."""
    found = {
        path.name: read_model(path)
        for path in sorted(CHECKPOINTS.glob("*/*.onnx"))
        if path.stat().st_size < 1 << 20
    }
    refused = {name for name, m in found.items() if m.program is None}
    assert refused <= {"past.onnx", "quant_model.onnx", "quantized_model.onnx"}
    for name, read in found.items():
        if read.program is not None and name not in ("model_v8.onnx",):
            assert read.data is not None
            # Refused above 1. A quantised network may stand at 1 exactly: one step of its last quantiser apart.
            assert agree(read.data, read.program).share <= 1.0, name


@pytest.mark.third_party
@pytest.mark.skipif(not CHECKPOINTS.exists(), reason="the folder shared/checkpoints is not there")
@pytest.mark.parametrize("name", ["groupsort-iris", "groupsort-wine"])
def test_sorts_that_are_written_out_are_found(name: str) -> None:
    program = read_model(CHECKPOINTS / "converted" / f"{name}.onnx").program
    assert program is not None
    assert [type(s).__name__ for s in program.steps] == [
        "Input",
        "Affine",
        "Order",
        "Affine",
        "Order",
        "Affine",
    ]
    assert all(getattr(s, "whole", True) for s in program.steps)


def _scores(reads: str) -> bytes:
    """A map of five rows and a convolution of four channels, of which few are read."""
    stored: dict[str, Any] = {
        "w": random(6, 5),
        "b": random(5),
        "k": random(4, 1, 2),
        "rows": ints(3, 1, 3),
        "some": ints(2, 0),
    }
    nodes = {
        "rows": [
            node("Gemm", ["x", "w", "b"], ["a"]),
            node("Gather", ["a", "rows"], ["s"], axis=1),
            node("Tanh", ["s"], ["y"]),
        ],
        "two readers": [
            node("Gemm", ["x", "w", "b"], ["a"]),
            node("Gather", ["a", "rows"], ["s"], axis=1),
            node("Gather", ["a", "some"], ["r"], axis=1),
            node("Concat", ["s", "r"], ["y"], axis=1),
        ],
        "channels": [
            node("Unsqueeze", ["x", "one"], ["image"]),
            node("Conv", ["image", "k"], ["a"]),
            node("Gather", ["a", "some"], ["s"], axis=1),
            node("Relu", ["s"], ["y"]),
        ],
    }[reads]
    stored["one"] = ints(1)
    used = {name for n in nodes for name in n.input}
    source = model(nodes, ["N", 6], 13, {name: array for name, array in stored.items() if name in used})
    return bytes(source.SerializeToString())


@pytest.mark.parametrize(("reads", "rows"), [("rows", 2), ("two readers", 4), ("channels", 2)])
def test_rows_that_nothing_reads_are_dropped(reads: str, rows: int) -> None:
    """A bound of all rows of a matrix, of which a slice is read, would be one of another function."""
    data = _scores(reads)
    program = program_of(data)
    (step,) = (s for s in program.steps if isinstance(s, Affine))
    assert step.kernel.shape[1] == rows
    assert step.lattice is None or step.lattice.weight.shape[1] == rows
    assert agree(data, program).share < 0.5


@pytest.mark.parametrize("name", ["n", "not registered", "NOT_IMPLEMENTED", "Unsupported model IR version"])
def test_words_of_a_file_do_not_choose_the_runtime(name: str) -> None:
    """onnxruntime calls it an invalid model, and quotes the name: onnx's evaluator is not asked instead."""
    nodes = [node("TopK", ["x", "k"], ["t", ""], axis=-1), node("Mul", ["t", "h"], ["y"])]
    nodes[0].name = name
    data = model(nodes, [1, 3], 17, {"k": ints(2), "h": np.float32(0.5)}).SerializeToString()
    with pytest.raises(
        NotCovered, match=r"no runtime that is installed evaluates the file \(onnxruntime: [A-Za-z]*\)"
    ):
        agree(data, program_of(data), 0)


def test_what_a_runtime_does_not_have_is_asked_of_the_other() -> None:
    """onnxruntime has no recurrent layers whose batch comes first, which is no fault of the file."""
    stored = {key: random(*shape) for key, shape in (("W", (1, 9, 2)), ("R", (1, 9, 3)))}
    data = model([node("GRU", ["x", "W", "R"], ["y"], hidden_size=3, layout=1)], [1, 4, 2], 17, stored)
    assert agree(data.SerializeToString(), program_of(data.SerializeToString())).share > 0


FAR = np.float32(2.0**20)


def bump(*at: float) -> tuple[list[Any], dict[str, Any]]:
    """Of the first entry: a triangle between the first and the last of three places, 0 outside."""
    nodes = [
        node("Gather", ["x", "i"], ["z"], axis=1),
        node("Sub", ["z", "a"], ["d"]),
        node("Relu", ["d"], ["e"]),
        node("MatMul", ["e", "v"], ["h"]),
    ]
    return nodes, {"a": np.array(at), "v": np.array([[1.0], [-2.0], [1.0]]), "i": np.zeros(3, np.int64)}


SUB, RELU = node("Sub", ["g", "a"], ["d"]), node("Relu", ["d"], ["h"])
SCALED = [node("Mul", ["x", "w"], ["f"]), node("Relu", ["f"], ["e"]), node("Mul", ["e", "w"], ["g"])]
TURNED = np.array([[1.0, -1, 0], [-1, 2, 1], [0, -3, -1]])
BEHIND = {
    "a threshold": ([node("Identity", ["x"], ["g"]), SUB, RELU], {"a": np.full(3, FAR)}),
    "a threshold below": ([node("Neg", ["x"], ["g"]), SUB, RELU], {"a": np.full(3, FAR)}),
    "sums of several signs": (
        [node("MatMul", ["x", "w"], ["g"]), SUB, RELU],
        {"w": TURNED, "a": np.full(3, FAR)},
    ),
    "small weights": ([*SCALED, SUB, RELU], {"w": np.full(3, 1e-6), "a": np.full(3, 4096.0)}),
    "a maximum": ([node("Max", ["x", "a"], ["g"]), node("Sub", ["g", "a"], ["h"])], {"a": np.full(3, FAR)}),
    "a clip": (
        [node("Clip", ["x", "a", "b"], ["g"]), node("Sub", ["g", "a"], ["h"])],
        {"a": FAR, "b": 2 * FAR},
    ),
    "a far triangle": bump(FAR, FAR + 1024, FAR + 2048),
    "a narrow triangle": bump(100.0, 100.125, 100.25),
}


@pytest.mark.parametrize("gate", BEHIND)
def test_a_wrong_reading_behind_a_gate_is_seen(gate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last layer is read as another one, and what it reads is 0 at all inputs of ordinary sizes."""
    nodes, stored = BEHIND[gate]
    stored = {k: v if v.dtype == np.int64 else v.astype(np.float32) for k, v in stored.items()}
    nodes = [*nodes, node("Mul", ["h", "k"], ["y"])]
    data = bytes(model(nodes, [1, 3], 13, {**stored, "k": np.float32(3.0)}).SerializeToString())
    program = program_of(data)
    last = max(k for k, step in enumerate(program.steps) if isinstance(step, Affine))
    step = program.steps[last]
    assert isinstance(step, Affine)
    wrong = replace(step, kernel=1.5 * step.kernel)
    read = replace(program, steps=(*program.steps[:last], wrong, *program.steps[last + 1 :]))
    assert agree(data, program, 3).share < 1.0
    with pytest.raises(NotCovered, match="another function than the checker read"):
        agree(data, read, 3)
    # Without these inputs nobody sees it, and the comparison says that it has seen nothing wrong.
    monkeypatch.setattr(
        agreement, "openings", lambda program, known, *_: Opened(known[:0], np.zeros(0, bool), True)
    )
    if gate not in ("a maximum", "a clip"):
        agree(data, read, 3)


def test_a_wrong_reading_in_a_region_is_seen() -> None:
    """A triangle of the width 2^-10: lines through 0 may pass it by, those through the region of the claim do not."""
    nodes, stored = bump(5.0, 5.0 + 2.0**-8, 5.0 + 2.0**-7)
    stored |= {"i": np.ones(3, np.int64), "k": np.float32(3.0)}
    stored = {k: v if v.dtype == np.int64 else v.astype(np.float32) for k, v in stored.items()}
    data = bytes(model([*nodes, node("Mul", ["h", "k"], ["y"])], [1, 3], 13, stored).SerializeToString())
    program = program_of(data)
    last = len(program.steps) - 1
    step = program.steps[last]
    assert isinstance(step, Affine)
    read = replace(program, steps=(*program.steps[:last], replace(step, kernel=1.5 * step.kernel)))
    centre = np.array([0.0, 5.0 + 2.0**-8, 0.0])
    region = Around(centre, centre - 2.0**-10, centre + 2.0**-10)
    with pytest.raises(NotCovered, match="another function than the checker read"):
        agree(data, read, 3, regions=[region])
