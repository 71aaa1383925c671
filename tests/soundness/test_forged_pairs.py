"""Two files that are compared as one function of one input, though they mean different things by their places."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lipverify as lv
from lipverify import checkers
from lipverify.errors import RefutedCertificate

BOX = lv.InputBox((4,), 0.0, 1.0)


def file(path: Path, inputs: str, outputs: str = "yz") -> Path:
    """y = 3 a - b and z = a + b, inputs and outputs listed in these orders."""
    nodes = [
        helper.make_node("Mul", ["a", "k"], ["t"]),
        helper.make_node("Sub", ["t", "b"], ["y"]),
        helper.make_node("Add", ["a", "b"], ["z"]),
    ]
    listed = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in names]
        for names in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "g", *listed, [numpy_helper.from_array(np.float32([3.0]), "k")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def read(path: Path, output: int | str = 0) -> lv.Graph:
    return lv.load(path, state="free", output=output)


def test_inputs_in_another_order_are_no_same_input(tmp_path: Path) -> None:
    """3 a - b of a, b and 3 b - a of b, a were "apart by at most 0": fed by name, they are 4 apart."""
    first, same, other = (file(tmp_path / f"{k}.onnx", order) for k, order in enumerate(("ab", "ab", "ba")))
    with pytest.raises(lv.UsageError, match="in another order or by other names: a, b and b, a"):
        lv.deviation(read(first), read(other), BOX)
    answer = lv.deviation(read(first), read(same), BOX)
    assert answer.upper == 0.0
    assert answer.issued is not None
    for name, data in answer.issued.files("c.json").items():
        (tmp_path / name).write_bytes(data)
    checkers.verify_file(tmp_path / "c.json", [first, same])
    table = json.loads((tmp_path / "c.json").read_text())
    table["models"][1]["reading"]["inputs"].reverse()
    ahead, word, behind = table["claim"]["statement"].partition("; g the")
    turned = behind.replace("'a'", "'c'").replace("'b'", "'a'").replace("'c'", "'b'")
    table["claim"]["statement"] = ahead + word + turned
    (tmp_path / "c.json").write_text(json.dumps(table))
    with pytest.raises(RefutedCertificate, match="another order"):
        checkers.verify_file(tmp_path / "c.json", [first, same])


def test_inputs_of_other_sizes_are_no_same_input(tmp_path: Path) -> None:
    """Of a [2], b [4] and a [4], b [2] the vectors are as long, and two numbers of each are a in the one and b in the other."""
    graphs = []
    for sizes in ((2, 4), (4, 2)):
        nodes = [
            helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
            helper.make_node("Relu", ["c"], ["y"]),
        ]
        inputs = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, size])
            for n, size in zip("ab", sizes, strict=True)
        ]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6])]
        graph = helper.make_graph(nodes, "g", inputs, outputs)
        path = tmp_path / f"{sizes[0]}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        graphs.append(read(path))
    with pytest.raises(lv.UsageError, match=r"the inputs a, b have the shapes \[2\], \[4\] and \[4\], \[2\]"):
        lv.deviation(*graphs, lv.InputBox((6,), 0.0, 1.0))


def test_outputs_are_the_same_by_their_names(tmp_path: Path) -> None:
    """The first output of y, z was held against the first of z, y, and the sentence named neither."""
    first, other = file(tmp_path / "f.onnx", "ab"), file(tmp_path / "g.onnx", "ab", "zy")
    for asked in ((0, 0), (1, 1), ("y", 0), ("y", "z")):
        with pytest.raises(lv.UsageError, match="--output NAME"):
            lv.deviation(*(read(p, k) for p, k in zip((first, other), asked, strict=True)), BOX)
    for name in "yz":
        assert lv.deviation(read(first, name), read(other, name), BOX).upper == 0.0
    renamed = onnx.load(other)
    for node in renamed.graph.node:
        node.output[0] = {"y": "u", "z": "v"}.get(node.output[0], node.output[0])
    for value in renamed.graph.output:
        value.name = {"y": "u", "z": "v"}[value.name]
    onnx.save(renamed, tmp_path / "h.onnx")
    assert lv.deviation(read(first), read(tmp_path / "h.onnx"), BOX).upper > 0.0
