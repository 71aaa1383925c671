"""The package in examples/plugin adds an operator, an analyzer and a question without touching lipverify."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.processes import run

PLUGIN = Path(__file__).resolve().parents[2] / "examples" / "plugin"

USE = """
import json, torch
import lipverify as lv
from lipverify.analyzers import registry
from lipverify_example.compressed import compressed

torch.manual_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)
    def forward(self, x):
        return self.last(compressed(self.first(x)))
net = Net().eval()
graph = lv.extract(net, torch.zeros(2, 4))
found = lv.audit(graph, analyzers=["frobenius", "product", "lipsdp"], budget=4)
x = torch.randn(2, 4)
local = lv.audit(graph, region=lv.Ball(x, 0.5), analyzers=["local", "frobenius"], budget=4)
frobenius = 1.0
for layer in (net.first, net.last):
    frobenius *= float(layer.weight.double().norm())
print(json.dumps({
    "names": registry.names(),
    "operators": graph.operators(),
    "upper": {row.analyzer: row.upper for row in found.rows},
    "rigour": [str(row.certificate.rigour) for row in (*found.rows, local.rows[0])],
    "proved": lv.verify(found.certificates["frobenius"], graph).upper,
    "lower": found.lower.value,
    "frobenius": frobenius,
    "local": local.rows[0].upper.tolist(),
    "refused": local.rows[1].refused,
}))
"""
ASK = """
import json, sys
from pathlib import Path
import lipverify as lv
from lipverify.cli import main
from lipverify_example.movement import Movement
graph = lv.load("zoo:digits-relu-mlp")
answer = lv.ask(Movement(graph, 0.5))
out = Path(sys.argv[1])
sys.argv = ["lipverify", "movement", "zoo:digits-relu-mlp", "--by", "1/2", "--out", str(out), "--json"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
sys.argv = ["lipverify", "verify", str(out / "certificates" / "movement-constant.json"), "--model", "zoo:digits-relu-mlp"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
FOUND = """
from lipverify.analyzers import registry
from lipverify.commands.questions import verbs
from lipverify_example.compressed import Compressed
print(*{"frobenius"} & set(registry.names()), *{"movement"} & set(verbs()), Compressed.kind())
"""
CONFORM = """
from lipverify_example.compressed import Compressed
from lipverify.testing import check_operator
check_operator(Compressed(), [(8,)])
check_operator(Compressed(), [(2, 3)])
print("conforms")
"""
WITHOUT = """
import torch
import lipverify as lv
@torch.library.custom_op("lipverify_example::compressed", mutates_args=())
def compressed(x: torch.Tensor) -> torch.Tensor:
    return torch.asinh(x)
compressed.register_fake(torch.empty_like)
class Net(torch.nn.Module):
    def forward(self, x):
        return compressed(x)
try:
    lv.extract(Net().eval(), torch.zeros(2, 4))
except lv.UnsupportedModel as error:
    assert "compressed" in str(error), error
    print("refused")
"""


def installed(folder: Path) -> Path:
    """The plug-in with the metadata that an installer writes; needs no installer and no network."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    package = project["name"].replace("-", "_")
    shutil.copytree(PLUGIN / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    metadata = folder / f"{package}-{project['version']}.dist-info"
    metadata.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(head, encoding="utf-8")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items()), ""]
    (metadata / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def output(program: str, folder: Path | None, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": "" if folder is None else str(folder)}
    done = run("-c", program, *arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_operator_and_analyzer_are_found_and_answer(tmp_path: Path) -> None:
    found = json.loads(output(USE, installed(tmp_path)))
    assert "frobenius" in found["names"]
    assert found["operators"] == {"Compressed": 1, "Linear": 2}
    upper = found["upper"]
    assert found["lower"] <= upper["lipsdp"] <= upper["product"] <= upper["frobenius"]
    assert upper["frobenius"] == pytest.approx(found["frobenius"], rel=1e-12)
    assert max(found["local"]) <= upper["product"]
    assert "whole input space only" in found["refused"]
    # The operator says what it is in the checker's words, and the analyzer's evidence writes its own proof.
    assert found["rigour"] == ["checked"] * 4
    assert found["proved"] == upper["frobenius"]


def test_the_question_has_a_command_and_a_certificate(tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = output(ASK, installed(tmp_path), str(out))
    document, _, verified = said.rpartition("valid: ")
    found = json.loads(document)
    assert found["question"] == "movement"
    assert found["rigour"] == "checked"
    assert found["unchecked"] is None
    assert 0.5 * found["steepest"] <= found["upper"]
    assert (out / "report.html").read_text(encoding="utf-8").count("moves by at most")
    (need,) = found["needs"]
    certificate = json.loads((out / need["certificate"]).read_text(encoding="utf-8"))
    assert 0.5 * certificate["claim"]["upper"] <= found["upper"]
    assert found["proved"] == [certificate["claim"]["statement"]]
    assert "for all inputs x, y" in verified, verified


def test_the_operator_passes_the_conformance_suite(tmp_path: Path) -> None:
    assert output(CONFORM, installed(tmp_path)) == "conforms\n"


def test_without_the_package_its_operator_is_refused_by_name() -> None:
    assert output(WITHOUT, None) == "refused\n"


def test_the_plug_in_builds_with_pip(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="the build backend of the plug-in")
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(PLUGIN, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
    ]
    done = subprocess.run(
        [*command, "--target", str(target), str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert output(FOUND, target) == "frobenius movement Compressed\n"
