"""Faults of readers, expectations and answers that a hostile reading found, each beside the check that keeps it out.

FAULTS: the fault in words -> what is taken away, and whether somebody is deceived. With the check nobody is; without it the fault
of then is there again: that is how a test knows that it would be noticed. Checks of evidence are in `planted`; faults of the
comparison with a runtime in the tests of `checkers.reader.agreement`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

import lipverify as lv
from lipverify import checkers, derived
from lipverify.certificates import Issued
from lipverify.checkers import derivations
from lipverify.checkers.evaluation import evaluate
from lipverify.checkers.reader import model_of_bytes, read_model
from lipverify.checkers.reader.agreement import agree
from lipverify.commands.verify import _report
from lipverify.derived.networks import audited
from lipverify.errors import RefutedCertificate, UnreadableCertificate
from lipverify.falsify import Search
from lipverify.loading.safetensors import write_safetensors
from lipverify.questions.question import Proved
from tests.networks import chain
from tests.onnx_models import ints, model, node
from tests.soundness import readers
from tests.unit.questions.test_shell import Scaled

QUICK = Search(seconds=0.05)
Deceived = Callable[[Path], bool]


class Fault(NamedTuple):
    """module, name: of what keeps it out; without: what stands there instead; deceived: whether somebody is, in a folder."""

    module: str
    name: str
    without: Callable[[Any], Any]
    deceived: Deceived


def _unless(words: str) -> Callable[[Any], Any]:
    """A `need` that lets this check pass."""
    return lambda need: lambda condition, said: need(condition or fnmatch(said, words), said)


# -- files that runtimes run otherwise


def _read_otherwise(source: Any) -> Deceived:
    """Whether the file is read, and as another function than onnxruntime's."""
    data = source.SerializeToString()
    return lambda folder: readers.difference(data, readers.Found()) is not None


def _narrow() -> Any:
    """16 as four bits is 0 in onnxruntime; numpy holds them in eight."""
    nodes = [
        node("CastLike", ["k", "b"], ["q"]),
        node("Cast", ["q"], ["e"], to=TensorProto.FLOAT),
        node("Mul", ["x", "e"], ["y"]),
    ]
    found = model(nodes, [1, 1], 21, {"k": np.float32([16.0])})
    found.graph.initializer.append(helper.make_tensor("b", TensorProto.INT4, [1], [0]))
    return found


def _resized(size: int, scale: float) -> Any:
    settings = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    stored = {"s": np.array([1, 1, scale], np.float32)}
    return model([node("Resize", ["x", "", "s"], ["y"], **settings)], [1, 1, size], 13, stored)


def _ended_loop(folder: Path) -> bool:
    """By ONNX's text 2^10 x: a condition that a body gives is ignored where none is asked for."""
    steps = [node("Add", ["a", "a"], ["b"]), node("Identity", ["no"], ["on"])]
    info = helper.make_tensor_value_info
    inputs = [
        info("k", TensorProto.INT64, []),
        info("c", TensorProto.BOOL, []),
        info("a", TensorProto.FLOAT, [1, 1]),
    ]
    outputs = [info("on", TensorProto.BOOL, []), info("b", TensorProto.FLOAT, [1, 1])]
    body = helper.make_graph(steps, "body", inputs, outputs, [numpy_helper.from_array(np.array(False), "no")])
    source = model([node("Loop", ["m", "", "x"], ["y"], body=body)], [1, 1], 17, {"m": np.array(10)})
    program = model_of_bytes("m.onnx", source.SerializeToString()).program
    return program is not None and float(evaluate(program, np.ones((1, 1)))[-1][0, 0]) != 1024.0


def _no_model(folder: Path) -> bool:
    """onnxruntime calls it no model, and quotes the name of a node, which holds the words of an operator that it lacks."""
    nodes = [node("TopK", ["x", "k"], ["t", ""], axis=-1), node("Mul", ["t", "h"], ["y"])]
    nodes[0].name = "not registered"
    data = model(nodes, [1, 3], 17, {"k": ints(2), "h": np.float32(0.5)}).SerializeToString()
    program = model_of_bytes("m.onnx", data).program
    assert program is not None
    try:
        agree(data, program, 0)
    except (RefutedCertificate, UnreadableCertificate):
        return False
    return True


# -- claims about something else than is expected


def _flat_then_steep() -> bytes:
    """1000 relu(x - 1), as a file."""
    stored = {"o": np.float32([1.0]), "k": np.float32([1000.0])}
    nodes = [node("Sub", ["x", "o"], ["d"]), node("Relu", ["d"], ["r"]), node("Mul", ["r", "k"], ["y"])]
    data: bytes = model(nodes, [1, 1], 17, stored).SerializeToString()
    return data


@cache
def _issued(radius: float | None, norm: str = "l2", box: tuple[float, float] | None = None) -> Issued:
    """An honest certificate of that file: everywhere, or on the ball around 0 that a box cuts."""
    with tempfile.TemporaryDirectory() as folder:
        file, name = Path(folder) / "net.onnx", "product" if radius is None else "local"
        file.write_bytes(_flat_then_steep())
        region = {} if radius is None else {"region": lv.Ball(torch.zeros(1, 1), radius, norm, box)}
        issued = lv.audit(lv.load(file), analyzers=[name], search=QUICK, **region).certificates[name].issued
    assert issued is not None
    return issued


def _put(folder: Path, issued: Issued) -> tuple[Path, Path]:
    """The certificate and its file in a folder."""
    for name, data in issued.files("a.json").items():
        (folder / name).write_bytes(data)
    (folder / "net.onnx").write_bytes(_flat_then_steep())
    return folder / "a.json", folder / "net.onnx"


def _accepted(path: Path, file: Path, expected: checkers.Expectation) -> bool:
    try:
        checkers.verify_file(path, file, expected=expected)
    except RefutedCertificate:
        return False
    return True


def _cut(low: float, high: float) -> Deceived:
    """A ball of radius 100 that a box cuts, asked for by its radius alone: slopes of 1000 lie in the ball."""

    def deceived(folder: Path) -> bool:
        path, file = _put(folder, _issued(100.0, "l2", (low, high)))
        return _accepted(path, file, checkers.Expectation(norm_in="l2", radius=100.0, at_most=1e-3))

    return deceived


def _part_of_all(folder: Path) -> bool:
    """A constant of 0 on a ball of radius 1/2, asked for as one of at most 60 for all inputs."""
    path, file = _put(folder, _issued(0.5))
    return _accepted(path, file, checkers.Expectation(everywhere=True, at_most=60.0))


# -- derivations


def _points(folder: Path, name: str, first: float, second: float) -> dict[str, Any]:
    arrays = {"first": torch.tensor([[first]]).double(), "second": torch.tensor([[second]]).double()}
    data = write_safetensors(arrays)
    (folder / name).write_bytes(data)
    return {"name": name, "sha256": hashlib.sha256(data).hexdigest()}


def _two_pairs(folder: Path) -> bool:
    """x / 2 + 400 relu(x) - 400 relu(x): "no constant below 99.5" of one of 1/2, by a far gap over a near distance."""
    graph = chain(
        [torch.tensor([[1.0], [1.0], [1.0], [-1.0]]), torch.tensor([[400.5, -400.0, 0.0, -0.5]])],
        lv.ops.ReLU(),
    )
    graph = graph.to(dtype=torch.float64)
    made = derived.neighbour_slope(graph, torch.tensor([[1.0], [3.0]]).double(), audited(graph, ["product"]))
    made.save(folder / "a.json")
    document = json.loads((folder / "a.json").read_text())
    gap, value = 199.0, 99.5
    document["numbers"]["gap"] = {
        "computed": gap.hex(),
        "samples": _points(folder, "far.safetensors", 0.0, 400.0),
    }
    document["numbers"]["distance"] = {
        "computed": (2.0).hex(),
        "samples": _points(folder, "near.safetensors", 1.0, 3.0),
    }
    document |= {"value": value, "value_hex": value.hex(), "statement": ""}
    try:
        read = derivations.parse(document)[0]
        document["statement"] = read.statement(value, read.points())
        (folder / "a.json").write_text(json.dumps(document))
        derived.verify_derived(folder / "a.json", list(made.graphs.values()))
    except UnreadableCertificate:
        return False
    return True


def _only_stated(folder: Path) -> bool:
    """A number that its author states, in the line of a folder: it has to say so."""
    derived.q_constant(1.0, 0.9, 0.99).save(folder / "q.json")
    file = folder / "net.onnx"
    file.write_bytes(_flat_then_steep())
    lines = [
        a.line
        for a in _report(folder, [file], checkers.Expectation(), False, 60.0, 0)[0]
        if a.name.endswith("q.json")
    ]
    assert len(lines) == 1
    return "taken as stated" not in lines[0]


# -- folders


def _passed_over(name: str, content: Callable[[str], str]) -> Deceived:
    """Whether a folder with a good certificate and such a file beside it is valid as a whole."""

    def deceived(folder: Path) -> bool:
        path, file = _put(folder, _issued(None))
        (folder / name).write_text(content(path.read_text().rstrip()))
        return all(a.code == 0 for a in _report(folder, [file], checkers.Expectation(), False, 60.0, 0)[0])

    return deceived


# -- questions of other packages


def _carried(radius: float | None, change: Callable[[Issued], None]) -> Deceived:
    """Whether an answer about the box [-9, 9] is `checked` by the certificate of a constant, changed afterwards."""

    def deceived(folder: Path) -> bool:
        issued = copy.deepcopy(_issued(radius))
        _, file = _put(folder, issued)
        graph = lv.load(file)
        issued.check(read_model(file))
        change(issued)
        question = Scaled(
            graph, lv.InputBox((1,), -9.0, 9.0), 1.0, proved=Proved(constants={"constant": issued})
        )
        return bool(lv.ask(question).to_json()["rigour"] == "checked")

    return deceived


def _lowered(issued: Issued) -> None:
    issued.document["claim"] = {**issued.document["claim"], "upper": 1e-9}


class _Any:
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


FAULTS: dict[str, Fault] = {
    "a type of four bits that keeps what it rounds": Fault(
        "checkers.reader.moves", "need", _unless("a conversion to a type that rounds*"), _read_otherwise(_narrow())),
    "how many entries there are hangs on a rounding": Fault(
        "checkers.reader.resizing", "need", _unless("a resizing whose size hangs*"), _read_otherwise(_resized(3, 5 / 3))),
    "a scale that moves entries and keeps their number": Fault(
        "checkers.reader.resizing", "need", _unless("a scale other than 1*"), _read_otherwise(_resized(6, 1.1))),
    "a loop without a condition that ends by one": Fault(
        "checkers.reader.subgraphs", "need", _unless("Loop without a condition*"), _ended_loop),
    "words of a file that choose the runtime": Fault(
        "checkers.reader.runtimes", "_says_that_it_is_no_model", lambda _: lambda error, data: False, _no_model),
    "a ball that a narrow box leaves next to nothing of": Fault(
        "checkers.claims:Expectation", "other_box", lambda _: lambda *given: None, _cut(-0.001, 0.001)),
    "half a ball": Fault(
        "checkers.claims:Expectation", "other_box", lambda _: lambda *given: None, _cut(-200.0, 0.5)),
    "a ball for all inputs": Fault("checkers.claims", "_part", lambda _: lambda claim: None, _part_of_all),
    "a gap and a distance of different points": Fault(
        "checkers.derivations", "need", _unless("numbers at different points"), _two_pairs),
    "a number that is stated, in a folder": Fault("checkers.derivations", "_stated", lambda _: lambda read: (), _only_stated),
    "a certificate that is cut off, in a folder": Fault(
        "commands.verify", "_is_certificate", lambda own: lambda document: document is not None and own(document),
        _passed_over("b.json", lambda text: text[:-40])),
    "a certificate with another spelling of its name": Fault(
        "commands.verify", "_json_files", lambda _: lambda folder: sorted(folder.glob("*.json")),
        _passed_over("b.JSON", lambda text: text[:-40])),
    "a certificate that a result names and that is gone": Fault(
        "commands.verify", "_named", lambda _: lambda document: iter(()),
        _passed_over("r.json", lambda _: '{"schema": "lipverify.audit/1", "rows": [{"certificate": "gone.json"}]}')),
    "a certificate that is changed after it was accepted": Fault(
        "certificates.format", "_digest_of", lambda _: lambda files: "", _carried(None, _lowered)),
    "a constant over another region than is asked about": Fault(
        "questions.carrying", "region_document", lambda _: lambda region: _Any(),
        _carried(0.5, lambda issued: None)),
}  # fmt: skip
