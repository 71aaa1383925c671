"""`verify DIR` holds the numbers of a report against its certificates: a folder says nothing better than they prove."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from lipverify.commands.headlines import READERS, overstated
from tests.command import lipverify
from tests.onnx_models import model, node, random
from tests.processes import Done
from tests.soundness.certified import kinked_network


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind, of one or two networks."""
    folder = tmp_path_factory.mktemp("reports")
    net, other = kinked_network(folder / "net.onnx", 0), kinked_network(folder / "other.onnx", 1)
    rising = folder / "rising.onnx"
    weights = {"w": abs(random(4, 3)), "v": abs(random(3, 1))}
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["y"])]
    rising.write_bytes(model(nodes, [1, 4], constants=weights).SerializeToString())
    two = model([node("Relu", ["x"], ["r"]), node("Mul", ["r", "z"], ["y"])], [1, 4])
    two.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 1]))
    (folder / "two.onnx").write_bytes(two.SerializeToString())
    np.savez(folder / "x.npz", x=np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32))
    data = ("--data", folder / "x.npz", "--norm", "linf")
    product = ("--analyzers", "product")
    for name, line in {
        "audit": ("audit", net, "--analyzers", "product,lipsdp"),
        "balls": ("audit", net, "--analyzers", "local", *data, "--radius", "0.05"),
        "cut": ("audit", net, "--analyzers", "local", *data, "--radius", "0.05", "--box=-4,4"),
        "radius": ("radius", net, *data, "--method", "crown"),
        "compare": ("compare", net, other, *data, "--radius", "0.05,0.5", *product),
        "deviate": ("deviate", net, other, "--box=-1,1"),
        "around": ("deviate", net, other, "--data", folder / "x.npz", "--radius", "0.05"),
        "copies": ("compare", net, other, "--deviate", "--box=-1,1", *product),
        "monotone": ("audit", rising, "--monotone", "all", "--box=-1,1"),
        "convex": ("audit", rising, "--convex"),
        "thin": ("audit", rising, "--monotone", "all", "--box=-1:1,-1:1,-1:1,-0.001:0.001"),
        "thinly": ("deviate", net, other, "--box=-1:1,-1:1,-1:1,-0.001:0.001"),
        "thincut": (
            "audit",
            net,
            "--analyzers",
            "local",
            *data,
            "--radius",
            "0.05",
            "--box=-4:4,-4:4,-4:4,-3:3",
        ),
        "fixed": ("audit", folder / "two.onnx", "--input", "x", "--constant", "z=0.5", *product),
    }.items():
        done = lipverify(*line, "--out", folder / name, "-q")
        assert done.returncode == 0, done.stderr
    return {path.stem: path for path in folder.iterdir()}


MODELS = {"fixed": ("two",), "monotone": ("rising",), "convex": ("rising",), "compare": ("net", "other"),
          "deviate": ("net", "other"), "around": ("net", "other"), "copies": ("net", "other"),
          "thin": ("rising",), "thinly": ("net", "other")}  # fmt: skip


def verified(reports: dict[str, Path], kind: str, folder: Path, *words: str) -> Done:
    files = [part for name in MODELS.get(kind, ("net",)) for part in ("--model", str(reports[name]))]
    return lipverify("verify", folder, *files, *words)


def compared(document: Any, model: int = 0, query: int = 0) -> dict[str, Any]:
    found = document["models"][model]["audits"][query]
    assert isinstance(found, dict)
    return found


def exchanged(first: dict[str, Any], second: dict[str, Any]) -> None:
    """What the second says of itself, said of the first."""
    taken = {key: second["results"][0][key] for key in ("upper", "certificate")}
    first["results"][0].update(taken)
    first["best"].update(upper=taken["upper"])


def row(document: Any, key: str = "results") -> dict[str, Any]:
    found = document[key][0]
    assert found["rigour"] == "checked"
    assert isinstance(found, dict)
    return found


CHANGES: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a smaller constant": ("audit", lambda d: row(d).update(upper=0.01), "it says 0.01 where"),
    "a constant for one of three balls": ("balls", lambda d: row(d)["upper"].pop(), "it says"),
    "a smaller one of three": ("balls", lambda d: row(d)["upper"].__setitem__(1, 1e-3), "it says"),
    "no number": ("audit", lambda d: row(d).update(upper=None), "it says None"),
    "a row without a certificate": ("audit", lambda d: row(d).update(certificate=None), "names no certificate"),
    "another norm": ("audit", lambda d: d["query"].update(norm_out="linf"), "its query is about linf"),
    "a better best": ("audit", lambda d: d["best"].update(upper=0.01), "that of no row"),
    "a larger radius": ("radius", lambda d: row(d, "points").update(radius=99.0), "it says radius 99.0"),
    "another label": ("radius", lambda d: row(d, "points").update(label=7), "with label 7"),
    "a point left out": ("radius", lambda d: d["points"].pop(), "its points are not those"),
    "a radius that is none": ("radius", lambda d: row(d, "points").update(radius="0.1"), "it says radius '0.1'"),
    "a smaller constant, called the proved one of nothing": (
        "radius", lambda d: row(d, "points").update(rigour="real", proved=9.0), "it says radius 9.0",
    ),
    "another number for an input": ("fixed", lambda d: d["model"]["reading"]["fixed"][0].update(value=9.0), "its model is"),
    "another input fixed": ("fixed", lambda d: d["model"]["reading"]["fixed"][0].update(name="x"), "its model is"),
    "no input fixed": ("fixed", lambda d: d["model"].pop("reading"), "its model is"),
    "no rows and a best": ("audit", lambda d: d.update(results=[], best={"analyzer": "x", "upper": 1e-3}), "that of no row"),
    "the constant of another model": ("compare", lambda d: exchanged(compared(d), compared(d, 1)), "its model is"),
    "the constant of a smaller ball": ("compare", lambda d: exchanged(compared(d, 0, 1), compared(d)), "its region is"),
    "another query": ("compare", lambda d: d["queries"][0].update(norm_in="l2"), "its query is about l2"),
    "a query that is none": ("compare", lambda d: compared(d).update(query=7), "about no query"),
    "names exchanged": (
        "compare", lambda d: [m.update(name=n) for m, n in zip(d["models"], ["other.onnx", "net.onnx"], strict=True)],
        "it calls another model",
    ),
    "a larger ball": ("balls", lambda d: d["query"]["region"].update(radius=5.0), "its region is"),
    "everywhere": ("balls", lambda d: d["query"].update(region={"kind": "everywhere"}), "its region is"),
    "another box": ("cut", lambda d: d["query"]["region"].update(box=[-9.0, 9.0]), "its region is"),
    "no box": ("cut", lambda d: d["query"]["region"].pop("box"), "its region is"),
    "another file": ("audit", lambda d: d["model"].update(sha256="0" * 64), "its model is"),
    "another output": ("audit", lambda d: d["model"].update(output={"index": 1, "name": "z"}), "its model is"),
    "a difference of two entries": ("audit", lambda d: d["model"].update(margin=[0, 1]), "its model is"),
    "radii in another norm": ("radius", lambda d: d.update(norm="l1"), "its query is about l1"),
    "radii in a box": ("radius", lambda d: d.update(box=[0.0, 1.0]), "its region is"),
    "radii of another file": ("radius", lambda d: d["model"].update(sha256="0" * 64), "its model is"),
    "a better curve": (
        "radius", lambda d: d["curve"].update(certified_accuracy=[1.0] * len(d["curve"]["radii"])),
        "are certified at",
    ),
    "a better share": (
        "radius", lambda d: d.update(robust_accuracy={"1": {"radius": 50.0, "certified": 1.0}}),
        "are certified at",
    ),
    "a smaller deviation": ("deviate", lambda d: d.update(upper=1e-3), "it says 0.001"),
    "no certificate": ("deviate", lambda d: d.update(certificate=None, upper=1e-3), "names no certificate"),
    "a larger box": ("deviate", lambda d: d["query"]["region"].update(low=-100.0, high=100.0), "its region is"),
    "the other direction": ("deviate", lambda d: d["models"].reverse(), "its model is"),
    "one model": ("deviate", lambda d: d["models"].pop(), "about 1 models"),
    "another norm of the difference": ("deviate", lambda d: d["query"].update(norm_out="l2"), "its query is about l2"),
    "another sentence": (
        "deviate", lambda d: d.update(proved=["|f(x) - g(x)|_linf <= 0.001 everywhere"]),
        "no certificate here does",
    ),
    "more labels kept": ("around", lambda d: d["kept"].update(checked=1.5), "of the labels are kept"),
    "a larger ball of a deviation": ("around", lambda d: d["query"]["region"].update(radius=1.0), "its region is"),
    "a copy without a certificate": (
        "copies", lambda d: row(d["deviations"], "rows").update(certificate=None),
        "names no certificate",
    ),
    "the original as the copy": ("copies", lambda d: d["deviations"].update(original="other.onnx"), "its model is"),
    "a deviation as a constant": (
        "copies", lambda d: compared(d)["results"][0].update(certificate=row(d["deviations"], "rows")["certificate"]),
        "about something else",
    ),
    "falls": ("monotone", lambda d: row(d, "features").update(verdict="decreasing"), "does not say so"),
    "another feature": ("monotone", lambda d: row(d, "features").update(feature=9), "does not say so"),
    "rises in a larger box": ("monotone", lambda d: d["query"]["region"].update(low=[-2.0] * 4), "its region is"),
    "concave": ("convex", lambda d: row(d, "outputs").update(verdict="concave"), "does not say so"),
    "signs without a certificate": (
        "monotone", lambda d: (d.pop("certificate"), row(d, "features").update(verdict="decreasing")), "names no certificate",
    ),
    "a curvature without a certificate": (
        "convex", lambda d: d.update(certificate=None), "names no certificate",
    ),
    "another word for falls": ("monotone", lambda d: row(d, "features").update(verdict="strictly decreasing"), "does not say so"),
    "another word for concave": ("convex", lambda d: row(d, "outputs").update(verdict="Concave"), "does not say so"),
    "ends beside a larger box": (
        "deviate", lambda d: d["query"]["region"].update(ends=[-1.0, 1.0], low=-100.0, high=100.0), "its region is",
    ),
    "ends beside another cut": ("cut", lambda d: d["query"]["region"].update(ends=[-4.0, 4.0], box=[-9.0, 9.0]), "its region is"),
    "a point checked in one place": (
        "radius", lambda d: row(d, "points").update(rigour="real", radius=9.0, proved=None), "not in the other",
    ),
    "points that are not checked": (
        "radius", lambda d: (row(d, "points").update(rigour="real"), d["points"][0].pop("checked")), "where some of its points",
    ),
    "a sentence cut inside its number": (
        "around", lambda d: d.update(proved=[d["proved"][0][:24]]), "no certificate here does",
    ),
    "a need without a certificate": (
        "around", lambda d: d["needs"][0].update(rigour="checked", upper=[1e-3] * 3), "names no certificate",
    ),
    "a deviation called another question": ("around", lambda d: d.update(question="Deviation", upper=[1e-3] * 3), "it says"),
    "a word for checked": ("audit", lambda d: row(d).update(rigour="Checked", upper=1e-3), "is no rigour"),
    "a best that is a list": ("audit", lambda d: d.update(best=[{"upper": 1e-3}]), "no table"),
    "two rows of one method": (
        "audit", lambda d: d["results"].append({**row(d), "rigour": "real", "upper": 1e-3}), "of one analyzer",
    ),
    "a thin box called a whole one": (
        "thin", lambda d: d["query"]["region"].update(low=[-1.0] * 4, high=[1.0] * 4), "its region is",
    ),
    "a thin box without its ends": (
        "thinly", lambda d: [d["query"]["region"].pop(key) for key in ("lows", "highs")], "its region is",
    ),
    "a thin cut without its ends": (
        "thincut", lambda d: [d["query"]["region"].pop(key) for key in ("lows", "highs")], "its region is",
    ),
    "a decimal read as hexadecimal": (
        "fixed", lambda d: d["model"]["reading"]["fixed"][0].update(value="0.8"), "its model is",
    ),
    "a kind of document that is not known": ("audit", lambda d: d.update(schema="lipverify.other/1"), "something is called"),
    "a row where none is looked for": (
        "audit", lambda d: d.update(more=[{"rigour": "checked", "upper": 1e-3}]),
        "something is called",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def proved(reports: dict[str, Path]) -> dict[str, Any]:
    """Kind of report -> certificate -> the document of its verdict; every report as it was written is carried."""
    found = {}
    for kind in dict.fromkeys(kind for kind, _, _ in CHANGES.values()):
        done = verified(reports, kind, reports[kind], "--json")
        assert done.returncode == 0, (kind, done.stdout)
        told = json.loads(done.stdout)
        assert [Path(one["result"]).name for one in told["results"]] == ["result.json"], kind
        assert "checked" in (reports[kind] / "result.json").read_text()
        found[kind] = {f"certificates/{Path(one['certificate']).name}": one for one in told["certificates"]}
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_numbers_that_no_certificate_carries(
    reports: dict[str, Path], proved: dict[str, Any], change: str
) -> None:
    kind, edit, said = CHANGES[change]
    document = json.loads((reports[kind] / "result.json").read_text())
    assert not list(overstated(document, proved[kind]))
    edit(document)
    found = list(overstated(document, proved[kind]))
    assert any(said in reason for reason in found), found


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (
            {"schema": "lipverify.compare-radii/1", "models": [{"rigour": "checked", "radius": [99.0]}]},
            "of one model",
        ),
        (
            {"_type": "https://in-toto.io/Statement/v1", "predicate": {"results": [{"rigour": "checked"}]}},
            "keep it elsewhere",
        ),
    ],
)
def test_what_has_no_certificates_of_its_own_is_not_carried_by_others(document: Any, said: str) -> None:
    (reason,) = overstated(document, {"certificates/a.json": {"upper": 1.0}})
    assert said in reason


def test_a_certificate_by_an_absolute_path_is_none_of_the_folder(
    reports: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(reports["audit"], tmp_path / "report")
    result = tmp_path / "report" / "result.json"
    document = json.loads(result.read_text())
    row(document).update(upper=0.01, certificate=str(tmp_path / "report" / "certificates" / "lipsdp.json"))
    result.write_text(json.dumps(document))
    done = verified(reports, "audit", tmp_path / "report")
    assert done.returncode == 4
    assert "carried" not in done.stdout


def test_a_report_says_what_its_numbers_are_held_against(reports: dict[str, Path], tmp_path: Path) -> None:
    done = verified(reports, "audit", reports["audit"])
    assert done.returncode == 0
    assert (
        "calls nothing `checked` that these certificates do not prove; not compared: lower bounds"
        in done.stdout
    )
    shutil.copytree(reports["audit"], tmp_path / "report")
    result = tmp_path / "report" / "result.json"
    document = json.loads(result.read_text())
    row(document).update(upper=0.01)
    result.write_text(json.dumps(document))
    done = verified(reports, "audit", tmp_path / "report", "--json")
    assert done.returncode == 3
    told = json.loads(done.stdout)
    assert not told["results"]
    (refused,) = [one for one in told["certificates"] if one["exit_code"]]
    assert refused["certificate"].endswith("result.json")
    assert "it says 0.01 where" in refused["reason"]


def test_a_report_whose_certificates_are_gone_is_not_called_carried(
    reports: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(reports["audit"], tmp_path / "report")
    (tmp_path / "report" / "certificates" / "lipsdp.json").unlink()
    done = verified(reports, "audit", tmp_path / "report")
    assert done.returncode == 4
    assert "carried" not in done.stdout
    shutil.rmtree(tmp_path / "report" / "certificates")
    done = verified(reports, "audit", tmp_path / "report")
    assert done.returncode == 4
    named = (
        "holds no certificates, and its results name 2: certificates/lipsdp.json, certificates/product.json"
    )
    assert named in done.stderr
    shutil.copytree(reports["audit"], tmp_path / "arrays")
    for file in (tmp_path / "arrays" / "certificates").glob("*.safetensors"):
        file.unlink()
    done = verified(reports, "audit", tmp_path / "arrays")
    assert done.returncode == 7
    assert "a file cannot be read (No such file or directory): 'lipsdp.safetensors'" in done.stdout
    assert "carried" not in done.stdout


def test_the_files_to_give_are_named(reports: dict[str, Path], tmp_path: Path) -> None:
    for about in (reports["audit"], reports["audit"] / "certificates" / "product.json"):
        done = lipverify("verify", about)
        assert done.returncode == 2
        assert "add --model net.onnx" in done.stderr
    (tmp_path / "c.json").write_text("{}")
    assert "add --model FILE" in lipverify("verify", tmp_path / "c.json").stderr
    assert "does not exist" in lipverify("verify", tmp_path / "away.json").stderr


MODEL = {
    "sha256": "a",
    "graph_digest": None,
    "output": {"index": 0, "name": "y"},
    "margin": None,
    "name": "net.onnx",
}
CONSTANT = {"upper": 2.0, "norm_in": "l2", "norm_out": "l2", "region": {"kind": "everywhere"}, "model": MODEL}


def test_whatever_stands_in_a_result_is_no_error() -> None:
    proved = {"certificates/a.json": CONSTANT}
    query = {"norm_in": "l2", "norm_out": "l2", "region": {"kind": "everywhere"}}
    for upper, said in ((None, 1), ("3", 1), ([], 1), ({}, 1), ([[3.0]], 1), (True, 1), (2.0, 0), (3, 0)):
        results = [{"rigour": "checked", "certificate": "certificates/a.json", "upper": upper}, 1, None]
        document = {
            "schema": "lipverify.audit/1",
            "model": {"sha256": "a"},
            "query": query,
            "results": results,
        }
        assert len(list(overstated(document, proved))) == said
    bent: list[Any] = [
        None,
        3,
        "x",
        [],
        {},
        [3],
        [None],
        [[]],
        [{}],
        {"a": 3},
        {"kind": "ball"},
        [{"certificate": 4}],
        True,
    ]
    keys = ("models", "model", "query", "queries", "results", "points", "best", "curve", "robust_accuracy", "deviations", "needs",
            "proved", "kept", "features", "outputs", "answers", "certificate", "region", "norm", "box")  # fmt: skip
    for schema in (*READERS, "other", None):
        for key in keys:
            for value in bent:
                list(overstated({"schema": schema, key: value}, proved))
                filled = {
                    other: [{"rigour": "checked", "certificate": "certificates/a.json"}] for other in keys
                }
                assert list(overstated({**filled, "schema": schema, key: value}, proved))
    results = [{"rigour": "checked", "certificate": "certificates/a.json", "upper": 2.0}]
    for key in ("sha256", "output", "margin", "reading", "beside", "graph_digest"):
        for value in bent:
            audit = {"model": {"sha256": "a", key: value}, "query": query, "results": results}
            list(overstated({"schema": "lipverify.audit/1", **audit}, proved))
            compared = {
                "queries": [query],
                "models": [{"name": "net.onnx", **audit, "audits": [{**audit, "query": 0}]}],
            }
            list(overstated({"schema": "lipverify.compare/1", **compared}, proved))


def test_files_of_one_name_in_two_folders_are_no_contradiction() -> None:
    models = [
        {"name": "net.onnx", "model": {"sha256": "a"}},
        {"name": "copy/net.onnx", "model": {"sha256": "b"}},
    ]
    document = {"schema": "lipverify.compare/1", "models": models}
    assert not list(overstated(document, {"certificates/a.json": CONSTANT}))
    second = {**CONSTANT, "model": {**MODEL, "sha256": "b"}}
    assert not list(overstated(document, {"certificates/a.json": CONSTANT, "certificates/b.json": second}))
