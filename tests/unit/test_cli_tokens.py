"""Norms of tokens at the command line: a claimed constant is refuted, certificates are verified, options belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipverify as lv
from lipverify import checkers
from lipverify.commands.audit import _claimed
from tests.command import lipverify
from tests.unit.analyzers.test_tokens import OnlyAttention, heads_of_one


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four heads of which one is not 0: the released formula says 1, the constant is at least 4/3."""
    path = tmp_path_factory.mktemp("heads") / "heads.onnx"
    net, axes = OnlyAttention(heads_of_one(4)), {"x": {0: "batch"}}
    torch.onnx.export(
        net, (torch.randn(2, 2, 4),), str(path), input_names=["x"], dynamic_axes=axes, dynamo=False
    )
    return path


def test_a_claimed_constant_is_refuted_by_a_pair_and_the_certificate_verifies(
    model: Path, tmp_path: Path
) -> None:
    given = ("--norm", "token-rms", "--within", "1", "--out", tmp_path / "out", "--json", "--quiet")
    done = lipverify("audit", model, *given, "--claimed", "1")
    assert done.returncode == 3, done.stderr
    document = json.loads(done.stdout)
    assert document["claimed"] == {"constant": 1.0, "verdict": "refuted"}
    assert document["query"]["region"] == {"kind": "bounded", "norm": "token-rms", "most": 1.0}
    assert 4 / 3 < document["lower"]["value"] < document["results"][0]["upper"] < 3.0001
    certificate = tmp_path / "out" / "certificates" / "tokens.json"
    assert lipverify("verify", certificate, "--model", model, "--norm", "token-rms").returncode == 0
    assert lipverify("verify", certificate, "--model", model, "--norm", "token-l2").returncode == 3
    assert lipverify("verify", certificate, "--model", model, "--at-most", "2.9").returncode == 3
    assert lipverify("verify", certificate, "--model", model, "--at-most", "nan").returncode == 2


def test_a_pair_refutes_a_claim_where_no_analyzer_bounds_the_network(model: Path) -> None:
    done = lipverify("audit", model, "--analyzers", "lipsdp", "--claimed", "0.001", "--budget", "2s")
    assert done.returncode == 3, done.stderr
    assert "lipsdp refused" in done.stdout
    assert "the claimed constant 0.001 is wrong: a pair of inputs (--out stores it)" in done.stderr


@pytest.mark.parametrize("norms", [("token-rms",), ("l2", "token-l2"), ("token-l2", "l2")])
def test_inputs_without_tokens_are_refused_with_their_shape(norms: tuple[str, ...]) -> None:
    graph = lv.extract(nn.Linear(3, 2).eval(), torch.randn(2, 3))
    with pytest.raises(lv.UnsupportedModel, match=r"an input of shape \[3\] has no tokens"):
        lv.audit(graph, norm=norms[0], norm_out=norms[-1])


class Sums(nn.Module):
    """y_t = x_1 + x_2 + x_3."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True).expand(-1, 3, -1)


def test_what_is_expected_of_tokens_is_about_tokens_of_the_model() -> None:
    """3 for tokens of 2 numbers, the root of 3 for all 6 as one token: that one is no proof of less than 3."""
    graph = lv.extract(Sums(), example=torch.randn(2, 3, 2))
    (row,) = lv.audit(graph, norm="token-l2", region=lv.Bounded(1.0), analyzers="tokens").rows
    assert row.certificate is not None
    for named in ("token-l2", "token-l2/2"):
        expected = checkers.Expectation(norm_in=named, norm_out=named)
        lv.verify(row.certificate, graph, expected=expected)
    for other in ("token-l2/6", "token-rms", "l2"):
        with pytest.raises(lv.RefutedCertificate, match="than expected"):
            lv.verify(row.certificate, graph, expected=checkers.Expectation(norm_in=other))


@pytest.mark.parametrize(
    ("rigour", "verdict"),
    [("checked", "proved"), ("real", "proved"), ("solver", "open"), ("estimate", "open")],
)
def test_a_solver_proves_no_claimed_constant(rigour: str, verdict: str) -> None:
    document: dict[str, Any] = {"lower": {"value": 0.5}, "results": [{"upper": 1.0, "rigour": rigour}, {}]}
    assert _claimed(document, 1.0, False) is None
    assert document["claimed"]["verdict"] == verdict


def test_options_of_tokens_belong_together(model: Path) -> None:
    for options in (
        ["--within", "1"],
        ["--norm", "token-rms", "--within", "0"],
        ["--variance", "1"],
        ["--norm", "token-rms", "--variance", "0"],
        ["--norm", "token-rms", "--box", "0,1"],
    ):
        done = lipverify("audit", model, *options)
        assert done.returncode == 2, done.stderr


def test_options_that_are_wrong_are_named(model: Path) -> None:
    for options, code, said in (
        (
            ["--norm", "token-l2", "--norm-out", "l2"],
            5,
            "not to l2: give --norm-out token-rms, token-l2 or linf",
        ),
        (["--norm", "l2", "--norm-out", "token-l2"], 5, "give --norm token-rms or token-l2"),
        (["--claimed", "nan"], 2, "--claimed takes a constant of at least 0, not nan"),
        (["--fail-above", "nan"], 2, "--fail-above takes a limit of at least 0, not nan"),
        (["--convex", "--norm", "token-l2"], 2, "--norm, --norm-out"),
        (["--convex", "--claimed", "1"], 2, "--claimed"),
        (["--convex", "--box", "0,1"], 2, "--box"),
        (["--monotone", "all", "--box", "0,1", "--norm", "linf"], 2, "--norm, --norm-out"),
    ):
        done = lipverify("audit", model, *options, "--analyzers", "tokens")
        assert done.returncode == code, (options, done.stderr)
        assert said in " ".join((done.stdout + done.stderr).split()), (options, done.stderr)
