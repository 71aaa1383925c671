"""Open lengths, states and other inputs of a file: what is imported, what its certificate says of them, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import lipverify as lv
from lipverify.certificates.format import Issued
from lipverify.certificates.issuing import subject_of
from lipverify.checkers.claims import Expectation
from lipverify.checkers.reader.agreement import agree
from lipverify.checkers.reader.reading import Reading
from lipverify.documents import model_document
from lipverify.errors import UnreadableCertificate, UnsupportedModel, UsageError
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph
from tests.command import lipverify as run
from tests.recurrent_files import network

BOTH = network("LSTM", sizes=("b", "t", 2), batch_first=True, states=(1, "b", 3))


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "net.onnx"
    onnx.save(model, path)
    return path


def runtime(path: Path, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0]).ravel()


def test_an_open_length_is_that_of_steps_in_either_order_of_the_axes(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((4, 1, 2)).astype(np.float32)
    for model in (network("GRU"), network("GRU", sizes=("b", "t", 2), batch_first=True)):
        path = saved(tmp_path, model)
        graph = lv.load(path, steps=4)
        first = graph.input_shape == (4, 2)
        rows = x.swapaxes(0, 1) if first else x
        found = evaluate(graph, torch.from_numpy(x).reshape(1, *graph.input_shape)).detach().numpy().ravel()
        np.testing.assert_allclose(found, runtime(path, x=rows), rtol=1e-5, atol=1e-5)
        assert graph.origin.part == "the model with 4 steps"
        assert model_document(graph)["reading"]["steps"] == 4
        shape = str([1, 4, 2] if first else [4, 1, 2])
        assert f", a function of its input 'x' of shape {shape}" in subject_of(graph).about.words()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "leaves sizes open.*--steps"),
        ({"steps": 0}, "at least 1 step"),
        ({"steps": 3, "input_shape": (3, 1, 2)}, "not by both"),
        ({"state": "some"}, "given, zero, free"),
    ],
)
def test_lengths_and_states_that_make_no_sense_are_refused(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises((UsageError, UnsupportedModel), match=said):
        lv.load(saved(tmp_path, network()), **options)


def test_a_length_that_the_file_fixes_is_not_changed(tmp_path: Path) -> None:
    path = saved(tmp_path, network(sizes=(3, 1, 2)))
    assert lv.load(path, steps=3).digest == lv.load(path).digest
    with pytest.raises(UsageError, match="has 3 steps, not 4"):
        lv.load(path, steps=4)


def test_states_are_zero_given_or_a_part_of_the_input(tmp_path: Path) -> None:
    path, draw = saved(tmp_path, BOTH), np.random.default_rng(2)
    x, h, c = (draw.standard_normal(s).astype(np.float32) for s in ((1, 3, 2), (1, 1, 3), (1, 1, 3)))
    flat = torch.from_numpy(np.concatenate([a.ravel() for a in (x, h, c)]))
    zero = np.zeros_like(h)
    cases: list[tuple[Graph, torch.Tensor, np.ndarray]] = [
        (lv.load(path, steps=3, state="zero"), flat[:6], runtime(path, x=x, h=zero, c=zero)),
        (
            lv.load(path, steps=3, input="x", constants={"h": h, "c": c}),
            flat[:6],
            runtime(path, x=x, h=h, c=c),
        ),
        (lv.load(path, steps=3, state="free"), flat, runtime(path, x=x, h=h, c=c)),
        (lv.load(path, steps=3, state="free", constants={"c": c}), flat[:9], runtime(path, x=x, h=h, c=c)),
    ]
    for graph, point, wanted in cases:
        found = evaluate(graph, point.reshape(1, *graph.input_shape)).detach().numpy().ravel()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
        subject = subject_of(graph)  # the checker reads the same function in the file
        assert subject.program.steps[0].size == point.numel()
        assert agree(path.read_bytes(), subject.model.program, 0, reading=subject.model.reading).inputs >= 4
    with pytest.raises(UnsupportedModel, match=r"depends on 3 inputs.*--state free"):
        lv.load(path, steps=3)


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Issued]:
    path = saved(tmp_path_factory.mktemp("reading"), BOTH)
    graph = lv.load(path, steps=2, input="x", constants={"h": 0.5, "c": [0.1, 0.2, 0.3]})
    certificate = lv.audit(graph, analyzers=["product"]).certificates["product"]
    assert isinstance(certificate.issued, Issued)
    return path, certificate.issued


def test_a_certificate_says_what_stands_for_an_input(certified: tuple[Path, Issued]) -> None:
    path, issued = certified
    claim = lv.verify(issued, path).claim
    held = "of type float32 and shape [1, 1, 3] fixed at"
    assert (
        f"its input 'x' of shape [1, 2, 2] with 'h' {held} 0.5 and 'c' {held} the tensor with digest" in claim
    )
    other = lv.load(path, steps=2, input="x", constants={"h": 0.25, "c": [0.1, 0.2, 0.3]})
    with pytest.raises(UnreadableCertificate, match=r"other inputs|another graph"):
        lv.verify(issued, other)


EXPECTED: list[tuple[str, Any, Any, bool]] = [
    ("float32", 0.1, 0.1, True), ("float32", 0.1, [0.1, 0.1], True), ("float32", 0.1, 0.2, False),
    ("float32", 0.1, [0.1], False), ("float32", 0.1, [[0.1, 0.1]], False), ("float32", 0.1, "0.1", False),
    ("int64", 0, 0.6, False), ("int64", 0, -0.9, False), ("int64", 3, 3.0, True), ("int32", 0, 4294967296, False),
    ("int64", 2**53, 2**53 + 1, False), ("int64", 2**53 + 1, 2**53 + 1, True), ("uint8", 0, 256, False),
    ("uint64", 2**63, -(2**63), False), ("bool", True, 7, False), ("bool", True, True, True), ("bool", False, 0.5, False),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "fixed", "wanted", "met"), EXPECTED)
def test_what_is_expected_of_an_input_is_not_made_to_fit(
    kind: str, fixed: Any, wanted: Any, met: bool
) -> None:
    """It was cast to the type of what was found: 0.6 expected of an integer was met by 0."""
    found = Reading((("x", (1, 2)),), {}, arrays={"h": np.full(2, fixed, kind)})
    said = Expectation(fixed={"h": wanted}).other_inputs(found)
    assert said == (None if met else "other numbers stand for input 'h'")


def test_everywhere_wants_to_know_what_stands_for_the_other_inputs() -> None:
    """A network can be flat where another of its inputs stands at 0: who asks for all inputs says what that one is."""
    found = Reading((("x", (1, 2)),), {}, arrays={"h": np.zeros(2, "float32")})
    assert Expectation(varying=frozenset("x")).other_inputs(found) is None
    alone = Expectation(varying=frozenset("x"), everywhere=True)
    assert "['h']: say with --constant" in str(alone.other_inputs(found))
    assert Expectation(varying=frozenset("x"), everywhere=True, fixed={"h": 0}).other_inputs(found) is None
    assert alone.other_inputs(Reading((("x", (1, 2)),), {}, arrays={})) is None


def _fixed(document: dict[str, Any], **changes: Any) -> None:
    document["models"][0]["reading"]["fixed"][0].update(changes)


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another number for a state": lambda d: _fixed(d, value=(0.25).hex()),
    "a number that float32 does not have": lambda d: _fixed(d, value=(0.1).hex()),
    "another type": lambda d: _fixed(d, kind="float64"),
    "another size": lambda d: _fixed(d, shape=[1, 1, 4]),
    "two things at once": lambda d: _fixed(d, digest="0" * 64),
    "numbers that are not there": lambda d: _fixed(d, value=None, digest="0" * 64),
    "an input of another name": lambda d: _fixed(d, name="x"),
    "an input that the file does not have": lambda d: _fixed(d, name="w"),
    "a stored tensor": lambda d: _fixed(d, name="W", shape=[1, 12, 2]),
    "another length": lambda d: d["models"][0]["reading"]["inputs"][0].update(shape=[1, 3, 2]),
    "fewer axes": lambda d: d["models"][0]["reading"]["inputs"][0].update(shape=[1, 4]),
    "a state that varies": lambda d: d["models"][0]["reading"].update(
        inputs=[*d["models"][0]["reading"]["inputs"], {"name": "h", "shape": [1, 1, 3]}],
        fixed=d["models"][0]["reading"]["fixed"][1:],
    ),
    "a state of which nothing is said": lambda d: d["models"][0]["reading"]["fixed"].pop(0),
    "no input": lambda d: d["models"][0]["reading"].update(inputs=[]),
    "no reading": lambda d: d["models"][0].pop("reading"),
    "a reading of nothing": lambda d: d["models"][0].update(reading=None),
}


@pytest.mark.parametrize("change", FORGED)
def test_a_certificate_about_other_inputs_is_refused(certified: tuple[Path, Issued], change: str) -> None:
    path, issued = certified
    document = deepcopy(issued.document)
    FORGED[change](document)
    forged = Issued(document, issued.arrays)
    with pytest.raises(lv.LipverifyError) as caught:
        lv.verify(forged, path)
    assert isinstance(caught.value, lv.RefutedCertificate | UnreadableCertificate | UnsupportedModel)


def test_the_command_says_steps_and_states(tmp_path: Path) -> None:
    path = saved(tmp_path, BOTH)
    given = ("audit", path, "--steps", "2", "--state", "zero", "--analyzers", "product", "--json")
    found = json.loads(run(*given, "--out", tmp_path / "out").stdout)
    assert [row["rigour"] for row in found["results"]] == ["checked"]
    assert 'input "h" fixed at 0.0' in found["query"]["words"]
    assert "2 steps" in found["query"]["words"]
    done = run("verify", tmp_path / "out" / "certificates" / "product.json", "--model", path)
    held = "of type float32 and shape [1, 1, 3] fixed at 0.0"
    assert f"with 'h' {held} and 'c' {held}" in done.stdout
    np.save(tmp_path / "c.npy", np.zeros((1, 1, 3), np.float32))
    proof = "verify", tmp_path / "out" / "certificates" / "product.json", "--model", path
    for expected, code in (
        (("--input", "x"), 0),
        (("--constant", "h=0", "--constant", f"c={tmp_path / 'c.npy'}"), 0),
        (("--input", "h"), 3),
        (("--everywhere",), 3),
        (("--everywhere", "--input", "x"), 3),
        (("--everywhere", "--constant", "h=0", "--constant", "c=0"), 0),
        (("--constant", "h=0"), 3),
        (("--constant", "h=0", "--constant", "c=0.1"), 3),
        (("--constant", "h=0", "--constant", "c=0,0"), 3),
    ):
        assert run(*proof, *expected).returncode == code, expected
    assert run("audit", "zoo:digits-rnn", "--steps", "8").returncode == 2
