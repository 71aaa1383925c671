"""Certificates of small ONNX networks that check: for the whole space, and for balls."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import lipverify as lv
from lipverify import checkers
from lipverify.analyzers.local.bab import LocalBaB
from lipverify.certificates import Issued
from lipverify.certificates.fitting import derivatives
from lipverify.checkers import About
from lipverify.checkers.claims import Balls, Constant, outward
from lipverify.checkers.kernel import Rows
from lipverify.checkers.kernel import Subject as Proved
from lipverify.checkers.kernel.ranges import Ranges
from lipverify.falsify import Search
from tests.unit.checkers.graphs import balls_of

Document = dict[str, Any]


def dense_network(path: Path, seed: int) -> Path:
    """8-12-12-12-4 with ReLU, tanh and a shortcut."""
    r = np.random.default_rng(seed)
    stored, nodes = {}, []
    for k, (rows, columns) in enumerate(((12, 8), (12, 12), (12, 12), (4, 12))):
        stored[f"w{k}"] = (r.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)
        stored[f"b{k}"] = r.standard_normal(rows).astype(np.float32)
    for k, (source, act) in enumerate((("x", "Relu"), ("a0", "Tanh"), ("a1", "Relu"))):
        nodes.append(helper.make_node("Gemm", [source, f"w{k}", f"b{k}"], [f"h{k}"], transB=1))
        nodes.append(helper.make_node(act, [f"h{k}"], [f"a{k}"]))
    nodes.append(helper.make_node("Add", ["a2", "a0"], ["s"]))
    nodes.append(helper.make_node("Gemm", ["s", "w3", "b3"], ["y"], transB=1))
    return _saved(path, nodes, stored, [8])


def convolutional_network(path: Path, seed: int) -> Path:
    """Two convolutions on 6 x 6 with batch normalisation, average pooling and a dense layer."""
    r = np.random.default_rng(seed)
    stored = {
        "k0": r.standard_normal((3, 2, 3, 3)) / 4,
        "k1": r.standard_normal((3, 3, 3, 3)) / 5,
        "w": r.standard_normal((4, 27)),
    }
    stored |= {"g": r.standard_normal(3), "z": np.zeros(3), "v": 1 + r.random(3)}
    nodes = [
        helper.make_node("Conv", ["x", "k0"], ["c0"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c0", "g", "z", "z", "v"], ["n0"]),
        helper.make_node("Relu", ["n0"], ["a0"]),
        helper.make_node("Conv", ["a0", "k1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["c1"], ["a1"], alpha=0.25),
        helper.make_node("AveragePool", ["a1"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
    ]
    return _saved(path, nodes, {k: v.astype(np.float32) for k, v in stored.items()}, [2, 6, 6])


def kinked_network(path: Path, seed: int) -> Path:
    """4-9-8-4 with ReLU and leaky ReLU."""
    r = np.random.default_rng(seed)
    stored, nodes = {}, []
    for k, (rows, columns) in enumerate(((9, 4), (8, 9), (4, 8))):
        stored[f"w{k}"] = (r.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)
        stored[f"b{k}"] = (r.standard_normal(rows) / 3).astype(np.float32)
    for k, (source, act) in enumerate((("x", "Relu"), ("a0", "LeakyRelu"), ("a1", None))):
        result = f"h{k}" if act else "y"
        nodes.append(helper.make_node("Gemm", [source, f"w{k}", f"b{k}"], [result], transB=1))
        nodes += [helper.make_node(act, [result], [f"a{k}"])] if act else []
    return _saved(path, nodes, stored, [4])


def smooth_network(path: Path, seed: int) -> Path:
    """4-9-4 with a softplus that reads values near 0: steeper operators and larger weights make it steeper."""
    r = np.random.default_rng(seed)
    stored = {
        "w0": r.standard_normal((9, 4)) / 4,
        "b0": r.standard_normal(9) / 9,
        "w1": r.standard_normal((4, 9)) / 3,
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"], transB=1),
        helper.make_node("Softplus", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w1"], ["y"], transB=1),
    ]
    return _saved(path, nodes, {k: v.astype(np.float32) for k, v in stored.items()}, [4])


def _saved(path: Path, nodes: list[Any], stored: dict[str, Any], shape: list[int]) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@dataclass(frozen=True)
class Subject:
    """A model, its file, and one of its certificates."""

    name: str
    model: checkers.Model
    path: Path
    issued: Issued


def subjects(folder: Path, seed: int = 0, leaves: int = 24) -> list[Subject]:
    """Certificates that check, of both networks for the whole space, of the second one for balls; leaves: of trees of parts."""
    found = []
    r = np.random.default_rng(seed)
    ball = lv.Ball(torch.tensor(r.standard_normal((3, 2, 6, 6))), 0.03, "linf", box=(-4, 4))
    round_ = lv.Ball(ball.center[:2], 0.2, "l2")
    small = lv.Ball(torch.tensor(r.standard_normal((2, 4)) / 2), 0.4, "linf")
    for build, norm, region, analyzers in (
        (dense_network, "l2", None, ["product", "lipsdp"]),
        (convolutional_network, "l2", None, ["product", "lipsdp"]),
        (convolutional_network, "linf", ball, ["local", "lipsdp"]),
        (convolutional_network, "l2", round_, ["local", "local-sdp"]),
        (kinked_network, "linf", small, [LocalBaB(leaves=leaves)]),
        (smooth_network, "l2", lv.Ball(small.center / 2, 0.3, "l2"), ["local", "lipsdp"]),
    ):
        path = build(folder / f"{build.__name__}.onnx", seed)
        result = lv.audit(
            lv.load(path), norm=norm, region=region, analyzers=analyzers, search=Search(seconds=0.1)
        )
        for name, certificate in result.certificates.items():
            assert str(certificate.rigour) == "checked", (build.__name__, name, certificate.unchecked)
            assert isinstance(certificate.issued, Issued)
            where = "" if region is None else f"/{region.norm} ball"
            known = checkers.read_model(path)
            issued = certificate.issued if name != "local" else _tightened(certificate, known)
            found.append(Subject(f"{build.__name__}/{name}{where}", known, path, issued))
    return found


def _tightened(certificate: lv.Certificate, model: checkers.Model) -> Issued:
    """A local certificate whose numbers are what the checker computes itself, which may be below the analyzer's."""
    assert isinstance(certificate.issued, Issued)
    assert model.program is not None
    document = copy.deepcopy(certificate.issued.document)
    program = model.program.ending(document["models"][0]["output"]["index"])
    last, claim = len(program.steps) - 1, document["claim"]
    subject = Proved(program, balls_of(certificate.query.region))
    rows, norms = Rows(0, program.steps[-1].size), (claim["norm_in"], claim["norm_out"])
    steps = document["proof"]["steps"]
    for place, ball in enumerate(subject.regions):
        known = Ranges(subject.elements, ball, ())
        proved = derivatives(subject, 0, last, known, rows, norms)
        restated(document, proved / claim["upper"][place] * (1 + 1e-15), place)
        steps[document["proof"]["claims"][place]]["limit"] = proved.hex()
    return Issued(document, certificate.issued.arrays)


def restated(document: Document, factor: float, place: int | None = None) -> None:
    """Every number of the claim, or one of them, times a factor; the rest follows."""
    claim = document["claim"]
    several = isinstance(claim["upper"], list)
    before = claim["upper"] if several else [claim["upper"]]
    after = [v * factor if place in (None, k) else v for k, v in enumerate(before)]
    written = {
        "upper": after,
        "upper_hex": [v.hex() for v in after],
        "upper_decimal": [outward(v) for v in after],
    }
    claim |= written if several else {key: values[0] for key, values in written.items()}
    reworded(document)


def reworded(document: Document) -> None:
    """The statement of what a claim says otherwise."""
    claim, model = document["claim"], document["models"][0]
    region = claim["region"]
    balls = None
    if region["kind"] == "ball":
        balls = Balls(region["norm"], region["radius"], region["count"], region["centres"], region["box"])
    upper = claim["upper"] if isinstance(claim["upper"], list) else [claim["upper"]]
    margin = None if model["margin"] is None else tuple(model["margin"])
    output = model["output"]
    about = About(model["sha256"], model["graph_digest"], output["index"], output["name"], margin)
    claim["statement"] = Constant((claim["norm_in"], claim["norm_out"]), balls, tuple(upper)).statement(about)
