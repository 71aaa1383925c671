"""The shell: a question in one file gets a command, documents, gates and a page; bad facts never become an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import pytest
from torch import Tensor

import lipverify as lv
from lipverify.analyzers.protocol import Compute
from lipverify.commands import questions
from lipverify.errors import Refuted, Undecided
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.propagation import bounds, interval_ranges
from lipverify.questions.formula import Formula, fact, number, of
from lipverify.questions.options import Options, option
from lipverify.questions.question import Found, Subject
from lipverify.reporting.sections import Section, Table
from tests.command import lipverify

F = "zoo:digits-relu-mlp"


@dataclass(frozen=True, kw_only=True)
class LargestOptions(Options):
    """How the output is scaled."""

    times: Annotated[float, option("a factor")] = 1.0


@dataclass(frozen=True, eq=False)
class Largest:
    """The largest output over a box.

    Statement: f(x)_i <= upper for every x of the box and every output i.
    Source: as `lipverify.bounds`.
    Sound when: as `lipverify.bounds`.
    """

    name: ClassVar[str] = "largest"
    options: ClassVar[type[Any]] = LargestOptions
    f: Graph
    region: lv.Ball
    times: float = 1.0
    offset: float = 0.0
    stop: int = 2

    @property
    def subjects(self) -> tuple[Subject, ...]:
        return (Subject("network", self.f),)

    @property
    def single(self) -> bool:
        return True

    @property
    def formula(self) -> Formula:
        return of("product", of("largest", of("absolute", fact("output"))), number(self.times))

    def query(self) -> dict[str, Any]:
        return {"region": self.region.to_json(), "words": "how large is the output?"}

    def claim(self, upper: str) -> str:
        return f"no output is larger than {upper}"

    def facts(self, compute: Compute) -> Iterator[Found]:
        for step, method in enumerate(("interval", "linear")):
            if step == self.stop:
                raise KeyboardInterrupt
            box = bounds(self.f, self.region, method=method).output
            yield Found(
                {"output": Interval(box.lower * self.offset if self.offset else box.lower, box.upper)}
            )

    def search(self, compute: Compute) -> Tensor:
        return self.region.center

    def at(self, points: Tensor) -> Mapping[str, Interval]:
        found = interval_ranges(self.f, Interval(points, points))[self.f.output.name]
        return {"output": Interval(found.lower + 1e9, found.upper + 1e9) if self.offset else found}

    def findings(self, found: Found, compute: Compute) -> Mapping[str, Any]:
        return {"outputs": self.f.output.size}

    @classmethod
    def asked(cls, options: LargestOptions, graphs: Sequence[Graph], x: Tensor | None) -> Iterator[Self]:
        assert options.box is not None
        for graph in graphs:
            yield cls(graph, lv.InputBox(graph.input_shape, *options.box), options.times)

    @staticmethod
    def sections(document: Mapping[str, Any]) -> Sequence[Section]:
        return [
            Table("Sizes", "", ("What", "How many"), (("outputs", str(document["outputs"])),), brief=True)
        ]

    @staticmethod
    def gate(options: LargestOptions, document: Mapping[str, Any]) -> str | None:
        return "there are too many" if options.times == 13.0 else None


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(questions.BUILT_IN, "largest", (f"{__name__}:Largest", "How large is the output?"))


@pytest.mark.usefixtures("registered")
def test_a_question_of_one_file_has_a_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = lipverify("largest", F, "--box", "0,1", "--times", "2", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["question"] == "largest"
    assert found["outputs"] == 10
    assert found["lower"]["value"] <= found["upper"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "No output is larger than" in page
    assert "How many" in page
    assert np.load(out / "witness.npz")["points"].shape == (1, 64)
    plain = json.loads(lipverify("largest", F, "--box", "0,1", "--json").stdout)
    assert abs(found["upper"] / plain["upper"] - 2.0) < 1e-12
    assert lipverify("largest", F, "--box", "0,1", "--times", "13").returncode == 3
    assert lipverify("largest", F, "--box", "0,1", "--fail-above", "1e-3").returncode == 3
    assert "outputs" in lipverify("largest", F, "--box", "0,1").stdout


@pytest.mark.usefixtures("registered")
def test_questions_stand_in_the_list_of_commands() -> None:
    listed = lipverify("--help").stdout
    assert "How large is the output?" in listed
    assert "deviate" in listed
    assert "--times" in lipverify("largest", "--help").stdout
    with pytest.raises(lv.UsageError, match="no question"):
        questions.resolve("smallest")


def net() -> Graph:
    return lv.load(F)


def test_the_best_facts_survive_an_interrupt() -> None:
    region = lv.InputBox((64,), 0.0, 1.0)
    answer = lv.ask(Largest(net(), region, stop=1))
    assert answer.interrupted
    assert len(answer.trace) == 1
    assert answer.to_json()["interrupted"]
    assert answer.upper >= lv.ask(Largest(net(), region)).upper
    with pytest.raises(Undecided, match="before there was a bound"):
        lv.ask(Largest(net(), region, stop=0))


def test_a_deadline_keeps_the_first_facts() -> None:
    answer = lv.ask(Largest(net(), lv.InputBox((64,), 0.0, 1.0)), budget=1e-9)
    assert len(answer.trace) == 1


def test_a_witness_above_the_bound_ends_the_run() -> None:
    with pytest.raises(Refuted, match="this is a bug of lipverify"):
        lv.ask(Largest(net(), lv.InputBox((64,), 0.0, 1.0), offset=1.0))


def test_answers_show_themselves() -> None:
    answer = lv.ask(Largest(net(), lv.InputBox((64,), 0.0, 1.0)))
    assert "iframe" in answer._repr_html_()
    assert answer.rigour is lv.Rigour.REAL
