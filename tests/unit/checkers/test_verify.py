"""What `verify` is asked and what it says: expectations, whole reports, certificates of radii and of directions."""

from __future__ import annotations

import builtins
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import checkers, ops
from lipverify.checkers import Expectation
from lipverify.commands.verify import _report
from lipverify.falsify import Search
from lipverify.ir.norm import Norm
from lipverify.robustness import Plan
from tests.command import lipverify
from tests.networks import chain, tensor
from tests.soundness.certified import dense_network, kinked_network

QUICK = Search(seconds=0.05)


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network, and a certificate of a margin over two balls cut by a box."""
    folder = tmp_path_factory.mktemp("ball")
    net = kinked_network(folder / "net.onnx", 0)
    region = lv.Ball(torch.full((2, 4), 0.25), 0.3, "linf", (-0.5, 1.0))
    graph = lv.margin(lv.load(net), 2, 0)
    found = lv.audit(graph, norm="linf", norm_out="l2", region=region, analyzers=["local"], search=QUICK)
    certificate = found.certificates["local"]
    assert str(certificate.rigour) == "checked", certificate.unchecked
    certificate.save(folder / "c.json")
    return net, folder / "c.json"


def test_a_verdict_says_what_it_is_about(ball: tuple[Path, Path]) -> None:
    net, path = ball
    verdict = checkers.verify_file(path, net)
    said = verdict.to_json()
    assert said["model"]["margin"] == [2, 0] or said["model"]["margin"] == (2, 0)
    assert said["model"]["output"] == {"index": 0, "name": "y"}
    assert (said["norm_in"], said["norm_out"]) == ("linf", "l2")
    assert said["region"]["radius"] == 0.3
    for words in (
        "entry 2 minus entry 0 of output 0 ('y')",
        said["model"]["sha256"],
        "radius 0.3",
        "cut by the box",
        "net.onnx",
    ):
        assert words in verdict.claim


@pytest.mark.usefixtures("system_child")
def test_a_verdict_says_on_which_inputs_the_file_was_compared(ball: tuple[Path, Path]) -> None:
    net, path = ball
    first, second, again = (
        json.loads(lipverify("verify", path, "--model", net, "--json", *more).stdout)["agreement"]
        for more in ((), (), ("--seed", "7"))
    )
    assert first["seed"] != second["seed"]
    assert again["seed"] == 7
    assert first["inputs"] >= 7
    assert first["evaluator"].startswith("onnx")
    gone = lipverify("verify", path, "--model", net, "--seconds", "0")
    assert gone.returncode == 4
    assert "the time for checking is over" in gone.stderr


def test_the_one_input_of_a_file_has_its_name(ball: tuple[Path, Path]) -> None:
    """`--input x` was refused with words about a fixed size, whatever the input is called."""
    net, path = ball
    box = (-0.5, 1.0)
    checkers.verify_file(path, net, expected=Expectation(varying=frozenset("x"), fixed={}, box=box))
    for other in (frozenset("y"), frozenset("xh")):
        with pytest.raises(lv.RefutedCertificate, match=r"about inputs \['x'\], not about"):
            checkers.verify_file(path, net, expected=Expectation(varying=other, box=box))


GOOD = {
    "norm_in": "linf",
    "norm_out": "l2",
    "radius": 0.3,
    "output": 0,
    "margin": (2, 0),
    "at_most": 1e6,
    "box": (-0.5, 1.0),
}


def test_what_is_expected_is_accepted(ball: tuple[Path, Path]) -> None:
    net, path = ball
    checkers.verify_file(path, net, expected=Expectation(**GOOD))


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("norm_in", "l2"),
        ("norm_out", "linf"),
        ("radius", 0.2),
        ("output", 1),
        ("margin", (0, 2)),
        ("margin", None),
        ("at_most", 1e-6),
        ("box", (-0.5, 0.9)),
        ("everywhere", True),
    ],
)
def test_another_claim_than_expected_is_refused(field: str, other: Any, ball: tuple[Path, Path]) -> None:
    net, path = ball
    with pytest.raises(lv.RefutedCertificate, match="something else than expected"):
        checkers.verify_file(path, net, expected=Expectation(**{**GOOD, field: other}))


def test_part_of_a_ball_is_no_ball_of_a_radius() -> None:
    """A ball of radius 100 that a box of width 0.002 cuts, or half a ball: who asks for the radius has to name the box."""
    centres, at = np.zeros((1, 2)), np.zeros(2)
    assert Expectation(radius=1.0).other_box(centres, (at - 1.0, at + 1.0)) is None
    for ends in (
        (at - 0.001, at + 0.001),
        (at - 100.0, at + 0.5),
        (np.array([-9.0, 0.0]), np.array([9.0, 9.0])),
    ):
        assert "cuts balls of that radius" in str(Expectation(radius=1.0).other_box(centres, ends))
        assert Expectation(norm_in="l2").other_box(centres, ends) is None
    assert Expectation(radius=1.0, box=(-0.001, 0.001)).other_box(centres, (at - 0.001, at + 0.001)) is None


def test_a_whole_space_is_no_ball(tmp_path: Path) -> None:
    net = dense_network(tmp_path / "net.onnx", 0)
    lv.audit(lv.load(net), search=QUICK).certificates["product"].save(tmp_path / "c.json")
    for expected in (Expectation(radius=0.1), Expectation(box=(0, 1))):
        with pytest.raises(lv.RefutedCertificate):
            checkers.verify_file(tmp_path / "c.json", net, expected=expected)
    checkers.verify_file(tmp_path / "c.json", net, expected=Expectation(everywhere=True, at_most=1e6))


def test_only_bytes_that_a_digest_covers_are_read(
    ball: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `open` taken away nothing is missing once certificate, arrays and model are there."""
    net, path = ball
    document = json.loads(path.read_text())
    certificate, side = path.read_bytes(), path.with_name(document["sidecar"]["name"]).read_bytes()
    model = net.read_bytes()
    checkers.verify_file(path, net)  # imports what it needs

    def nothing(*arguments: Any, **more: Any) -> Any:
        raise AssertionError(f"{arguments[0]} was opened")

    monkeypatch.setattr(builtins, "open", nothing)
    monkeypatch.setattr(os, "open", nothing)
    monkeypatch.setattr(Path, "open", nothing)
    verdict = checkers.check(
        lambda: certificate, lambda name: side, lambda: checkers.model_of_bytes("net.onnx", model)
    )
    assert verdict.binding == "file"


def test_a_report_is_verified_as_a_whole(tmp_path: Path) -> None:
    net, out = dense_network(tmp_path / "net.onnx", 0), tmp_path / "out"
    assert (
        lipverify(
            "audit", net, "--analyzers", "product,lipsdp-fast", "--budget", "60s", "--out", out
        ).returncode
        == 0
    )
    done = lipverify("verify", out, "--model", net)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["valid", "valid", "carried"]
    changed = out / "certificates" / "product.json"
    text = changed.read_text()
    changed.write_text(text.replace('"rigour": "checked"', '"rigour": "real"'))
    done = lipverify("verify", out, "--model", net, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 4
    assert document["valid"] is False
    assert [c["exit_code"] for c in document["certificates"]] == [0, 4]
    changed.write_text(text.replace('"claims": [', '"claims": [0, '))
    assert lipverify("verify", out, "--model", net).returncode == 3
    changed.write_text("{")
    assert lipverify("verify", out, "--model", net).returncode == 7
    # A claim that is another one than expected outweighs what is unreadable.
    assert lipverify("verify", out, "--model", net, "--norm", "linf").returncode == 3


def test_a_folder_answers_for_all_that_was_asked(tmp_path: Path) -> None:
    """Certificates that are cut off, and models that none is about, are no part of a "valid"."""
    net, other = (dense_network(tmp_path / f"{k}.onnx", k) for k in range(2))
    folder = tmp_path / "folder"
    folder.mkdir()
    lv.audit(lv.load(net), analyzers=["product"], search=QUICK).certificates["product"].save(
        folder / "a.json"
    )
    (folder / "b.json").write_text((folder / "a.json").read_text()[:-40])
    (folder / "c.json").write_text('{"schema": "lipverify.derivation/1"}')
    (folder / "d.json").write_text('{"schema": "another"}')
    done = lipverify("verify", folder, "--model", net, "--model", other, "--json")
    told = {Path(c["certificate"]).name: c["exit_code"] for c in json.loads(done.stdout)["certificates"]}
    assert told == {"a.json": 0, "b.json": 7, "c.json": 7, "1.onnx": 4}
    assert done.returncode == 7


def test_no_certificate_of_a_folder_is_passed_over(tmp_path: Path) -> None:
    """Beside `certificates`, with another spelling, in a list, told twice what it is, or named by a result and taken away."""
    net = dense_network(tmp_path / "net.onnx", 0)
    inside = tmp_path / "folder" / "certificates"
    inside.mkdir(parents=True)
    certificate = inside / "a.json"
    lv.audit(lv.load(net), analyzers=["product"], search=QUICK).certificates["product"].save(certificate)
    text = certificate.read_text().rstrip()
    for name, content in {
        "b.JSON": text,
        "c.json": text.replace("lipverify.certificate/2", "lipverify.Certificate/2"),
        "d.json": f"[{text}]",
        "e.json": text[:-1] + ', "schema": "another"}',
        "f.json": '{"schema": "lipverify.audit/1", "rows": [{"certificate": "certificates/gone.json"}]}',
    }.items():
        (inside.parent / name).write_text(content)
    elsewhere = tmp_path / "elsewhere.json"
    named = [
        "certificates/sub/deep.json",
        "../above.json",
        str(elsewhere),
        "certificates/other.cert",
        "n" * 5000,
    ]
    (inside / "sub").mkdir()
    for path in (inside / "sub" / "deep.json", tmp_path / "above.json", elsewhere, inside / "other.cert"):
        path.write_text("{}")
    rows = [{"certificate": name} for name in [*named, "certificates/./a.json"]]
    (inside.parent / "g.json").write_text(json.dumps({"schema": "lipverify.audit/1", "rows": rows}))
    answers, _ = _report(inside.parent, [net], Expectation(), False, 60.0, 0)
    told = {Path(answer.name).name: answer.code for answer in answers}
    (long,) = (name for name in told if name.startswith("nnn"))
    assert told.pop(long) == 4
    there = {"a.json": 0, "b.JSON": 0, "c.json": 7, "d.json": 7, "e.json": 7, "gone.json": 4}
    assert told == there | dict.fromkeys(("deep.json", "above.json", "elsewhere.json", "other.cert"), 4)


def test_a_certificate_that_says_itself_that_it_is_not_proved(tmp_path: Path) -> None:
    net = dense_network(tmp_path / "net.onnx", 0)
    lv.audit(lv.load(net), search=QUICK).certificates["product"].save(tmp_path / "c.json")
    text = (tmp_path / "c.json").read_text()
    (tmp_path / "c.json").write_text(text.replace('"rigour": "checked"', '"rigour": "real"'))
    done = lipverify("verify", tmp_path / "c.json", "--model", net, "--json")
    assert done.returncode == 4
    assert "nothing to prove" in json.loads(done.stdout)["reason"]


# -- radii and directions


@pytest.mark.parametrize(
    ("norm", "method"), [("l2", "auto"), ("linf", "local"), ("l2", "global"), ("linf", "crown")]
)
def test_radii_have_a_certificate(norm: str, method: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    graph = chain([tensor(rng, 8, 4), tensor(rng, 8, 8), tensor(rng, 3, 8)], ops.ReLU())
    x = torch.tensor(rng.standard_normal((3, 4)))
    found = lv.radii(graph, x, plan=Plan(Norm(norm), method, (-5.0, 5.0), looks=6, shells=2, attack=None))
    there = [r for r in found.records if r.radius > 0]
    assert there
    assert found.rigour == "checked", [r.unchecked for r in there]
    assert found.issued is not None
    found.issued.save(tmp_path / "radii.json")
    verdict = lv.verify(tmp_path / "radii.json", graph)
    assert verdict.fields["radius"] == [r.radius for r in there]
    least = min(r.radius for r in there)
    lv.verify(tmp_path / "radii.json", graph, expected=Expectation(radius=least, norm_in=norm))
    with pytest.raises(lv.RefutedCertificate):
        lv.verify(tmp_path / "radii.json", graph, expected=Expectation(radius=least * 1.001))
    for point in found.to_json()["points"]:
        assert (point["certificate"] is not None) == (point["radius"] > 0)


def test_a_larger_radius_or_another_label_has_no_proof(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    graph = chain([tensor(rng, 8, 4), tensor(rng, 3, 8)], ops.ReLU())
    x = torch.tensor(rng.standard_normal((2, 4)))
    found = lv.radii(graph, x, plan=Plan(Norm.LINF, "crown", attack=None))
    assert found.issued is not None
    model = lv.certificates.model_of(graph)
    files = found.issued.files("c.json")
    text = files["c.json"].decode()
    claim = json.loads(text)["claim"]

    def said(change: dict[str, Any], margin: list[int] | None = None) -> bytes:
        document = json.loads(text)
        document["claim"] |= change
        if margin is not None:  # a single number, about which no fact has to be named
            document["models"][0]["margin"] = margin
            document["proof"] |= {"steps": [], "claims": []}
        from lipverify.checkers.claims import About, Radius

        other, known = document["claim"], document["models"][0]
        pair = None if margin is None else (margin[0], margin[1])
        about = About(known["sha256"], known["graph_digest"], 0, known["output"]["name"], pair)
        radius = Radius(
            other["norm"], other["centres"], other["box"], tuple(other["labels"]), tuple(other["radius"])
        )
        other["statement"] = radius.statement(about)
        return json.dumps(document).encode()

    larger = [r * 1.01 for r in claim["radius"]]
    from lipverify.checkers.claims import inward

    written = {
        "radius": larger,
        "radius_hex": [r.hex() for r in larger],
        "radius_decimal": [inward(r) for r in larger],
    }
    for change in (written, {"labels": [(label + 1) % 3 for label in claim["labels"]]}):
        data = said(change)
        with pytest.raises(lv.RefutedCertificate):
            checkers.check(lambda data=data: data, files.__getitem__, lambda: model)
    vacuous = written | {"labels": [0] * len(larger)}
    with pytest.raises(lv.RefutedCertificate, match="a single number"):
        checkers.check(lambda: said(vacuous, [0, 1]), files.__getitem__, lambda: model)
    assert (
        checkers.check(lambda: said({}), files.__getitem__, lambda: model).fields["labels"] == claim["labels"]
    )


def test_directions_have_a_certificate() -> None:
    rng = np.random.default_rng(0)
    first, last = tensor(rng, 6, 3), tensor(rng, 1, 6).abs()
    first[:, 0] = first[:, 0].abs()
    graph = chain([first, last], ops.Tanh())
    found = lv.monotone(graph, (-1.0, 1.0), budget=2)
    risen = found.findings[0]
    assert str(risen.verdict) == "increasing"
    assert risen.checked, risen.unchecked
    assert found.issued is not None
    verdict = lv.verify(found.issued, graph)
    assert {"output": 0, "input": 0, "sign": 1} in verdict.to_json()["entries"]
    document = json.loads(json.dumps(found.issued.document))
    document["claim"]["entries"][0]["sign"] = -1
    document["claim"]["statement"] = document["claim"]["statement"].replace("never falls", "never rises", 1)
    other = type(found.issued)(document, found.issued.arrays)
    with pytest.raises(lv.RefutedCertificate):
        lv.verify(other, graph)
