"""What newcomers ran into: sentences that were wrong, answers that were missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.errors import UnsupportedModel, UsageError
from lipverify.reporting.radii import print_radii
from tests import networks
from tests.command import lipverify
from tests.unit.reporting import radius_documents

MODEL, OTHER = "zoo:wine-selu", "zoo:cancer-gelu"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    done = lipverify("audit", MODEL, "--analyzers", "product", "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_certificates_of_another_model_are_called_so(report: Path) -> None:
    done = lipverify("verify", report, "--model", OTHER)
    assert done.returncode == 7
    assert "of another model: " in done.stdout
    assert "unreadable" not in done.stdout
    damaged = report.parent / "damaged" / "certificates"
    damaged.mkdir(parents=True)
    (damaged / "product.json").write_text("{")
    done = lipverify("verify", damaged.parent, "--model", MODEL)
    assert done.returncode == 7
    assert "unreadable: " in done.stdout


def test_a_folder_without_certificates_has_nothing_to_prove(tmp_path: Path) -> None:
    done = lipverify("verify", tmp_path, "--model", MODEL)
    assert done.returncode == 4
    assert "nothing to prove" in done.stderr
    assert "lipverify prove" not in done.stderr, "which goes on with certificates, of which there are none"


def test_prove_names_what_time_does_not_prove(report: Path) -> None:
    document: dict[str, Any] = json.loads((report / "result.json").read_text())
    document["results"][0] |= {"rigour": "real", "unchecked": "nobody knows how", "certificate": None}
    copy = report.parent / "copy"
    copy.mkdir()
    (copy / "result.json").write_text(json.dumps(document))
    done = lipverify("prove", copy)
    assert done.returncode == 4
    assert "product: has no proof, and none is kept to go on with: nobody knows how" in done.stdout


def test_centres_are_told_what_is_wrong_with_their_shape() -> None:
    graph = networks.chain([torch.eye(6)])
    x = torch.zeros(2, 6)
    for region, words in (
        (lv.Ball(x[0], 0.1), r"give one as x\[None\]"),
        (lv.Ball(x.reshape(2, 2, 3), 0.1), r"x.reshape\(-1, 6\)"),
        (lv.Ball(torch.zeros(2, 5), 0.1), r"the model takes \[6\]$"),
    ):
        for ask in (
            lambda region: lv.audit(graph, norm="linf", region=region),
            lambda region: lv.bounds(graph, region),
        ):
            with pytest.raises(UsageError, match=words):
                ask(region)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_features_that_do_not_move_do_not_count(norm: str) -> None:
    """The first feature is a hundred times as steep as the others and fixed: analyzer and checker leave it out."""
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4, generator=rng)
    small = networks.chain([weight[:, 1:], torch.randn(2, 8, generator=rng)], ops.ReLU())
    graph = networks.chain(
        [torch.cat([100 * weight[:, :1], weight[:, 1:]], 1), small.nodes[-1].op.weight], ops.ReLU()
    )
    x = torch.zeros(1, 4, dtype=torch.float64)
    box = (torch.tensor([0.0, -1.0, -1.0, -1.0]), torch.tensor([0.0, 1.0, 1.0, 1.0]))
    found = lv.audit(graph, norm=norm, region=lv.Ball(x, 0.5, "linf", box), analyzers=["local"]).certificates[
        "local"
    ]
    wanted = lv.audit(
        small, norm=norm, region=lv.Ball(x[:, 1:], 0.5, "linf"), analyzers=["local"]
    ).certificates["local"]
    assert found.rigour == wanted.rigour == lv.Rigour.CHECKED
    assert float(found.upper) == pytest.approx(float(wanted.upper), rel=1e-6)
    nothing = lv.audit(graph, norm=norm, region=lv.Ball(x, 0.0, "linf"), analyzers=["local"]).certificates[
        "local"
    ]
    assert float(nothing.upper) > 10 * float(found.upper)


class Gated(torch.nn.Module):
    """Products of bounded values, as in attention behind a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.parts = torch.nn.ParameterList(
            torch.randn(s, generator=rng) / 4 for s in ((3, 4), (3, 4), (4, 2))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, last = self.parts
        found: torch.Tensor = (torch.tanh(x @ first) * torch.tanh(x @ second)) @ last
        return found


def test_products_of_bounded_values_have_radii_by_global_constants() -> None:
    graph = lv.extract(Gated().eval(), torch.zeros(2, 3))
    x = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 0.3, 2.0]])
    found = lv.radii(graph, x, norm="l2", method="global")
    document = found.to_json()
    assert not document.get("refused")
    for point in document["points"]:
        assert 0 < point["radius"] < (point["attack_radius"] or float("inf"))


def test_radii_that_are_not_checked_say_why(capsys: pytest.CaptureFixture[str]) -> None:
    document, _ = radius_documents.single()
    document["points"][0]["unchecked"] = document["points"][1]["unchecked"] = "nobody knows how"
    print_radii(document)
    assert "2 points real, not checked: nobody knows how" in " ".join(capsys.readouterr().out.split())


def test_the_remedy_for_published_constraints_is_an_analyzer_that_answers() -> None:
    graph = networks.chain([torch.eye(3), torch.eye(3)], ops.ReLU())
    with pytest.raises(UnsupportedModel, match="use the analyzer lipsdp-cvxpy, or lipsdp"):
        lv.audit(graph, analyzers=["lipsdp-cvxpy:group"]).upper  # noqa: B018
    assert lv.audit(graph, analyzers=["lipsdp"]).upper < 1.001
