"""Certificates about two models: what is proved, what is refused, and the claims that a forger would like to make."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import checkers, ops
from lipverify.analyzers.protocol import Compute
from lipverify.certificates import Issued
from lipverify.certificates.format import claim_document
from lipverify.checkers import Expectation
from lipverify.checkers.claims import Balls, outward
from lipverify.checkers.deviation import Deviation, deviation_of
from lipverify.checkers.envelope import named_models
from lipverify.checkers.tables import hexadecimal
from lipverify.errors import RefutedCertificate, UnreadableCertificate
from lipverify.ir.graph import Graph, Node
from lipverify.ir.norm import Norm
from lipverify.ir.op import Input
from lipverify.ir.region import Ball
from lipverify.questions import deviation_proof
from lipverify.questions.deviation_proof import Asked, Certified, certified
from tests import networks
from tests.command import lipverify as run
from tests.onnx_models import ints, model, node, random

Document = dict[str, Any]
BOX = lv.InputBox((3,), -1.0, 1.0)
BALLS = Ball(
    torch.tensor([[0.1, 0.2, -0.3], [0.5, -0.5, 0.0]], dtype=torch.float64), 0.05, Norm.L2, (-1.0, 1.0)
)


def net(noise: float = 0.0, seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    weights = [networks.tensor(rng, *size) for size in ((8, 3), (6, 8), (4, 6))]
    other = np.random.default_rng(seed + 1)
    moved = [w + noise * networks.tensor(other, *w.shape) for w in weights]
    return networks.chain(moved, ops.ReLU())


F, G = net(), net(0.01)


def labels() -> list[int]:
    return [int(c) for c in lv.evaluate(F.to(dtype=torch.float64), BALLS.center).argmax(1)]


def proved(f: Graph = F, g: Graph = G, region: Ball = BOX, norm: str = "linf", **more: Any) -> Certified:
    found = certified(Asked(f, g, region, norm, [1.0] * len(region), **more), Compute())
    assert found.issued is not None, found.reason
    return found


@cache
def honest(region: str) -> Issued:
    """A certificate over BOX with differences, or over BALLS with labels; it stands. Made once: nobody may change it."""
    whole = region == "box"
    more: Document = {"differences": True} if whole else {"labels": labels()}
    issued = proved(region=BOX if whole else BALLS, **more).issued
    assert issued is not None
    verdict(issued)
    return issued


def verdict(issued: Issued, *models: Graph, **expected: Any) -> checkers.Verdict:
    return lv.verify(issued, models or (F, G), expected=Expectation(**expected))


def values(graph: Graph, x: torch.Tensor) -> np.ndarray[Any, Any]:
    return lv.evaluate(graph.to(dtype=torch.float64), x).numpy()


@pytest.mark.parametrize("norm", ["linf", "l2", "pairs"])
@pytest.mark.parametrize("region", [BOX, BALLS], ids=["box", "balls"])
def test_bounds_lie_above_what_points_show(norm: str, region: Ball) -> None:
    single = len(region) == 1
    found = proved(region=region, norm=norm, differences=single, labels=None if single else labels())
    assert found.issued is not None
    said = verdict(found.issued)
    assert said.upper == (found.upper[0] if single else list(found.upper))
    rng = torch.Generator().manual_seed(0)
    for k in range(len(region)):
        x = region.center[k] + region.radius * (
            2 * torch.rand(500, 3, generator=rng, dtype=torch.float64) - 1
        )
        x = region.project(x[:, None])[:, 0] if single else x
        if not single:
            x = x[(x - region.center[k]).norm(dim=1) <= region.radius]
        d = values(F, x) - values(G, x)
        size = {"linf": np.abs(d).max(1), "l2": np.linalg.norm(d, axis=1), "pairs": np.ptp(d, 1)}[norm]
        assert 0.2 * found.upper[k] < size.max() <= found.upper[k]
        if found.differences is not None:
            assert ((d[:, :, None] - d[:, None]).max(0) <= np.array(found.differences)).all()
        if found.labels is not None and found.labels[k] is not None:
            assert (values(F, x).argmax(1) == found.labels[k]).all()
            assert (values(G, x).argmax(1) == found.labels[k]).all()
    if found.labels is not None:
        assert any(label is not None for label in found.labels)


def convolutional(steps: float | None = None) -> Graph:
    """Two convolutions and a sum; with `steps` all weights are rounded to multiples of it."""
    rng = np.random.default_rng(3)
    weights = [networks.tensor(rng, *size) / 6 for size in ((24, 1, 3, 3), (24, 24, 3, 3), (3, 24 * 25))]
    first, second, last = (w if steps is None else (w / steps).round() * steps for w in weights)
    layers = (
        ops.Conv(first, None, (2, 2), ((1, 1), (1, 1)), (1, 1)),
        ops.ReLU(),
        ops.Conv(second, None, (1, 1), ((1, 1), (1, 1)), (1, 1)),
        ops.ReLU(),
        ops.Reshape((600,)),
        ops.Linear(last, None),
    )
    shapes = ((24, 5, 5), (24, 5, 5), (24, 5, 5), (24, 5, 5), (600,), (3,))
    nodes = [Node("x", Input(), (), (1, 10, 10))]
    for k, (op, shape) in enumerate(zip(layers, shapes, strict=True)):
        nodes.append(Node(f"n{k}", op, (nodes[-1].name,), shape))
    return Graph(tuple(nodes), (nodes[-1].name,))


def test_convolutional_copies_are_proved_as_far_as_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    f, g = convolutional(), convolutional(0.004)
    center = torch.rand(2, 1, 10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    region = Ball(center, 0.02, Norm.LINF, (0.0, 1.0))
    monkeypatch.setattr(deviation_proof, "MOST_OF_ALL", 1)
    found = proved(f, g, region)
    assert found.issued is not None
    assert found.reason is not None
    assert "first 1 of 2 regions" in found.reason
    verdict(found.issued, f, g)
    rng = torch.Generator().manual_seed(1)
    x = center[:1] + 0.02 * (2 * torch.rand(500, 1, 10, 10, generator=rng, dtype=torch.float64) - 1)
    size = np.abs(values(f, x.clamp(0, 1)) - values(g, x.clamp(0, 1))).max()
    assert 0.3 * found.upper[0] < size <= found.upper[0]


def test_models_in_the_other_order_and_other_models_are_refused() -> None:
    issued = honest("box")
    for models in ((G, F), (F, F), (F, net(0.02)), (G, G)):
        with pytest.raises(UnreadableCertificate):
            verdict(issued, *models)
    for count in ((F,), (F, G, G)):
        with pytest.raises(UnreadableCertificate, match="models, not"):
            verdict(issued, *count)


def test_files_are_bound_by_their_digests_and_their_order(tmp_path: Path) -> None:
    f, g = lv.load("zoo:digits-relu-mlp"), lv.load("zoo:digits-int8")
    found = proved(f, g, lv.InputBox((64,), 0.0, 1.0), "linf", differences=True)
    assert found.issued is not None
    path = tmp_path / "c.json"
    found.issued.save(path)
    assert named_models(path) == [(f.origin.sha256, ()), (g.origin.sha256, ())]
    said = lv.verify(path, ["zoo:digits-relu-mlp", "zoo:digits-int8"])
    assert said.upper == found.upper[0] < 1.76
    assert [model["binding"] for model in said.to_json()["models"]] == ["weights", "weights"]
    with pytest.raises(UnreadableCertificate, match="other order"):
        lv.verify(path, ["zoo:digits-int8", "zoo:digits-relu-mlp"])
    with pytest.raises(UnreadableCertificate, match="another model file"):
        lv.verify(path, ["zoo:digits-relu-mlp", "zoo:digits-pruned"])


def test_one_model_beside_itself_differs_by_nothing() -> None:
    found = proved(F, net(), differences=True)
    assert found.issued is not None
    assert found.upper == (0.0,)
    assert found.issued.document["proof"] == {"steps": [], "claims": []}
    assert verdict(found.issued, F, net()).upper == 0.0
    # The same empty proof says nothing about two models.
    other = honest("box")
    forged = copy.deepcopy(other.document)
    forged["proof"] = {"steps": [], "claims": []}
    with pytest.raises(RefutedCertificate, match="facts"):
        verdict(Issued(forged, other.arrays))


def test_equal_models_have_as_many_differences_as_outputs() -> None:
    found = proved(F, net(), differences=True)
    assert found.issued is not None
    document = json.loads(json.dumps(found.issued.document))
    for change in (_larger, _fewer):
        forged = copy.deepcopy(document)
        table(forged["claim"], change)
        with pytest.raises(RefutedCertificate, match="other outputs"):
            verdict(Issued(told(forged), found.issued.arrays), F, net())


def test_a_deviation_in_balls_of_another_norm_than_expected_is_refused() -> None:
    issued = proved(region=BALLS).issued
    assert issued is not None
    verdict(issued, norm_in="l2", radius=0.05)
    with pytest.raises(RefutedCertificate, match="l2 balls, not about linf balls"):
        verdict(issued, norm_in="linf", radius=0.05)


@pytest.mark.parametrize("expected", [
    {"norm_in": "linf"}, {"norm_out": "l2"}, {"at_most": 1e-3}, {"radius": 0.1}, {"output": 1}, {"margin": (0, 1)},
    {"box": (0.0, 1.0)},
], ids=str)  # fmt: skip
def test_another_claim_than_expected_is_refused(expected: dict[str, Any]) -> None:
    issued = honest("box")
    verdict(issued, norm_out="linf", at_most=10.0, output=0, box=(-1.0, 1.0))
    with pytest.raises(RefutedCertificate, match="something else than expected"):
        verdict(issued, **expected)


# -- forgeries


def told(document: Document) -> Document:
    """With the sentence that its numbers make, where they make one."""
    abouts = [
        checkers.About(m["sha256"], m["graph_digest"], m["output"]["index"], m["output"]["name"], m["margin"])
        for m in document["models"]
    ]
    claim = document["claim"]
    with suppress(UnreadableCertificate), pytest.MonkeyPatch.context() as patch:
        honest = checkers.Deviation.statement
        patch.setattr(checkers.Deviation, "statement", lambda self, *about: claim["statement"])
        claim["statement"] = honest(deviation_of(claim, abouts), *abouts)
    return document


def smaller(claim: Document, factor: float) -> None:
    several = isinstance(claim["upper"], list)
    numbers = claim["upper"] if several else [claim["upper"]]
    values = [v * factor for v in numbers]
    written = {
        "upper": values,
        "upper_hex": [v.hex() for v in values],
        "upper_decimal": [outward(v) for v in values],
    }
    claim.update(written if several else {k: v[0] for k, v in written.items()})


def table(claim: Document, change: Callable[[list[list[str]]], None]) -> None:
    change(claim["differences"])


def _lower(rows: list[list[str]]) -> None:
    rows[0][1] = (float.fromhex(rows[0][1]) - 0.01).hex()


def _larger(rows: list[list[str]]) -> None:
    for row in rows:
        row.append((0.0).hex())
    rows.append([(0.0).hex()] * len(rows[0]))


def _fewer(rows: list[list[str]]) -> None:
    rows.pop()
    for row in rows:
        row.pop()


def values_of(document: Document) -> list[Document]:
    """Steps about all entries of the difference."""
    return [s for s in document["proof"]["steps"] if s["step"] == "value" and len(s["rows"]) == 2]


def relabelled(claim: Document, change: Callable[[int], int]) -> None:
    claim["labels"] = [None if c is None else change(c) for c in claim["labels"]]


WHOLE: dict[str, Callable[[Document], None]] = {
    "a smaller bound": lambda d: smaller(d["claim"], 0.99),
    "another norm": lambda d: d["claim"].update(norm_out="l2"),
    "a smaller difference": lambda d: table(d["claim"], _lower),
    "more differences": lambda d: table(d["claim"], _larger),
    "fewer differences": lambda d: table(d["claim"], _fewer),
    "a larger box": lambda d: d["claim"]["region"].update(low=-2.0),
    "facts of the other sign twice": lambda d: d["proof"]["claims"].__setitem__(1, d["proof"]["claims"][0]),
    "facts of f alone": lambda d: [s.update(rows=[0, 4]) for s in values_of(d)],
    "facts of some rows": lambda d: [s.update(rows=[8, 11]) for s in values_of(d)],
    "facts left out": lambda d: d["proof"]["claims"].pop(),
    "a condition": lambda d: d["proof"]["steps"][0].update(conditions=[[-1, 0, (0.0).hex(), "above"]]),
    "a higher limit": lambda d: d["proof"]["steps"][1].update(limit=(-1e-3).hex()),
    "roles exchanged": lambda d: [d["models"][0].update(role="changed"), d["models"][1].update(role="original")],
    "one model": lambda d: d["models"].pop(),
    "a kind of claim about one model": lambda d: d["claim"].update(kind="constant"),
    "labels of a box": lambda d: d["claim"].update(labels=[1]),
    "no box": lambda d: d["regions"][0].update(box=False),
    "a box told as a ball": lambda d: d["regions"][0].update(norm="linf"),
    "a pair of other layers": lambda d: d["proof"]["steps"][0].update(pairs=[[2, 1]]),
    "a pair with what is computed from it": lambda d: d["proof"]["steps"][0].update(pairs=[[0, 1]]),
    "a pair that is none": lambda d: d["proof"]["steps"][0].update(pairs=[[2, 9]]),
}  # fmt: skip
PARTS: dict[str, Callable[[Document], None]] = {
    "a smaller bound": lambda d: smaller(d["claim"], 0.99),
    "another label": lambda d: relabelled(d["claim"], lambda c: (c + 1) % 4),
    "a label beyond the outputs": lambda d: relabelled(d["claim"], lambda c: c + 4),
    "a larger ball": lambda d: d["claim"]["region"].update(radius=0.06, radius_hex=(0.06).hex()),
    "no box": lambda d: d["claim"]["region"].update(box=None),
    "balls exchanged": lambda d: [r.update(centre=1 - r["centre"]) for r in d["regions"]],
    "a smaller ball in the proof": lambda d: [r.update(radius_hex=(0.01).hex()) for r in d["regions"]],
    "another norm of balls": lambda d: [r.update(norm="linf") for r in d["regions"]],
    "the box in place of balls, and no box": lambda d: [d["claim"]["region"].update(box=None),
        *(r.update(kind="box", norm=None, radius_hex=None, centre=None) for r in d["regions"])],
}  # fmt: skip


@pytest.mark.parametrize(("region", "name"), [*(("box", n) for n in WHOLE), *(("balls", n) for n in PARTS)])
def test_forged_certificates_are_refused(region: str, name: str) -> None:
    issued = honest(region)
    said = json.dumps(issued.document)
    document = json.loads(said)
    (WHOLE if region == "box" else PARTS)[name](document)
    assert document != json.loads(said)
    if len(document["models"]) == 2 and document["claim"]["kind"] == "deviation":
        told(document)
    with pytest.raises((RefutedCertificate, UnreadableCertificate)):
        verdict(Issued(document, issued.arrays))


def test_a_whole_box_serves_the_balls_that_it_cuts() -> None:
    found = proved(region=BALLS)
    assert found.issued is not None
    document = json.loads(json.dumps(found.issued.document))
    for region in document["regions"]:
        region.update(kind="box", norm=None, radius_hex=None, centre=None)
    with pytest.raises(RefutedCertificate, match="value that is not shown"):
        verdict(Issued(document, found.issued.arrays))
    bound = 4.0 * proved().upper[0]  # of the box in parts; in one piece it is less tight
    for step in document["proof"]["steps"]:
        if step["step"] == "value":
            step["limit"] = (-bound).hex()
    smaller(document["claim"], 1.01 * bound / min(document["claim"]["upper"]))
    assert verdict(Issued(told(document), found.issued.arrays)).upper == document["claim"]["upper"]


def test_the_written_claim_is_read_again() -> None:
    document = honest("box").document
    abouts = [
        checkers.About(m["sha256"], m["graph_digest"], 0, m["output"]["name"], None)
        for m in document["models"]
    ]
    claim = deviation_of(document["claim"], abouts)
    assert claim_document(claim, *abouts) == document["claim"]


@pytest.mark.parametrize("more", [{"labels": (0,)}, {"differences": ((0.0,),)}, {"norm": "pairs"}])
def test_labels_and_differences_of_a_single_number_say_nothing(more: Any) -> None:
    """Whatever the number is, it is the largest of one, and every list of facts about pairs is empty."""
    region = Balls("l2", 0.1, 1, "a digest", None)
    claim = Deviation(**{"norm": "linf", "region": region, "upper": (1.0,)} | more)
    with pytest.raises(RefutedCertificate, match="a single number"):
        claim.about(1)


def test_numbers_in_different_shapes_are_not_compared(tmp_path: Path) -> None:
    """[2, 3] and [3, 2] hold the same numbers in another order of axes: `deviate` refuses such inputs, and outputs."""

    def file(name: str, sizes: list[int], given: list[int], seed: int = 1) -> Path:
        nodes = [
            node("Flatten", ["x"], ["f"]),
            node("MatMul", ["f", "w"], ["z"]),
            node("Reshape", ["z", "s"], ["y"]),
        ]
        stored = {"w": random(6, 6, seed=seed), "s": ints(1, *given)}
        path = tmp_path / name
        path.write_bytes(model(nodes, [1, *sizes], 13, stored).SerializeToString())
        return path

    one, two = file("f.onnx", [2, 3], [2, 3], 0), file("g.onnx", [2, 3], [2, 1, 3])
    found = proved(lv.load(one), lv.load(two), lv.InputBox((2, 3), -1.0, 1.0))
    assert found.issued is not None
    for name, data in found.issued.files("c.json").items():
        (tmp_path / name).write_bytes(data)
    text = (tmp_path / "c.json").read_text()
    checkers.verify_file(tmp_path / "c.json", [one, two])
    folder = tmp_path / "all" / "certificates"
    folder.mkdir(parents=True)
    for path in (tmp_path / name for name in found.issued.files("c.json")):
        (folder / path.name).write_bytes(path.read_bytes())
    asked = ["--model", str(one), "--model", str(two)]
    assert run("verify", str(folder.parent), *asked).returncode == 0
    assert "other order" in run("verify", str(folder.parent), *asked[2:], *asked[:2]).stdout
    for turned in (file("h.onnx", [3, 2], [2, 3]), file("k.onnx", [2, 3], [3, 2])):
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (two, turned)]
        (tmp_path / "c.json").write_text(text.replace(*digests))
        with pytest.raises(RefutedCertificate, match="of different shapes"):
            checkers.verify_file(tmp_path / "c.json", [one, turned])
        with pytest.raises(lv.UsageError, match="of different shapes"):
            lv.deviation(lv.load(one), lv.load(turned), lv.InputBox((2, 3), -1.0, 1.0))


def test_a_number_beyond_float64_is_unreadable() -> None:
    """In one certificate of a folder it ended the answers for all others."""
    with pytest.raises(UnreadableCertificate):
        hexadecimal("0x1p+99999")
