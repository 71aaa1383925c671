"""Files that the checker once took for another function, or for less work, than they are: refused, or bounded by their sizes."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import lipverify as lv
from lipverify import checkers
from lipverify.checkers.deviation import Box, Deviation
from lipverify.checkers.evaluation import evaluate, shown
from lipverify.checkers.inputs import reading_of
from lipverify.checkers.kernel import Subject, parse_steps, prove
from lipverify.checkers.kernel.account import Account, spending
from lipverify.checkers.kernel.arithmetic import Array, gamma
from lipverify.checkers.kernel.program import Affine, Order, Output, Scalar, View, same
from lipverify.checkers.reader import agreement, digest_of, finishing, read_model
from lipverify.checkers.reader.agreement import agree
from lipverify.checkers.reader.building import Builder, stored
from lipverify.checkers.reader.entries import compared
from lipverify.checkers.reader.folding import fold
from lipverify.checkers.theories.carried import Base, Carried
from lipverify.errors import BudgetEnded, NotCovered, RefutedCertificate, UnreadableCertificate
from tests.soundness.test_forged import SIZE, array, certificate, forged, harmless, network, node
from tests.unit.checkers.kernel.programs import Writing, ball

SQUARED = 28
FIRST, SECOND = 1.0000000009313226, 0.9999999990686775
"""Their product is 1 + 1e-16, and 1.0 in float64: squared so often, 1 + 2e-8, and 1.0 still."""


def wide(name: str, values: Any) -> onnx.TensorProto:
    return array(name, values, np.float64)


def sizes(**named: list[int]) -> list[onnx.TensorProto]:
    return [array(name, values, np.int64) for name, values in named.items()]


ENDS = {"s0": [0], "s1": [2], "s2": [4], "ax": [1]}
ROUNDED: dict[str, tuple[list[onnx.NodeProto], list[onnx.TensorProto], list[int], list[int], float]] = {
    "a product": ([node("Mul", ["x", "c"], ["y"])], [], [], [1, 4], 1.0),
    "a quotient": ([node("Div", ["x", "c"], ["z"]), node("Div", ["z", "c"], ["y"])], [], [1], [1, 4], 1.0),
    "a reciprocal": ([node("Reciprocal", ["c"], ["d"]), node("Div", ["x", "d"], ["y"])], [], [1], [1, 4], 1.0),
    "a power": ([node("Pow", ["x", "c"], ["y"])], [], [], [1, 4], 1.0),
    "a padding": (
        [node("Pad", ["x", "pads", "c"], ["p"]), node("Slice", ["p", "s0", "s2", "ax"], ["q"]),
         node("Slice", ["p", "s2", "s3", "ax"], ["r"]), node("Tanh", ["q"], ["t"]), node("Mul", ["t", "r"], ["y"])],
        sizes(pads=[0, 0, 0, 4], s3=[8], **ENDS), [], [1, 4], 1.0,
    ),
    "a gate": (
        [node("Erf", ["x"], ["t"]), node("Gemm", ["t", "c", "one"], ["g"]), node("Mul", ["x", "g"], ["y"])],
        [wide("one", [1.0])], [1, 1], [1, 1], 2.2578082904,
    ),
    "a sort": (
        [node("Neg", ["c"], ["m"]), node("Slice", ["x", "s0", "s1", "ax"], ["u"]), node("Slice", ["x", "s1", "s2", "ax"], ["v"]),
         node("Max", ["u", "v"], ["h"]), node("Mul", ["u", "m"], ["mu"]), node("Mul", ["v", "m"], ["mv"]),
         node("Max", ["mu", "mv"], ["w"]), node("Neg", ["w"], ["l"]), node("Concat", ["h", "l"], ["y"], axis=1)],
        sizes(**ENDS), [1], [1, 4], 1.0,
    ),
}  # fmt: skip
"""Nodes, what they store, the shape of the factor, that of the input, and the constant where the factor is 1."""


def rounded(folder: Path, name: str, squared: int) -> checkers.Model:
    nodes, beside, shape, inputs, _ = ROUNDED[name]
    factor = [wide("a", np.full(shape, FIRST)), wide("b", np.full(shape, SECOND)), wide("two", 2.0)]
    made = [node("Mul", ["a", "b"], ["c0"])]
    made += [node("Pow", [f"c{k}", "two"], [f"c{k + 1}"]) for k in range(squared)]
    made.append(node("Reshape", [f"c{squared}", "of"], ["c"]))
    every = [*beside, *factor, *sizes(of=shape)]
    path = network(folder / "m.onnx", [*made, *nodes], every, inputs, [("y", None)], onnx.TensorProto.DOUBLE)
    return read_model(path)


@pytest.mark.parametrize("name", ROUNDED)
def test_a_stored_number_that_is_rounded_to_1_is_not_1(name: str, tmp_path: Path) -> None:
    """In float64 nothing is there to see: at most 1 was proved for functions of slope 1 + 2e-8, and 1e55 for longer files."""
    assert FIRST * SECOND == 1.0
    model = rounded(tmp_path, name, SQUARED)
    if model.program is None:
        assert "rounded" in model.reason
        return
    program = model.program.ending(0)
    subject, norms = Subject(program), ["l2", "l2"]
    limit = ROUNDED[name][-1] * (1.0 + 2.0**-40)
    product = {"step": "product", "start": 0, "end": len(program.steps) - 1, "gains": [], "norms": norms}
    steps = parse_steps([product | {"limit": limit.hex()}], {}, subject)
    with pytest.raises((RefutedCertificate, NotCovered)):
        prove(steps, subject)


def test_numbers_of_more_roundings_than_can_be_counted_are_refused(tmp_path: Path) -> None:
    model = rounded(tmp_path, "a product", 40)
    assert model.program is None
    assert "so many roundings" in model.reason


def samples(nodes: list[onnx.NodeProto], folder: Path) -> checkers.Model:
    """Of any number of samples."""

    def opened(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"

    given = [array("h", [100.0]), *sizes(z=[0], o=[1]), array("one", [1.0]), array("two", [2.0])]
    return read_model(network(folder / "m.onnx", nodes, given, [1, 3], [("y", None)], change=opened))


COUNTED = [
    node("Shape", ["x"], ["s"]),
    node("Slice", ["s", "z", "o"], ["n"]),
    node("Cast", ["n"], ["f"], to=1),
]
MIXED = {
    "their mean": [
        node("ReduceMean", ["x"], ["m"], axes=[0]),
        node("Sub", ["x", "m"], ["d"]),
        node("Mul", ["d", "h"], ["y"]),
    ],
    "their number": [*COUNTED, node("Sub", ["f", "one"], ["k"]), node("Mul", ["x", "k"], ["y"])],
    "one alone": [node("Gather", ["x", "z"], ["y"], axis=0)],
    "their number, not for two": [
        *COUNTED,
        *(node("Sub", ["f", k], [f"less {k}"]) for k in ("one", "two")),
        node("Mul", ["less one", "less two"], ["k"]),
        node("Mul", ["x", "k"], ["y"]),
    ],
}


@pytest.mark.parametrize("name", MIXED)
def test_samples_that_depend_on_one_another(name: str, tmp_path: Path) -> None:
    """For one sample most are 0, whose constant 0 was proved of the file."""
    model = samples(MIXED[name], tmp_path)
    assert model.several
    if model.program is None:
        return
    assert model.data is not None
    with pytest.raises(NotCovered, match=r"another function|several samples at once"):
        agree(model.data, model.program, 0)


def test_a_verdict_speaks_of_one_sample(tmp_path: Path) -> None:
    def opened(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"

    path = network(tmp_path / "m.onnx", [node("Relu", ["x"], ["y"])], [], [1, 3], SIZE, change=opened)
    said = checkers.verify_file(certificate(path, tmp_path), path).claim
    assert "any number of samples, for a batch of one: others it may compute in another way" in said
    said = checkers.verify_file(certificate(harmless(tmp_path), tmp_path), tmp_path / "twin.onnx").claim
    assert "samples" not in said


@pytest.mark.parametrize("norm", ["linf", "l2", "pairs"])
def test_facts_of_a_deviation_are_counted_before_they_are_listed(norm: str) -> None:
    """Two models of 122 bytes with 2^16 outputs made 4 10^9 pairs."""
    claim = Deviation(norm, Box("digest", None), (1.0,))
    tracemalloc.start()
    with pytest.raises(RefutedCertificate, match="names 0 facts"):
        claim.follows([], 1 << 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    for size in (1, 3):
        other = Deviation(norm, Box("digest", None), (1.0, 2.0), labels=(0,) if norm == "linf" else None)
        assert other.counts(size) == [len(list(other.rows(size, 0)))]


def test_what_stands_for_inputs_is_held_once_and_counted() -> None:
    """A certificate of 12 kB asked for 64 GiB before its model was looked at."""

    def told(count: int, size: int) -> dict[str, Any]:
        entry = {"kind": "float64", "shape": [size], "value": (1.0).hex(), "digest": None}
        return {
            "inputs": [{"name": "x", "shape": [1, 3]}],
            "fixed": [{"name": f"h{k}", **entry} for k in range(count)],
        }

    with pytest.raises(UnreadableCertificate, match="too many numbers"):
        reading_of(told(4, 1 << 27))
    reading = reading_of(told(4, 1 << 24))
    tracemalloc.start()
    known = reading.known({}, digest_of)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert [a.shape for a in known.arrays.values()] == [(1 << 24,)] * 4
    account = Account()
    account.numbers = 1 << 25
    with spending(account), pytest.raises(NotCovered, match="more memory"):
        reading.known({}, digest_of)


def test_a_claim_fixes_no_input_that_the_file_stores(tmp_path: Path) -> None:
    """Older exporters list weights among the inputs: a matrix was replaced by 0, and at most 0 proved of the file."""

    def listed(model: onnx.ModelProto) -> None:
        model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [3, 3]))

    nodes = [node("MatMul", ["x", "w"], ["y"])]
    model = read_model(
        network(tmp_path / "m.onnx", nodes, [array("w", np.eye(3))], [1, 3], SIZE, change=listed)
    )
    assert model.program is not None
    entry = {"name": "w", "kind": "float32", "shape": [3, 3], "value": (0.0).hex(), "digest": None}
    reading = reading_of({"inputs": [{"name": "x", "shape": [1, 3]}], "fixed": [entry]})
    assert "stores itself" in model.read_as(reading.known({}, digest_of)).reason
    assert "'w' of type float32 and shape [3, 3] fixed at 0.0" in reading.words()
    with pytest.raises(UnreadableCertificate):
        reading_of({"inputs": [{"name": "x" * 121, "shape": [1, 3]}], "fixed": []})


def test_outputs_that_are_compared_are_charged(tmp_path: Path) -> None:
    nodes = [node("Expand", ["x", "s"], ["y"])]
    model = read_model(network(tmp_path / "m.onnx", nodes, sizes(s=[1, 1 << 20]), [1, 1], [("y", None)]))
    assert model.program is not None
    assert model.data is not None
    account = Account()
    account.numbers = 1 << 24
    with spending(account), pytest.raises(NotCovered, match="more memory"):
        agree(model.data, model.program, 0)


def test_few_inputs_of_large_outputs_are_held_at_once(tmp_path: Path) -> None:
    """Twelve numbers for every input and number that is compared: 2 GB for a file of 120 bytes. Two bytes of each are kept."""
    count, rows = 1 << 18, len(agreement._ROWS)
    nodes = [node("Expand", ["x", "s"], ["y"])]
    model = read_model(network(tmp_path / "m.onnx", nodes, sizes(s=[1, count]), [1, 1], [("y", None)]))
    assert model.program is not None
    x = np.arange(1.0, 1.0 + rows)[:, None]
    found = np.repeat(x, count, 1)
    tracemalloc.start()
    numbers = (2.0**-24, "a runtime", rows, rows, agreement._at_once(model.program))
    held = compared(model.program, [0], x, np.arange(rows), [found], *numbers)
    assert (held.told.sum(), held.differ) == (rows, False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (24 * 8 + 2 * rows) * count
    found[-1, -1] += 1e-3
    held = compared(model.program, [0], x, np.arange(rows), [found], *numbers)
    assert held.differ


def test_views_of_a_large_step_are_moved_alone(tmp_path: Path) -> None:
    """Every look at a map whose rows are cut made a table of all its results, and so did every -max(-a, -b)."""
    large = 1 << 18
    w = Writing(1)
    kernel = np.array([[[-1.0]], [[3.0]]]).reshape(1, 2, 1)
    w.put(Affine(View((0,), np.zeros(large, np.int64)), 2 * large, kernel, np.arange(large)[None, :, None]))
    w.put(Affine(w.view(), 2 * large, -np.ones((2 * large, 1, 1)), np.arange(2 * large)[:, None, None]))
    one = []
    for k in range(3):
        pair = Order(View((2,), np.array([k, k + 4])), 1, np.array([[0, 1]]), False)
        w.put(pair)
        w.put(Affine(w.view(), 1, -np.ones((1, 1, 1)), np.zeros((1, 1, 1), np.int64)))
        one.append(len(w.steps) - 1)
    view = View((1, *one), np.array([5, *(2 * large + np.arange(3))]))
    program = replace(w.program(), outputs=(Output("y", view, (4,)),))
    tracemalloc.start()
    choices = finishing._Choices(program.steps)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    found = [choices.of(k) for k in one]
    peak = tracemalloc.get_traced_memory()[1] - before
    draft = finishing._Draft(program)
    draft.place = {0: (0, None), 1: (1, np.arange(2 * large)), **{k: (k, None) for k in one}}
    draft.steps = [*program.steps]
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    moved = draft.moved(view)
    peak = max(peak, tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    assert peak < 8 * large
    assert np.array_equal(moved.places, view.places)
    for k, (pairs, largest) in enumerate(found):
        assert not largest
        assert pairs is not None
        assert [pairs.low.tolist(), pairs.high.tolist()] == [[1 + k], [5 + k]]
    x = np.array([[0.3], [-2.0]])
    (ours,) = (shown(o.view, evaluate(p, x)) for p in (finishing.finished(program),) for o in p.outputs)
    assert np.array_equal(ours, shown(view, evaluate(program, x)))


def test_reading_and_comparing_ask_the_time(tmp_path: Path) -> None:
    """At every operator, and at every step of a few inputs."""
    nodes = [node("Relu", ["x" if k == 0 else f"a{k - 1}"], [f"a{k}"]) for k in range(40)]
    path = network(tmp_path / "m.onnx", nodes, [], [1, 2], [("a39", None)])
    for wanted in ("read", "compare"):
        asked = itertools.count()
        with spending(Account(lambda asked=asked: next(asked) > 35)):  # type: ignore[misc]
            if wanted == "read":
                with pytest.raises(BudgetEnded, match="the time for checking is over"):
                    read_model(path)
                continue
        model = read_model(path)
        assert model.program is not None
        assert model.data is not None
        with (
            spending(Account(lambda asked=asked: next(asked) > 35)),
            pytest.raises(BudgetEnded, match="time"),
        ):  # type: ignore[misc]
            agree(model.data, model.program, 0)


def test_rounds_of_a_loop_ask_the_time(tmp_path: Path) -> None:
    """Bodies are written out up to 1,024 times: at every operator of every round."""
    rounds, length = 16, 40
    names = ["s", *(f"a{k}" for k in range(length))]
    value = [onnx.helper.make_tensor_value_info(n, t, []) for n, t in (("i", 7), ("c", 9), ("c1", 9))]
    kept = [onnx.helper.make_tensor_value_info(n, 1, [1, 2]) for n in (names[0], names[-1])]
    inner = [node("Tanh", [a], [b]) for a, b in itertools.pairwise(names)]
    body = onnx.helper.make_graph(
        [node("Identity", ["c"], ["c1"]), *inner], "body", [*value[:2], kept[0]], [value[2], kept[1]]
    )
    loop = onnx.helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    path = network(
        tmp_path / "m.onnx",
        [loop],
        [onnx.numpy_helper.from_array(np.array(rounds), "n")],
        [1, 2],
        [("y", None)],
    )
    asked = itertools.count()
    with spending(Account(lambda: next(asked) < 0)):
        assert read_model(path).program is not None
    assert next(asked) > rounds * length
    with (
        spending(Account(lambda: next(asked) > 0)),
        pytest.raises(BudgetEnded, match="time for checking is over"),
    ):
        read_model(path)


def test_entries_of_an_archive_ask_the_time(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **{f"a{k}": np.ones(k) for k in range(30)})
    asked = itertools.count()
    with (
        spending(Account(lambda: next(asked) > 45)),
        pytest.raises(BudgetEnded, match="time for checking is over"),
    ):
        read_model(tmp_path / "w.npz")


def test_entries_of_a_large_result_are_looked_at_alone(tmp_path: Path) -> None:
    """Every look took as long as the result is, 1,000 times, and nobody counted that."""
    large, count = 1 << 22, 1000
    nodes = [node("Expand", ["x", "s"], ["e"]), node("Relu", ["e"], ["r"])]
    for k in range(count):
        nodes += [node("Gather", ["r", "i"], [f"g{k}"], axis=1), node("Neg", [f"g{k}"], [f"n{k}"])]
    nodes.append(node("Concat", [f"n{k}" for k in range(count)], ["y"], axis=1))
    given = sizes(s=[1, large], i=[0])
    model = read_model(network(tmp_path / "m.onnx", nodes, given, [1, 1], [("y", None)]))
    assert model.program is not None
    subject = Subject(model.program.ending(0))
    assert subject.width > count * large
    steps = parse_steps([{"step": "convex", "row": 0, "sign": 1}], {}, subject)
    account = Account()
    account.operations = count * large
    with spending(account), pytest.raises(NotCovered, match="more operations"):
        prove(steps, subject)


def test_views_show_the_same_by_source_as_joined(rng: np.random.Generator) -> None:
    results = [rng.standard_normal((2, n)) for n in (3, 1, 4)]
    for sources in ((0,), (2, 0), (0, 1, 2), (1, 1)):
        joined = np.concatenate([*(results[s] for s in sources), np.zeros((2, 1))], 1)
        places = rng.integers(-1, joined.shape[1] - 1, 9)
        assert np.array_equal(shown(View(sources, places), results), joined[:, places])


@pytest.mark.parametrize("law", ["Sigmoid", "Erf"])
def test_gates_of_a_scale_that_is_rounded_equal_no_others(law: str, tmp_path: Path) -> None:
    """A folded product that rounds, and the number that it rounds to: at most 0 was proved of their difference."""
    tail = [node(law, ["z"], ["s"]), *([node("Add", ["s", "one"], ["t"])] if law == "Erf" else [])]
    tail += [node("Mul", ["x", "t" if law == "Erf" else "s"], ["y"])]
    found = []
    for folded, k in ((True, 0), (False, 1), (False, 2)):
        given = [wide("a", [1.1]), wide("b", [1.3])] if folded else [wide("c", [1.1 * 1.3])]
        nodes = [*([node("Mul", ["a", "b"], ["c"])] if folded else []), node("Mul", ["x", "c"], ["z"]), *tail]
        path = tmp_path / f"{k}.onnx"
        model = read_model(
            network(path, nodes, [*given, wide("one", [1.0])], [1, 2], [("y", None)], onnx.TensorProto.DOUBLE)
        )
        assert model.program is not None
        assert any(isinstance(s, Scalar) and s.law in ("Silu", "ErfGate") for s in model.program.steps)
        found.append(model.program)
    assert same(found[1].steps, found[2].steps)
    assert not same(found[0].steps, found[1].steps)
    assert not same(found[0].steps, found[0].steps)
    both = found[0].beside(found[1])
    subject = Subject(both, [ball(np.zeros(2), 1.0)])
    layers = [
        k
        for k, place in enumerate(subject.elements.layers)
        if isinstance(subject.elements.steps[place], Scalar)
    ]
    known = Carried(subject.elements, subject.regions[0], (), {layers[1]: Base(layers[0])})
    low, high = known.chain.ranges(known.carried)
    assert (high[-2:] > 0).all()
    assert (low[-2:] < 0).all()


def of_bits(rng: np.random.Generator, bits: int) -> Array:
    """Numbers of so many bits."""
    return rng.integers(1 << (bits - 1), 1 << bits, 6).astype(np.float64) * 2.0 ** rng.integers(-60, 60, 6)


@pytest.mark.parametrize(
    "lengths", [(8, 24), (24, 24), (24, 29), (29, 30), (53, 1), (53, 3), (53, 53)], ids=str
)
def test_stored_numbers_are_within_the_roundings_that_are_counted(
    lengths: tuple[int, int], rng: np.random.Generator
) -> None:
    """Of everything that is folded, the real result."""
    builder = Builder((1,), np.dtype("<f8"), 0)
    a, b = (of_bits(rng, n) for n in lengths)
    ops: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
        "Add": Fraction.__add__, "Sub": Fraction.__sub__, "Mul": Fraction.__mul__, "Div": Fraction.__truediv__,
    }  # fmt: skip
    seen = set()
    for op, real in ops.items():
        for second in (b, -b, a):
            found = fold(builder, op, [stored(a), stored(second)])
            if found is None:
                continue
            seen.add((op, found.rounded))
            for x, y, z in zip(a, second, found.array, strict=True):
                true = real(Fraction(float(x)), Fraction(float(y)))
                assert abs(true - Fraction(float(z))) <= Fraction(gamma(found.rounded)) * abs(true)
    assert ("Mul", int(sum(lengths) > 53 and min(lengths) > 1)) in seen


def test_scales_that_are_folded_have_more_bits_than_their_type(tmp_path: Path) -> None:
    """3 s and 5 t are one float64 and two real numbers; what their difference is multiplied with decides what is proved."""
    parts = (("s", 1.6369617, 7.5e-11), ("t", 0.982177, 4.0e-11))
    stored_ = [array(f"{name}{k}", value) for name, *values in parts for k, value in enumerate(values)]
    nodes = [node("Add", ["s0", "s1"], ["s"]), node("Mul", ["x", "w"], ["y"])]
    nodes.insert(1, node("DequantizeLinear", ["q", "s"], ["w"]))
    model = read_model(
        network(tmp_path / "m.onnx", nodes, [*stored_, array("q", [3], np.int8)], [1, 3], SIZE)
    )
    assert model.program is not None
    (step,) = [s for s in model.program.steps if isinstance(s, Affine)]
    scale = Fraction(float(np.float32(parts[0][1]))) + Fraction(float(np.float32(parts[0][2])))
    true, shown_ = 3 * scale, Fraction(float(step.kernel.flat[0]))
    assert true != shown_
    assert abs(true - shown_) <= Fraction(gamma(step.rounded)) * true


def test_the_models_say_what_they_are(tmp_path: Path) -> None:
    """The honest twin of all of these: without rounding, everything is proved."""
    path = network(tmp_path / "m.onnx", [node("Mul", ["x", "c"], ["y"])], [array("c", 1.0)], [1, 3], SIZE)
    assert checkers.verify_file(certificate(path, tmp_path), path).upper == pytest.approx(1.0)
    assert isinstance(lv.load(path), lv.Graph)


def attention(path: Path, scale: float, wide_tokens: bool = False) -> Path:
    """Normalised tokens, each a mean of all by a softmax; a hostile one is steeper, or takes other runs for tokens."""
    rng = np.random.default_rng(0)
    shape = [1, 2, 4] if wide_tokens else [1, 4, 2]
    width = shape[-1]
    stored_ = [array("g", np.ones(width)), array("b", np.zeros(width))]
    stored_ += [
        array(name, factor * rng.standard_normal((width, width)))
        for name, factor in (("q", 1.0), ("v", scale))
    ]
    nodes = [
        node("LayerNormalization", ["x", "g", "b"], ["n"], epsilon=0.5),
        node("MatMul", ["n", "q"], ["k"]),
    ]
    nodes += [node("Transpose", ["n"], ["t"], perm=[0, 2, 1]), node("MatMul", ["k", "t"], ["s"])]
    nodes += [
        node("Softmax", ["s"], ["p"], axis=-1),
        node("MatMul", ["n", "v"], ["w"]),
        node("MatMul", ["p", "w"], ["y"]),
    ]

    def newer(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 17

    return network(path, nodes, stored_, shape, [("y", shape)], change=newer)


def test_a_certificate_of_tokens_serves_no_other_file(tmp_path: Path) -> None:
    """Steeper values, and tokens of another width, under the digest of the hostile file."""
    honest = attention(tmp_path / "honest.onnx", 0.001)
    given = certificate(honest, tmp_path, "tokens", norm="token-l2")
    found = checkers.verify_file(given, honest)
    assert found.theories == ("tokens",)
    assert "with theories beyond the core: tokens" in found.claim
    for name, scale, wide_ in (("steep", 100.0, False), ("wide", 0.001, True)):
        bad = attention(tmp_path / f"{name}.onnx", scale, wide_)
        with pytest.raises((RefutedCertificate, UnreadableCertificate)):
            checkers.verify_file(forged(given, bad), bad)
