"""Certificates that were forged by hand against the first checker, one test for each kind: refused, or about the right number.

In each an honest certificate of a harmless twin is given the digest of a hostile file, whose true constant is 100 or so.
"""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import lipverify as lv
from lipverify import checkers
from lipverify.checkers.claims import outward
from lipverify.checkers.evaluation import evaluate, shown
from lipverify.checkers.reader import read_model
from lipverify.checkers.reader.agreement import agree
from lipverify.errors import NotCovered
from lipverify.falsify import Search
from lipverify.loading.safetensors import write_safetensors
from tests.clocks import within

QUICK = Search(seconds=0.05)
node = helper.make_node


def array(name: str, values: Any, kind: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, kind), name)


def network(
    path: Path,
    nodes: list[onnx.NodeProto],
    stored: list[onnx.TensorProto],
    shape: list[int],
    outputs: list[tuple[str, list[int] | None]],
    kind: int = onnx.TensorProto.FLOAT,
    change: Callable[[onnx.ModelProto], None] | None = None,
) -> Path:
    results = [helper.make_tensor_value_info(name, kind, size) for name, size in outputs]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, shape)], results, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if change is not None:
        change(model)
    path.write_bytes(model.SerializeToString())
    return path


def certificate(
    model: Path | lv.Graph, folder: Path, analyzer: str = "product", output: int = 0, **more: Any
) -> Path:
    """An honest certificate."""
    graph = lv.load(model, output=output) if isinstance(model, Path) else model
    found = lv.audit(graph, analyzers=[analyzer], search=QUICK, **more)
    assert str(found.rows[0].certificate.rigour) == "checked", found.rows[0].certificate.unchecked
    for name, data in found.certificate_files()[analyzer].items():
        (folder / name).write_bytes(data)
    return folder / f"{analyzer}.json"


def forged(honest: Path, target: Path) -> Path:
    """The certificate with the digest of the hostile file, also in its statement: all that an attacker needs."""
    text = honest.read_text()
    before = json.loads(text)["models"][0]["sha256"]
    path = honest.with_name(f"forged-{honest.name}")
    path.write_text(text.replace(before, hashlib.sha256(target.read_bytes()).hexdigest()))
    return path


def refused(path: Path, target: Path) -> None:
    with pytest.raises((lv.RefutedCertificate, lv.UnreadableCertificate)):
        checkers.verify_file(path, target)


THOUSANDTH = np.eye(3) * 0.001
SIZE: list[tuple[str, list[int] | None]] = [("y", [1, 3])]


def harmless(folder: Path) -> Path:
    return network(
        folder / "twin.onnx", [node("MatMul", ["x", "W"], ["y"])], [array("W", THOUSANDTH)], [1, 3], SIZE
    )


def test_a_constant_and_an_initializer_of_one_name(tmp_path: Path) -> None:
    value = numpy_helper.from_array((np.eye(3) * 100).astype(np.float32))
    nodes = [node("MatMul", ["x", "W"], ["y"]), node("Constant", [], ["W"], value=value)]
    bad = network(tmp_path / "bad.onnx", nodes, [array("W", THOUSANDTH)], [1, 3], SIZE)
    refused(forged(certificate(harmless(tmp_path), tmp_path), bad), bad)


def test_a_sparse_and_a_dense_initializer_of_one_name(tmp_path: Path) -> None:
    def sparse(model: onnx.ModelProto) -> None:
        other = model.graph.sparse_initializer.add()
        other.values.CopyFrom(array("W", [100.0, 100, 100]))
        other.indices.CopyFrom(array("W_i", [0, 4, 8], np.int64))
        other.dims.extend([3, 3])

    bad = network(
        tmp_path / "bad.onnx",
        [node("MatMul", ["x", "W"], ["y"])],
        [array("W", THOUSANDTH)],
        [1, 3],
        SIZE,
        change=sparse,
    )
    refused(forged(certificate(harmless(tmp_path), tmp_path), bad), bad)


def external(folder: Path) -> Path:
    """A file whose matrix lies beside it, and another one of that name in the current folder."""
    (folder / "model").mkdir()
    (folder / "here").mkdir()
    (np.eye(3) * 100).astype("<f4").tofile(folder / "model" / "w.bin")
    THOUSANDTH.astype("<f4").tofile(folder / "here" / "w.bin")
    tensor = onnx.TensorProto(data_type=1, dims=[3, 3], data_location=1)
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", "36")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    nodes = [node("Constant", [], ["W"], value=tensor), node("MatMul", ["x", "W"], ["y"])]
    return network(folder / "model" / "bad.onnx", nodes, [], [1, 3], SIZE)


def test_external_data_of_a_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = external(tmp_path)
    honest = certificate(harmless(tmp_path), tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    refused(forged(honest, bad), bad)


def test_an_audit_of_external_data_keeps_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = external(tmp_path)
    monkeypatch.chdir(tmp_path)
    row = lv.audit(lv.load(bad), search=QUICK).rows[0]
    assert float(row.certificate.upper) == pytest.approx(100, rel=1e-6)
    assert str(row.certificate.rigour) == "real"
    assert "external data" in row.certificate.unchecked


def test_inputs_that_are_integers(tmp_path: Path) -> None:
    divide = [node("Div", ["x", "d"], ["y"])]
    twin = network(tmp_path / "twin.onnx", divide, [array("d", np.full(3, 1000.0))], [1, 3], SIZE)
    stored = [array("d", np.full(3, 1000), np.int64)]
    bad = network(tmp_path / "bad.onnx", divide, stored, [1, 3], SIZE, kind=onnx.TensorProto.INT64)
    refused(forged(certificate(twin, tmp_path), bad), bad)


def test_a_name_that_the_checker_once_made_up_itself(tmp_path: Path) -> None:
    stored = [array("s", np.full(3, 0.001))]
    twin = network(tmp_path / "twin.onnx", [node("Mul", ["x", "s"], ["y"])], stored, [1, 3], SIZE)
    nodes = [
        node("MatMul", ["x", "W"], ["a"]),
        node("Mul", ["x", "s"], ["y/end"]),
        node("Gather", ["a", "i"], ["y"], axis=1),
    ]
    stored = [array("W", np.diag([100.0, 1, 1])), *stored, array("i", [2, 1, 0], np.int64)]
    bad = network(tmp_path / "bad.onnx", nodes, stored, [1, 3], [*SIZE, ("y/end", [1, 3])])
    refused(forged(certificate(twin, tmp_path), bad), bad)
    # Nothing is wrong with the file: its own certificate is one of a constant of 100.
    verdict = checkers.verify_file(certificate(bad, tmp_path), bad)
    assert verdict.upper == pytest.approx(100, rel=1e-6)


def test_a_verdict_says_which_output_it_is_about(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "W"], ["y"]), node("Mul", ["x", "s"], ["aux"])]
    stored = [array("W", np.eye(3) * 100), array("s", np.full(3, 0.001))]
    two = network(tmp_path / "two.onnx", nodes, stored, [1, 3], [("y", [1, 3]), ("aux", [1, 3])])
    path = certificate(two, tmp_path, output=1)
    verdict = checkers.verify_file(path, two)
    assert verdict.upper == pytest.approx(0.001, rel=1e-6)
    assert "output 1 ('aux')" in verdict.claim
    assert verdict.to_json()["model"]["output"] == {"index": 1, "name": "aux"}
    with pytest.raises(lv.RefutedCertificate, match="output 1, not 0"):
        checkers.verify_file(path, two, expected=checkers.Expectation(output=0))
    # Said to be about the first output it is another claim, which the proof does not carry.
    document = json.loads(path.read_text())
    document["models"][0]["output"] = {"index": 0, "name": "y"}
    document["claim"]["statement"] = document["claim"]["statement"].replace(
        "output 1 ('aux')", "output 0 ('y')"
    )
    path.write_text(json.dumps(document))
    refused(path, two)


def test_a_padding_with_another_number_than_0(tmp_path: Path) -> None:
    def make(name: str, value: float) -> Path:
        nodes = [
            node("Pad", ["x", "p", "v"], ["a"]),
            node("Gemm", ["a", "W", "b"], ["c"], transB=1),
            node("Relu", ["c"], ["y"]),
        ]
        stored = [
            array("p", [0, 0, 0, 1], np.int64),
            array("v", value),
            array("W", [[1.0, 1.0]]),
            array("b", [-5.0]),
        ]
        return network(tmp_path / name, nodes, stored, [1, 1], [("y", [1, 1])])

    twin, bad = make("twin.onnx", 0.0), make("bad.onnx", 10.0)
    honest = certificate(twin, tmp_path, "local", region=lv.Ball(torch.zeros(1, 1), 1.0, "l2"))
    assert checkers.verify_file(honest, twin).upper == [pytest.approx(0, abs=1e-60)]
    refused(forged(honest, bad), bad)


def test_a_file_that_two_readers_read_in_two_ways(tmp_path: Path) -> None:
    good = network(
        tmp_path / "m.onnx", [node("MatMul", ["x", "W"], ["y"])], [array("W", np.eye(3) * 100)], [1, 3], SIZE
    )
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"PK" + good.read_bytes())
    np.savez(tmp_path / "t.npz", **{"0.weight": THOUSANDTH.astype(np.float32)})
    build = "import torch\ndef make(): return torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False))\n"
    (tmp_path / "a.py").write_text(build)
    graph = lv.load(tmp_path / "t.npz", arch=f"{tmp_path}/a.py:make", trust_code=True, input_shape=(3,))
    honest = certificate(graph, tmp_path)
    assert checkers.verify_file(honest, tmp_path / "t.npz").binding == "weights"
    refused(forged(honest, bad), bad)


def split_on_the_last_entry(folder: Path, centre: tuple[float, float], upper: float) -> tuple[Path, Path]:
    """A tree over entry -1 of the input: as a condition the last entry, as a row of a matrix the number 0."""
    nodes = [
        node("Gemm", ["x", "W", "b"], ["a"], transB=1),
        node("Relu", ["a"], ["r"]),
        node("MatMul", ["r", "V"], ["y"]),
    ]
    stored = [array("W", [[0, 1.0]]), array("b", [-0.5]), array("V", [[100.0]])]
    net = network(folder / "net.onnx", nodes, stored, [1, 2], [("y", [1, 1])])
    graph = lv.load(net)
    ball = lv.Ball(torch.tensor([centre]), 1.0, "l2")
    path = certificate(graph, folder, "local", region=ball)
    document = json.loads(path.read_text())
    claim = document["claim"]
    old = claim["upper_decimal"][0]
    claim |= {"upper": [upper], "upper_hex": [upper.hex()], "upper_decimal": [outward(upper)]}
    claim["statement"] = claim["statement"].replace(f"<= {old} ", f"<= {outward(upper)} ")
    at = (0.25).hex()
    whole = document["proof"]["steps"][-1]
    document["proof"] = {
        "steps": [
            {"step": "ranges", "region": 0, "conditions": [[-1, -1, at, "above"]]},
            {"step": "empty", "ranges": 0, "weights": [(1.0).hex()]},
            {"step": "ranges", "region": 0, "conditions": [[-1, -1, at, "below"]]},
            {**whole, "ranges": 2, "limit": upper.hex()},
            {"step": "cover", "above": 1, "below": 3},
        ],
        "claims": [4],
    }
    path.write_text(json.dumps(document))
    return path, net


@pytest.mark.parametrize(("centre", "upper"), [((0.0, 0.0), 1e-80), ((0.0, 5.0), 0.0)])
def test_a_split_on_entry_minus_one(tmp_path: Path, centre: tuple[float, float], upper: float) -> None:
    path, net = split_on_the_last_entry(tmp_path, centre, upper)
    with pytest.raises(lv.UnreadableCertificate, match="out of its range"):
        checkers.verify_file(path, net)


@pytest.mark.parametrize("op", ["Pad", "Conv"])
def test_small_files_that_ask_for_much_memory(tmp_path: Path, op: str) -> None:
    n = 40_000
    if op == "Pad":
        nodes, stored = [node("Pad", ["x", "p"], ["y"])], [array("p", [0, 0, n, n, 0, 0, n, n], np.int64)]
    else:
        nodes = [node("Conv", ["x", "W"], ["y"], pads=[n] * 4)]
        stored = [array("W", np.ones((1, 1, 1, 1)))]
    path = network(tmp_path / "m.onnx", nodes, stored, [1, 1, 1, 1], [("y", None)])
    tracemalloc.start()
    try:
        with within(5):
            model = checkers.read_model(path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert model.program is None or model.refused
    assert most < 64 << 20


def test_weights_of_which_nothing_takes_part(tmp_path: Path) -> None:
    """An architecture that reads no tensor of the file: true of itself, and said of a file that has nothing to do with it."""
    mine, theirs = tmp_path / "mine.npz", tmp_path / "theirs.safetensors"
    np.savez(mine, **{"0.weight": THOUSANDTH.astype(np.float32)})
    theirs.write_bytes(write_safetensors({"0.weight": torch.eye(3) * 100}))
    (tmp_path / "a.py").write_text(
        "import torch\ndef make(): return torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False))\n"
    )
    graph = lv.load(mine, arch=f"{tmp_path}/a.py:make", trust_code=True, input_shape=(3,))
    path = certificate(graph, tmp_path)
    document = json.loads(forged(path, theirs).read_text())
    digest = next(iter(document["tensors"].values()))
    side = write_safetensors({f"tensor.{digest}": torch.eye(3) * np.float32(0.001)})
    (tmp_path / "side.safetensors").write_bytes(side)
    document["sidecar"] = {"name": "side.safetensors", "sha256": hashlib.sha256(side).hexdigest()}
    path.write_text(json.dumps(document))
    with pytest.raises(lv.RefutedCertificate, match="nothing of the model's file"):
        checkers.verify_file(path, theirs)


def test_certificates_of_the_first_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"schema": "lipverify.certificate/1"}))
    with pytest.raises(lv.UnreadableCertificate, match="could be forged"):
        checkers.verify_file(path, harmless(tmp_path))


BIG = 2**53


def hidden(nodes: list[onnx.NodeProto], stored: list[onnx.TensorProto]) -> Any:
    """The output y, to which terms are added that cancel: in float32 no comparison of outputs says anything."""
    more = [node("Mul", ["x", "B"], ["n"]), node("Mul", ["x", "C"], ["m"]), node("Add", ["n", "m"], ["o"])]
    return [*nodes, *more, node("Add", ["y", "o"], ["z"])], [*stored, array("B", 1e25), array("C", -1e25)]


def chosen(folder: Path, name: str, integer: list[onnx.NodeProto], stored: list[onnx.TensorProto]) -> Path:
    """A slope of 0.001 or 100, whichever the two integers `i` choose."""
    nodes, stored = hidden(
        [*integer, node("Equal", ["i", "k"], ["c"]), node("Where", ["c", "l", "h"], ["w"]), node("Mul", ["x", "w"], ["y"])],
        [*stored, array("l", [0.001, 0.001]), array("h", [100.0, 100.0])],
    )  # fmt: skip
    return network(folder / name, nodes, stored, [1, 2], [("z", [1, 2])])


def test_sums_that_hide_every_difference(tmp_path: Path) -> None:
    """A reader could read anything in such a file, and the runtime would agree."""
    nodes, stored = hidden([node("Mul", ["x", "w"], ["y"])], [array("w", 0.001)])
    model = read_model(network(tmp_path / "m.onnx", nodes, stored, [1, 2], [("z", [1, 2])]))
    assert model.program is not None
    assert model.data is not None
    with pytest.raises(NotCovered, match="sums inside hide"):
        agree(model.data, model.program)


def test_a_padding_with_an_integer_that_float64_does_not_hold(tmp_path: Path) -> None:
    stored = [array("e", [7], np.int64), array("p", [1, 0], np.int64), array("v", BIG + 1, np.int64)]
    stored.append(array("k", [BIG, 7], np.int64))
    model = read_model(chosen(tmp_path, "m.onnx", [node("Pad", ["e", "p", "v"], ["i"])], stored))
    assert model.program is not None
    (found,) = shown(model.program.outputs[0].view, evaluate(model.program, np.ones((1, 2))))
    assert found.tolist() == [100.0, float(np.float32(0.001))]


def test_an_integer_made_of_a_sum_that_its_type_rounds(tmp_path: Path) -> None:
    """2^24 + 1 is 2^24 in float32, and another integer decides."""
    stored = [array("a", [2.0**24] * 2), array("b", [1.0] * 2), array("k", [2**24 + 1] * 2, np.int64)]
    integer = [node("Add", ["a", "b"], ["s"]), node("Cast", ["s"], ["i"], to=onnx.TensorProto.INT64)]
    model = read_model(chosen(tmp_path, "m.onnx", integer, stored))
    assert model.program is None
    assert "rounded" in model.reason


def test_a_ball_of_another_norm_than_expected(tmp_path: Path) -> None:
    """An l2 ball of a radius is a small part of the linf ball of that radius, also where slopes are measured in linf."""
    path = certificate(
        harmless(tmp_path), tmp_path, "local", region=lv.Ball(torch.zeros(1, 3), 0.5, "l2"), norm="linf"
    )
    twin = tmp_path / "twin.onnx"
    assert (
        checkers.verify_file(path, twin, expected=checkers.Expectation(norm_in="linf")).fields["region"][
            "norm"
        ]
        == "l2"
    )
    with pytest.raises(lv.RefutedCertificate, match="l2 balls"):
        checkers.verify_file(path, twin, expected=checkers.Expectation(norm_in="linf", radius=0.5))


def test_a_file_that_leaves_its_type_but_at_0(tmp_path: Path) -> None:
    """Compared at 0 alone it could be any linear function."""
    nodes = [node("Mul", ["x", "B"], ["p"]), node("Mul", ["p", "B"], ["y"])]
    model = read_model(network(tmp_path / "m.onnx", nodes, [array("B", 3e19)], [1, 2], [("y", [1, 2])]))
    assert model.program is not None
    assert model.data is not None
    with pytest.raises(NotCovered, match="too few finite numbers"):
        agree(model.data, model.program)
