"""The shell: a question in one file gets a command, documents, gates and a page; bad facts never become an answer."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import pytest
import torch
from torch import Tensor

import lipverify as lv
from lipverify.analyzers.protocol import Compute
from lipverify.certificates import Issued
from lipverify.commands import questions
from lipverify.errors import InternalError, Refuted, Undecided
from lipverify.falsify import Search
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.propagation import bounds, interval_ranges
from lipverify.questions.formula import Formula, fact, number, of
from lipverify.questions.options import Options, option
from lipverify.questions.question import Found, Proved, Subject
from lipverify.reporting.answer import print_answers, render_answers
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
    assert "no proof of this kind" in (answer.unchecked or "")

    class Ended(Scaled):
        def facts(self, compute: Compute) -> Iterator[Found]:
            yield from super().facts(compute)
            raise KeyboardInterrupt

    assert lv.ask(Ended(net(), region)).unchecked == "interrupted before the checker was asked"
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


# -- what makes an answer `checked`


@pytest.fixture(scope="module")
def constants() -> dict[str, Issued]:
    """Certificates of constants of two networks."""
    found = {}
    for key, path in (("own", F), ("other", "zoo:digits-tanh-mlp")):
        audit = lv.audit(lv.load(path), analyzers=["product"], search=Search(seconds=0.05))
        certificate = audit.certificates["product"]
        assert isinstance(certificate.issued, Issued)
        found[key] = certificate.issued
    return found


@dataclass(frozen=True, eq=False)
class Scaled(Largest):
    """A constant times a number.

    Statement: |f(x) - f(y)|_2 <= upper for x, y at distance `times`.
    Source: definition.
    Sound when: the constant is one.
    """

    name: ClassVar[str] = "scaled"
    proved: Proved = field(default_factory=Proved)
    norm: str = "l2"

    @property
    def formula(self) -> Formula:
        return of("largest", of("product", fact("constant"), number(self.times)))

    def facts(self, compute: Compute) -> Iterator[Found]:
        ends = torch.tensor([[0.0], [1e6]], dtype=torch.float64)
        yield Found({"constant": Interval(ends[:1], ends[1:])})

    def search(self, compute: Compute) -> Any:
        return None

    def expects(self, fact: str | None) -> Mapping[str, Any]:
        return {"norm_in": self.norm, "norm_out": self.norm} if self.norm else {}

    def prove(self, upper: Tensor, found: Found, fields: Mapping[str, Any], compute: Compute) -> Proved:
        return self.proved


def scaled(proved: Proved, times: float = 0.5) -> dict[str, Any]:
    return lv.ask(Scaled(net(), lv.InputBox((64,), 0.0, 1.0), times, proved=proved)).to_json(
        certificate="c/s.json"
    )


def test_the_bound_of_a_checked_answer_is_the_formula_of_what_the_checker_proved(
    constants: dict[str, Issued],
) -> None:
    claimed = constants["own"].document["claim"]
    # The question's own number, here far too small, is not asked for.
    found = scaled(Proved(upper=torch.tensor([1e-3]), constants={"constant": constants["own"]}))
    assert found["rigour"] == "checked"
    assert 0.5 * claimed["upper"] <= found["upper"] <= 0.5 * claimed["upper"] * (1 + 1e-12)
    assert found["proved"] == [claimed["statement"]]
    assert found["certificate"] is None
    assert found["needs"][0]["certificate"] == "c/s-constant.json"
    assert found["unchecked"] is None


def test_a_certificate_is_proved_before_it_counts(constants: dict[str, Issued]) -> None:
    own = constants["own"]
    unseen = Issued(dict(own.document), own.arrays)
    assert unseen.verdict is None
    assert scaled(Proved(constants={"constant": unseen}))["rigour"] == "checked"
    assert unseen.verdict is not None
    # What was accepted is these bytes, not the object: changed afterwards it is a certificate that nobody has seen.
    unseen.document["claim"] = {**unseen.document["claim"], "upper": 1e-9}
    assert unseen.verdict is None
    assert scaled(Proved(constants={"constant": unseen}))["rigour"] == "real"
    forged = json.loads(json.dumps(own.document))
    forged["claim"] |= {"upper": 0.1, "upper_hex": (0.1).hex(), "upper_decimal": "0.100000001"}
    found = scaled(Proved(constants={"constant": Issued(forged, own.arrays)}))
    assert found["rigour"] == "real"
    assert "does not carry" in found["unchecked"]


def test_certificates_of_something_else_leave_an_answer_real(constants: dict[str, Issued]) -> None:
    own, other = constants["own"], constants["other"]
    for proved, reason in (
        (Proved(own, torch.tensor([1e-3])), "claims a constant, which is not what the question claims"),
        (Proved(constants={"constant": other}), "other networks"),
        (Proved(other), "other networks"),
        (Proved(constants={"konstant": own}), "'constant' has no certificate"),
        (Proved(upper=torch.tensor([1e-3])), "gives no certificate"),
    ):
        found = scaled(proved)
        assert found["rigour"] == "real", reason
        assert reason in found["unchecked"]
        assert found["proved"] == []
        assert found["upper"] == pytest.approx(5e5)
        said = io.StringIO()
        print_answers([found], [()], said)
        assert "real, not checked: " in said.getvalue()
        assert "Not checked" in render_answers([found], [()])


@pytest.mark.parametrize(
    ("norm", "reason"), [("linf", "the question expects 'linf'"), ("", "says nothing of it")]
)
def test_a_constant_in_another_norm_carries_nothing(
    constants: dict[str, Issued], norm: str, reason: str
) -> None:
    proved = Proved(constants={"constant": constants["own"]})
    question = Scaled(net(), lv.InputBox((64,), 0.0, 1.0), 0.5, proved=proved, norm=norm)
    found = lv.ask(question).to_json()
    assert found["rigour"] == "real"
    assert "the certificate says norm_in 'l2'" in found["unchecked"]
    assert reason in found["unchecked"]


def test_a_constant_over_a_ball_is_about_that_ball() -> None:
    """Over a ball of radius 1e-9 a constant is smaller than over the box that is asked about."""
    region = lv.Ball(torch.zeros(1, 64, dtype=torch.float64), 1e-9, "linf")
    certificate = lv.audit(net(), analyzers=["local"], region=region, budget=5).certificates["local"]
    proved = Proved(constants={"constant": certificate.issued})
    assert lv.ask(Scaled(net(), region, 0.5, proved=proved)).to_json()["rigour"] == "checked"
    for other in (lv.InputBox((64,), 0.0, 1.0), lv.Ball(region.center + 1e-3, 1e-9, "linf")):
        found = lv.ask(Scaled(net(), other, 0.5, proved=proved)).to_json()
        assert found["rigour"] == "real"
        assert "about another region than the answer" in found["unchecked"]


@pytest.mark.parametrize("rigour", [lv.Rigour.CHECKED, lv.Rigour.ESTIMATE])
def test_facts_are_neither_checked_nor_estimates(rigour: lv.Rigour) -> None:
    with pytest.raises(lv.UsageError, match="real or solver"):
        Found({}, rigour)


@pytest.mark.parametrize(
    ("lower", "upper", "reason"),
    [
        ([1.0], [2.0], "no range"),
        ([[0.0], [1.0]], [[1.0], [2.0]], "regions"),
        ([[]], [[]], "no range"),
    ],
)
def test_facts_are_ranges(lower: list[Any], upper: list[Any], reason: str) -> None:
    class Odd(Scaled):
        def facts(self, compute: Compute) -> Iterator[Found]:
            yield Found({"constant": Interval(torch.tensor(lower).double(), torch.tensor(upper).double())})

    with pytest.raises(InternalError, match=reason):
        lv.ask(Odd(net(), lv.InputBox((64,), 0.0, 1.0)))


def test_a_bound_beyond_float64_is_no_answer() -> None:
    with pytest.raises(Undecided, match="beyond float64"):
        lv.ask(Scaled(net(), lv.InputBox((64,), 0.0, 1.0), 1e308))


def test_a_question_that_cannot_be_imported_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("broken", "lipverify_nowhere:Nothing", questions.GROUP)
    monkeypatch.setattr(questions, "entry_points", lambda group: [entry])
    with pytest.raises(lv.UsageError, match=r"broken.*cannot be imported.*lipverify_nowhere"):
        questions.resolve("broken")
