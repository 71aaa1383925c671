"""The public interface by name: other people's scripts depend on these fields, commands and exit codes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify import errors
from lipverify.commands.start import inspect_document

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"inspect", "audit", "radius", "compare", "verify", "analyzers", "doctor"}
AUDIT_OPTIONS = {
    *("norm", "norm_out", "analyzers", "data", "radius", "ball", "limit", "box", "output", "margin"),
    *("budget", "device", "seed", "out", "as_json"),
}
RADIUS_OPTIONS = {"data", "norm", "method", "limit", "budget", "out", "as_json"}
EXIT_CODES = {
    "InternalError": 1,
    "UsageError": 2,
    "InvalidFile": 2,
    "Refuted": 3,
    "RefutedCertificate": 3,
    "Undecided": 4,
    "UnsupportedModel": 5,
    "UnsafeInput": 6,
    "UnreadableCertificate": 7,
}
MODEL = {
    *("path", "sha256", "graph_digest", "format", "input_shape", "output_shape", "parameters", "operators"),
    "import_check",
}


@pytest.fixture(scope="module")
def graph() -> lv.Graph:
    torch.manual_seed(0)
    return lv.extract(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval(), torch.zeros(2, 3))


@pytest.fixture(scope="module")
def audit(graph: lv.Graph) -> lv.Audit:
    return lv.audit(graph, norm="l2", analyzers=["product", "lipsdp", "local"], budget=5)


def parameters(verb: str) -> set[str]:
    """The names of a command's parameters."""
    from typer.main import get_command

    from lipverify.cli import app
    from lipverify.commands.questions import Later, verbs

    found = Later(verb).built() if verb in verbs() else get_command(app).commands[verb]  # type: ignore[attr-defined]
    return {parameter.name for parameter in found.params}


def test_commands_and_options() -> None:
    for verb in COMMANDS:
        assert parameters(verb), verb
    assert parameters("audit") >= {"model", *AUDIT_OPTIONS}
    assert parameters("compare") >= {"models", *AUDIT_OPTIONS}
    assert parameters("radius") >= {"model", *RADIUS_OPTIONS}
    assert parameters("verify") >= {"certificate", "model", "as_json"}


def test_exit_codes() -> None:
    for name, code in EXIT_CODES.items():
        assert getattr(errors, name).exit_code == code, name


def test_audit_document(audit: lv.Audit) -> None:
    document = audit.to_json()
    assert document["schema"] == "lipverify.audit/1"
    assert set(document) >= {"schema", "model", "query", "results", "lower", "best"}
    assert set(document["model"]) >= MODEL
    assert set(document["model"]["import_check"]) >= {"samples", "max_abs_difference"}
    assert document["query"]["region"] == {"kind": "everywhere"}
    assert set(document["query"]) >= {"norm_in", "norm_out", "region"}
    product, lipsdp, local = document["results"]
    assert set(product) >= {"analyzer", "upper", "rigour", "seconds", "certificate"}
    assert isinstance(lipsdp["upper"], float)
    assert set(local) >= {"analyzer", "refused"}
    assert set(document["lower"]) >= {"value", "method", "witness"}
    assert set(document["best"]) >= {"analyzer", "upper"}


def test_local_audit_document(graph: lv.Graph) -> None:
    ball = lv.Ball(torch.zeros(2, 3), radius=0.1, norm="linf", box=(-1, 1))
    document = lv.audit(graph, norm="linf", region=ball, analyzers=["local"], budget=5).to_json()
    region = document["query"]["region"]
    assert {key: region[key] for key in ("kind", "norm", "radius", "count")} == {
        "kind": "ball",
        "norm": "linf",
        "radius": 0.1,
        "count": 2,
    }
    assert len(document["results"][0]["upper"]) == len(document["lower"]["value"]) == 2


def test_radius_document(graph: lv.Graph) -> None:
    found = lv.radii(graph, torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), norm="linf", method="crown")
    document = found.to_json()
    assert document["schema"] == "lipverify.radius/1"
    assert set(document) >= {"model", "norm", "method", "points", "curve", "clean_accuracy", "rigour"}
    fields = {"index", "label", "predicted", "radius", "method", "attack_radius", "seconds"}
    assert set(document["points"][0]) >= fields
    assert set(document["curve"]) >= {"radii", "certified_accuracy", "attack_accuracy"}
    assert len(found.radius) == 2
    found.curve()


def test_inspect_document(graph: lv.Graph) -> None:
    document = inspect_document(graph)
    assert set(document["model"]) >= MODEL
    assert all(set(node) >= {"name", "op", "inputs", "shape"} for node in document["nodes"])
    assert document["analyzers"]["lipsdp"] is None
    assert isinstance(document["analyzers"]["local"], str)


def test_certificates_are_saved_and_verified(audit: lv.Audit, graph: lv.Graph, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    audit.certificates["lipsdp"].save(path)
    document = lv.verify(path, graph).to_json()
    assert document["schema"] == "lipverify.verify/1"
    assert set(document) >= {"schema", "valid", "upper", "claim", "seconds"}
    assert document["valid"] is True
    assert audit.best is not None
    assert audit.best.upper == document["upper"]
    assert audit.lower.value <= audit.best.upper


def test_comparison(graph: lv.Graph, tmp_path: Path) -> None:
    found = lv.compare({"a": graph, "b": graph}, analyzers=["product"], budget=3)
    found.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert found.to_json()["schema"] == "lipverify.compare/1"


def test_entry_points_for_other_packages() -> None:
    from lipverify.analyzers import registry

    assert registry.GROUP == "lipverify.analyzers"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["entry-points"]) == {"lipverify.analyzers"}
    for name in ("product", "lipsdp", "lipsdp-cvxpy", "local"):
        assert name in registry.names()
    from lipverify.frontends.onnx.registry import lower as onnx_side
    from lipverify.frontends.registry import Lowering
    from lipverify.frontends.torch_export.registry import lower as torch_side

    assert isinstance(onnx_side, Lowering)
    assert isinstance(torch_side, Lowering)
    shared = (ROOT / "lipverify/frontends/registry.py").read_text(encoding="utf-8")
    assert 'group="lipverify.operators"' in shared
