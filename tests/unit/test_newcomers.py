"""What newcomers ran into: sentences that were wrong, answers that were missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lipverify as lv
from lipverify.errors import UsageError
from tests import networks
from tests.command import lipverify

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


def test_prove_names_what_time_does_not_prove(report: Path) -> None:
    document: dict[str, Any] = json.loads((report / "result.json").read_text())
    document["results"][0] |= {"rigour": "real", "unchecked": "nobody knows how", "certificate": None}
    copy = report.parent / "copy"
    copy.mkdir()
    (copy / "result.json").write_text(json.dumps(document))
    done = lipverify("prove", copy)
    assert done.returncode == 2
    assert "product has none, and time brings none: nobody knows how" in done.stderr


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
