"""Balls whose centres have boxes of their own: entries that keep their value, radii of single entries."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import lipverify as lv
from lipverify.analyzers import registry
from lipverify.errors import UsageError
from lipverify.falsify import Search
from lipverify.loading.arguments import Entries, parse_limits, parse_radii
from tests.command import lipverify
from tests.onnx_models import model, node

QUICK = Search(restarts=6, rounds=10)
NAMES = "age,income,height,weight"
STEPS = torch.tensor([0.2, 0.0, 0.1, 0.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def graph() -> lv.Graph:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).eval()
    return lv.extract(net, torch.zeros(2, 4))


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def ball(x: torch.Tensor) -> lv.Ball:
    return lv.Ball(x, 0.2, "linf", (x - STEPS, x + STEPS))


def test_rows_keep_their_boxes(x: torch.Tensor) -> None:
    region = ball(x)
    assert region.own
    for index in range(3):
        one = region[index : index + 1]
        assert torch.equal(one.enclosure().lower[0], region.enclosure().lower[index])
        assert torch.equal(
            one.project(x[:1] + 9),
            region.project(x + 9)[index : index + 1] * 0 + one.enclosure().upper.minimum(one.center + 0.2),
        )
    assert torch.equal(region[torch.tensor([2, 0])].center, x[[2, 0]])
    assert region.to_json()["moving"] == [2, 4]
    assert "2 of 4 entries may change" in region.words()
    assert not lv.Ball(x, 0.2, "linf", (x.amin(0) - 1, x.amax(0) + 1)).own


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("analyzer", ["local", "local-sdp", "local-bab", "lipsdp"])
def test_every_centre_has_the_answer_of_its_own_box(
    analyzer: str, norm: str, graph: lv.Graph, x: torch.Tensor
) -> None:
    """Together and alone the bound is the same; the wider ball's is never smaller; witnesses keep the fixed entries."""
    if registry.resolve(analyzer).reject(graph, lv.Query(lv.Norm.parse(norm), lv.Norm.parse(norm), ball(x))):
        pytest.skip("asks another question")
    together = lv.audit(graph, norm=norm, region=ball(x), analyzers=[analyzer], search=QUICK)
    whole = lv.audit(graph, norm=norm, region=lv.Ball(x, 0.2, "linf"), analyzers=[analyzer], search=QUICK)
    upper = together.rows[0].upper
    assert torch.is_tensor(upper)
    assert "box of its own" in str(together.rows[0].certificate.unchecked)
    for index in (0, 2):
        one = x[index : index + 1]
        alone = lv.audit(
            graph,
            norm=norm,
            region=lv.Ball(one, 0.2, "linf", (one[0] - STEPS, one[0] + STEPS)),
            analyzers=[analyzer],
            search=QUICK,
        )
        assert float(alone.rows[0].upper[0]) == pytest.approx(float(upper[index]), rel=1e-6)
        assert str(alone.rows[0].certificate.rigour) == "checked"
    assert bool((upper <= whole.rows[0].upper * (1 + 1e-9)).all())
    witness = together.lower.witness
    for points in (witness.points, witness.partner):
        if points is not None:
            assert torch.equal(points[..., [1, 3]].expand(3, 2), x[:, [1, 3]])


def test_what_is_typed() -> None:
    assert parse_radii("8/255") == 8 / 255
    assert parse_radii("age=2,income=1/2") == Entries(("age", "income"), ((2.0,), (0.5,)))
    assert parse_radii("2,1/2,3") == Entries(None, ((2.0,), (0.5,), (3.0,)))
    assert parse_limits("0,1") == (0.0, 1.0)
    assert parse_limits("a=0:1,b=-2:3") == Entries(("a", "b"), ((0.0, 1.0), (-2.0, 3.0)))
    assert parse_limits("0:1,-2:3") == Entries(None, ((0.0, 1.0), (-2.0, 3.0)))
    for text in ("a=1,2", "a=", "=1", "a=0", "a=-1", "0,1", "a=nan"):
        with pytest.raises(UsageError):
            parse_radii(text)
    for text in ("a=1:0", "a=0:1,2:3", "a=0", "0:1:2", "a=:", "0:inf"):
        with pytest.raises(UsageError):
            parse_limits(text)
    for names, numbers in (
        (("b",), ((1.0,),)),
        (("a", "0"), ((1.0,), (2.0,))),
        (None, ((1.0,),)),
        (("7",), ((1.0,),)),
    ):
        with pytest.raises(UsageError):
            Entries(names, numbers).table(2, ("a", "c"), "--radius")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    nodes = [node("MatMul", ["x", "a"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "b"], ["y"])]
    place = tmp_path_factory.mktemp("features")
    constants = {"a": rng.normal(size=(4, 6)), "b": rng.normal(size=(6, 3))}
    onnx.save(model(nodes, ["n", 4], constants=constants), place / "net.onnx")
    constants["b"] = constants["b"] + 0.01
    onnx.save(model(nodes, ["n", 4], constants=constants), place / "other.onnx")
    rows = [",".join(map(repr, row.tolist())) for row in rng.normal(size=(2, 4))]
    (place / "d.csv").write_text("\n".join([NAMES, *rows]) + "\n")
    return place


def upper(folder: Path, *rest: str, command: str = "audit") -> list[float]:
    models = ["net.onnx"] if command == "audit" else ["net.onnx", "other.onnx"]
    asked = ("--norm", "linf", "--analyzers", "local") if command == "audit" else ()
    done = lipverify(
        command, *(folder / name for name in models), "--data", folder / "d.csv", "--json", *asked, *rest
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    return document["results"][0]["upper"] if command == "audit" else document["upper"]


@pytest.mark.parametrize("command", ["audit", "deviate"])
def test_features_by_name(command: str, folder: Path) -> None:
    whole = upper(folder, "--radius", "0.5", command=command)
    named = upper(folder, "--radius", "age=0.5,height=0.25", command=command)
    ordered = upper(folder, "--radius", "0.5,1e-300,0.25,1e-300", command=command)
    free = upper(folder, "--radius", "0.5", "--free", "age,height", command=command)
    boxed = upper(folder, "--radius", "0.5", "--box", "age=-9:9,income=-9:9", command=command)
    for a, b, c, d, e in zip(whole, named, ordered, free, boxed, strict=True):
        assert b <= d * (1 + 1e-9) <= a * (1 + 2e-9)
        assert b <= c * (1 + 1e-9)  # features that do not move at all are left out of derivatives
        assert e == pytest.approx(a)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (("--radius", "wage=1"), 'no entry "wage" (positions are 0 to 3; names: age, income'),
        (("--radius", "0.1,0.2,0.3"), "--radius has 3 entries, an input has 4"),
        (("--free", "age"), "--free means nothing here without"),
        (("--radius", "1", "--box", "age=0:1e-9"), "lies outside the input box"),
        (("--radius", "age=1", "--ball", "l2"), "give --ball linf"),
    ],
)
def test_features_that_are_refused(rest: tuple[str, ...], said: str, folder: Path) -> None:
    done = lipverify("audit", folder / "net.onnx", "--data", folder / "d.csv", *rest)
    assert done.returncode == 2
    assert said in done.stderr
    done = lipverify("radius", folder / "net.onnx", "--data", folder / "d.csv", "--box", "age=0:1")
    assert done.returncode == 2
    assert "one box LO,HI for all entries" in done.stderr
