"""`auto`: what is asked without being named, what is left out and why, and what more time would buy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify.analyzers import auto, registry
from lipverify.analyzers.protocol import Compute
from lipverify.falsify import Search
from lipverify.ir.certificate import Certificate
from tests.command import lipverify

QUICK = Search(seconds=0.2)


@pytest.fixture(scope="module")
def graph() -> lv.Graph:
    torch.manual_seed(0)
    return lv.extract(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.zeros(2, 4))


def product_of_halves() -> lv.Graph:
    class Product(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :2] * x[:, 2:]

    return lv.extract(Product().eval(), torch.zeros(2, 4))


def test_everywhere_the_cheapest_first_and_lipsdp_with_what_remains(graph: lv.Graph) -> None:
    found = lv.audit(graph, search=QUICK)
    assert [row.analyzer for row in found.rows] == ["product", "lipsdp-fast", "lipsdp"]
    assert found.best is not None
    assert found.best.analyzer == "lipsdp"
    choice = found.to_json()["choice"]
    assert choice["analyzers"] == ["product", "lipsdp-fast", "lipsdp"]
    assert choice["seconds"] == auto.MINUTE
    assert choice["left_out"] == {}
    assert "about a minute" in choice["words"]
    assert "more time would not lower it" in choice["more"]


def test_around_points_local_and_semidefinite_bounds_and_branching_for_more_time(graph: lv.Graph) -> None:
    ball = lv.Ball(torch.zeros(2, 4), 0.1)
    found = lv.audit(graph, norm="linf", region=ball, search=QUICK)
    assert [row.analyzer for row in found.rows] == ["product", "local", "local-sdp"]
    assert "local-bab" in found.to_json()["choice"]["more"]


def test_where_gates_multiply_local_sdp_is_left_to_whoever_asks_for_it() -> None:
    ball = lv.Ball(torch.zeros(1, 4), 0.1)
    found = lv.audit(product_of_halves(), region=ball, search=QUICK)
    assert [row.analyzer for row in found.rows] == ["product", "local"]
    assert found.to_json()["choice"]["left_out"]["local-sdp"].endswith("(--analyzers local-sdp)")
    asked = lv.audit(product_of_halves(), region=ball, analyzers=["local-sdp"], search=QUICK)
    assert [row.analyzer for row in asked.rows] == ["local-sdp"]


def test_what_would_refuse_is_left_out_with_its_reason(graph: lv.Graph) -> None:
    found = lv.audit(graph, norm="l1", search=QUICK)
    assert [row.analyzer for row in found.rows] == ["product"]
    left_out = found.to_json()["choice"]["left_out"]
    assert set(left_out) == {"lipsdp-fast", "lipsdp"}
    for name, reason in left_out.items():
        assert registry.resolve(name).reject(graph, found.query) == reason
        assert reason in found.to_json()["choice"]["words"]


def test_where_none_has_a_bound_no_bound_is_spoken_of() -> None:
    choice = auto.Choice(("product",), {}, 10.0, False)
    assert "no analyzer was short of time" in choice.more([], bounded=False)
    assert choice.to_json(["product"], bounded=False)["more"].startswith("more time would buy")
    assert (
        "no analyzer was short of time"
        in lv.audit(product_of_halves(), search=QUICK).to_json()["choice"]["more"]
    )


def test_where_none_answers_every_reason_is_said() -> None:
    found = lv.audit(product_of_halves(), search=QUICK)
    assert found.best is None
    said = {row.analyzer: row.refused for row in found.rows} | dict(
        found.choice.left_out if found.choice else {}
    )
    assert set(said) == set(auto.EVERYWHERE)
    assert all(said.values())


class Slow:
    """Uses all its time and has no bound then.

    Statement: none.
    """

    name = "slow"

    def reject(self, graph: lv.Graph, query: lv.Query) -> str | None:
        return None

    def bound(self, graph: lv.Graph, query: lv.Query, compute: Compute) -> Certificate:
        while not compute.expired():
            pass
        raise lv.Undecided("no bound within its time")


def test_a_search_that_used_all_its_time_could_go_on(graph: lv.Graph) -> None:
    found = lv.audit(graph, analyzers=["auto", Slow()], budget=1.0, search=QUICK)
    assert found.rows[-1].hurried
    more = found.to_json()["choice"]["more"]
    assert "slow" in more
    assert "could go on" in more
    assert "--budget 10m" in more


class Refusing(Slow):
    """Looks as long as it may, and finds that the model has no bound.

    Statement: none.
    """

    name = "refusing"

    def bound(self, graph: lv.Graph, query: lv.Query, compute: Compute) -> Certificate:
        while not compute.expired():
            pass
        raise lv.UnsupportedModel("no constant")


def test_what_the_model_refuses_no_time_buys(graph: lv.Graph) -> None:
    found = lv.audit(graph, analyzers=["auto", Refusing()], budget=1.0, search=QUICK)
    assert found.rows[-1].refused == "no constant"
    assert not found.rows[-1].hurried
    assert "refusing" not in found.to_json()["choice"]["more"]


def test_auto_stands_beside_names_and_counts_each_once(graph: lv.Graph) -> None:
    found = lv.audit(graph, analyzers="auto,product,lipsdp:frequencies", budget=5, search=QUICK)
    assert [row.analyzer for row in found.rows][:4] == [
        "product",
        "lipsdp-fast",
        "lipsdp",
        "lipsdp:frequencies",
    ]
    assert found.choice is not None
    assert lv.audit(graph, analyzers="product", search=QUICK).choice is None


def test_a_comparison_asks_what_answers_for_some_model(graph: lv.Graph) -> None:
    found = lv.compare({"a": graph, "b": product_of_halves()}, budget=6)
    assert found.analyzers == ("product", "lipsdp-fast", "lipsdp")
    assert found.to_json()["choice"]["analyzers"] == list(found.analyzers)
    assert "refused" in found.answers["b"][0].rows[0]
    assert found.answers["a"][0].best() is not None


def test_the_command_line_says_what_was_chosen(tmp_path: Path) -> None:
    done = lipverify("audit", "zoo:wine-selu", "--budget", "4s", "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert "Auto asked product" in " ".join(done.stdout.split())
    assert "Auto asked product" in (tmp_path / "report" / "report.html").read_text()
    assert "choice" in json.loads((tmp_path / "report" / "result.json").read_text())
