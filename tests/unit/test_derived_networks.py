"""Numbers of networks in derivations, beside constants: computed by the checker, and never believed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import derived, ops
from lipverify.certificates import model_of
from lipverify.checkers import closed_forms, derivations, quantities
from lipverify.checkers.reader import Model
from lipverify.derived.networks import audited
from lipverify.errors import RefutedCertificate, Undecided, UnreadableCertificate, UsageError
from lipverify.interpreter import evaluate
from lipverify.ir.certificate import Rigour
from lipverify.ir.graph import Graph
from lipverify.loading.safetensors import write_safetensors
from tests.networks import chain, tensor

PLANT = ([[0.9, 0.1], [0.0, 0.8]], [[0.0], [0.1]])


def random(*sizes: int, seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    weights = [tensor(rng, m, n) / math.sqrt(n) for n, m in pairwise(sizes)]
    return chain(weights, ops.Tanh()).to(dtype=torch.float64)


def points(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, size)))


def critic() -> derived.Derived:
    graph = random(3, 16, 1)
    return derived.critic_distance(graph, points(20, 3), points(30, 3, 1) + 0.7, audited(graph, ["product"]))


def slope() -> derived.Derived:
    graph = random(3, 16, 4)
    return derived.neighbour_slope(graph, points(30, 3), audited(graph, ["product"]))


def sector() -> derived.Derived:
    return derived.closed_loop(random(2, 8, 1, seed=4), *PLANT, radius=0.2, by="sector")


def gradient() -> derived.Derived:
    """Of a network whose layers do not give 0 at 0."""
    rng = np.random.default_rng(2)
    net = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)).double()
    for p in net.parameters():
        p.data = tensor(rng, *p.shape).double()
    return derived.sensitivity(lv.extract(net, torch.zeros(1, 3, dtype=torch.float64)), 1.0).total


MADE = {"critic": critic, "slope": slope, "sector": sector, "gradient": gradient}
NAMES = {
    "critic": ["gap"],
    "slope": ["gap", "distance"],
    "sector": ["low", "high"],
    "gradient": ["offsets-2"],
}


@pytest.fixture(scope="module")
def made() -> Callable[[str], derived.Derived]:
    known: dict[str, derived.Derived] = {}
    return lambda which: known.setdefault(which, MADE[which]())


@pytest.mark.parametrize("which", ["critic", "slope", "sector"])
def test_what_a_network_gives_is_proved(which: str, made: Callable[[str], derived.Derived]) -> None:
    found = made(which)
    assert sorted(found.computed) == sorted(NAMES[which])
    assert found.rigour is Rigour.CHECKED
    proved = derived.verify_derived(found)
    assert proved.value == found.value
    assert proved.stated == ()
    assert "computed by the checker" in found.to_html()


def test_values_at_zero_are_proved(made: Callable[[str], derived.Derived]) -> None:
    """The bias has a head of its own: 0 x + 1, which nobody has to compute."""
    found = made("gradient")
    assert found.computed == ("offsets-2",)
    assert derived.verify_derived(found).value == found.upper
    network = found.graphs["heads-2"]
    at_zero = evaluate(network, torch.zeros(1, 3, dtype=torch.float64)).norm()
    assert float.fromhex(found.numbers["offsets"][2]) == pytest.approx(float(at_zero), rel=1e-12)


def moved(value: Any, by: float) -> Any:
    return [moved(v, by) for v in value] if isinstance(value, list) else (float.fromhex(value) + by).hex()


@pytest.mark.parametrize(
    ("which", "label", "by"),
    [("critic", "gap", 1e-9), ("slope", "gap", 1e-9), ("slope", "distance", -1e-9), ("sector", "low", 1e-9),
     ("sector", "high", -1e-9), ("gradient", "offsets-2", -1e-9)],
)  # fmt: skip
def test_a_number_beyond_the_networks_own_is_refuted(
    which: str, label: str, by: float, made: Callable[[str], derived.Derived], tmp_path: Path
) -> None:
    """The rule's value for the forged number is written beside it: nothing but the network contradicts it."""
    found = made(which)
    found.save(tmp_path / "forged.json")
    document = json.loads((tmp_path / "forged.json").read_text())
    name, _, place = label.partition("-")
    where = document["numbers"][name]
    where = where[int(place)] if place else where
    where["computed"] = moved(where["computed"], by)
    table = {**document, "statement": ""}
    read, _ = derivations.parse(table)
    value = closed_forms.bound(found.rule, read.value())
    document |= {"value": value, "value_hex": value.hex(), "statement": read.statement(value, read.points())}
    (tmp_path / "forged.json").write_text(json.dumps(document))
    with pytest.raises(RefutedCertificate, match=f"{name} of the network is not shown"):
        derived.verify_derived(tmp_path / "forged.json", list(found.graphs.values()))


@pytest.mark.parametrize("which", ["critic", "slope"])
def test_other_points_are_other_files(
    which: str, made: Callable[[str], derived.Derived], tmp_path: Path
) -> None:
    found = made(which)
    found.save(tmp_path / "a.json")
    beside = tmp_path / "a-samples.safetensors"
    data = beside.read_bytes()
    beside.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UnreadableCertificate, match="another file"):
        derived.verify_derived(tmp_path / "a.json", list(found.graphs.values()))


def pointed(folder: Path, name: str, first: Any, second: Any) -> dict[str, Any]:
    """A file of points, as a number names it."""
    data = write_safetensors({"first": torch.tensor(first).double(), "second": torch.tensor(second).double()})
    (folder / name).write_bytes(data)
    return {"name": name, "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("change", ["two files", "stated"])
def test_numbers_of_points_belong_together(
    change: str, made: Callable[[str], derived.Derived], tmp_path: Path
) -> None:
    """A gap of points far apart over the distance of two near ones: "no constant below 999.5" of one of 0.5."""
    found = made("slope")
    found.save(tmp_path / "a.json")
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["statement"].endswith(document["numbers"]["gap"]["samples"]["sha256"])
    far = pointed(tmp_path, "far.safetensors", [[9.0, 9, 9]], [[-9.0, -9, -9]])
    distance = document["numbers"]["distance"]
    if change == "two files":
        document["numbers"]["gap"]["samples"] = far
    else:
        document["numbers"]["distance"] = distance["computed"]
    document["statement"] = derivations.parse({**document, "statement": ""})[0].statement(document["value"])
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(UnreadableCertificate, match=r"different points|beside numbers that are stated"):
        derived.verify_derived(tmp_path / "a.json", list(found.graphs.values()))


FILE = {"name": "x", "sha256": "0" * 64}


@pytest.mark.parametrize("told", [{"computed": (1.0).hex()}, {"computed": (1.0).hex(), "samples": None},
                                  {"computed": {"computed": 1}, "samples": {"name": "x", "sha256": "0"}},
                                  {"computed": (1.0).hex(), "samples": {**FILE, "name": "../x"}},
                                  {"computed": (1.0).hex(), "samples": {**FILE, "more": 1}},
                                  ])  # fmt: skip
def test_strange_numbers_of_networks_are_unreadable(
    told: dict[str, Any], made: Callable[[str], derived.Derived], tmp_path: Path
) -> None:
    found = made("critic")
    document = found.to_json()
    document["numbers"]["gap"] = told
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(UnreadableCertificate):
        derived.verify_derived(tmp_path / "a.json", list(found.graphs.values()))
    document = derived.q_constant(1.0, 0.5, 0.5).to_json()
    document["numbers"]["reward"] = {"computed": (1.0).hex(), "samples": None}  # the reward is no network's
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(UnreadableCertificate, match="no number of a network"):
        derived.verify_derived(tmp_path / "a.json")


def test_a_constant_of_another_critic_is_refused() -> None:
    """A critic with a constant of 1/100 of its own made any distance a hundred times as large."""
    graph, other = random(3, 16, 1), random(3, 16, 1, seed=1)
    with pytest.raises(UsageError, match="another network"):
        derived.critic_distance(graph, points(5, 3), points(5, 3, 1), audited(other, ["product"]))


def test_a_number_without_a_certificate_is_not_checked() -> None:
    graph = random(3, 16, 1)
    found = derived.critic_distance(graph, points(5, 3), points(5, 3, 1), 10.0)
    assert found.rigour is Rigour.REAL
    assert derived.verify_derived(found).stated == ("constant", "gap")


def test_values_and_slopes_hold_what_a_network_does() -> None:
    graph = random(2, 8, 3, seed=3)
    program = of(model_of(graph))
    x = points(20, 2)
    low, high = quantities.values_at(program, x.numpy())
    exact = evaluate(graph, x).numpy()
    assert ((low <= exact + 1e-12) & (exact - 1e-12 <= high)).all()
    assert (high - low).max() < 1e-10
    first, last = quantities.slopes(program, Fraction(0.25))
    inside = (torch.rand(300, 2, dtype=torch.float64) * 2 - 1) * 0.25
    jacobians = torch.func.vmap(torch.func.jacrev(lambda v: evaluate(graph, v[None])[0]))(inside).numpy()
    assert (first <= jacobians).all()
    assert (jacobians <= last).all()


def of(model: Model) -> Any:
    assert model.program is not None
    return model.program.ending(0)


def test_the_steepest_edge() -> None:
    """Of diag(3, 1) on points along both axes: 3, by the definition; the certificate says at most 3."""
    graph = chain([torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))])
    at = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    found = derived.neighbour_slope(graph, at, audited(graph, ["product"]), neighbours=2)
    assert 3.0 - 1e-11 <= found.lower <= 3.0
    assert found.details["points"] == [0, 1]
    assert derived.neighbour_slope(graph, at[[0, 2, 3]], 3.0).lower == pytest.approx(1.0, rel=1e-12)
    for wrong, said in (
        (at[:1], "differ"),
        (at[2:], "differ"),
        (at[:, :1], "points are"),
        (at / 0.0, "finite"),
    ):
        with pytest.raises(UsageError, match=said):
            derived.neighbour_slope(graph, wrong, 3.0)
    with pytest.raises(UsageError, match="contradict"):
        derived.neighbour_slope(graph, at, 2.0)


def test_what_has_no_meaning_is_refused_in_words() -> None:
    graph = random(2, 4, 1)
    with pytest.raises(UsageError, match="finite numbers"):
        derived.game([math.nan, 1.0], [[0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(UsageError, match="array of numbers"):
        derived.neighbour_slope(graph, "points", 1.0)  # type: ignore[arg-type]
    with pytest.raises(Undecided, match="does not settle by itself"):
        derived.closed_loop(0.1, [[1.2, 0.0], [0.0, 0.5]], [[0.0], [1.0]])
    for wrong in (math.nan, -0.1, math.inf, "0"):
        with pytest.raises(UsageError, match="a remainder is a finite number >= 0"):
            derived.closed_loop(0.1, *PLANT, radius=0.1, remainder=wrong)
    for wrong in (math.nan, -1.0, 0.0, 0, math.inf, "1"):
        with pytest.raises(UsageError, match="a radius is a finite number above 0"):
            derived.closed_loop(graph, *PLANT, radius=wrong, by="sector")
    for wrong in (math.nan, -1.0, 0.0, math.inf, True):
        with pytest.raises(UsageError, match="noise multiplier"):
            derived.sensitivity(graph, 1.0).noise(wrong)


def test_safe_steps_rest_on_the_certificates_of_the_game() -> None:
    """The margin was a stated number of the step: nothing of the game's certificates was proved with it."""
    shifted = audited(random(1, 2, 1), ["product"])
    margin = derived.game([(3.0, shifted), (3.0, shifted)], [[0.0, 0.5], [0.25, 0.0]])
    step = derived.game_step(margin, [5.0, 5.0], [[0.0, 0.5], [0.25, 0.0]])
    assert sorted(step.certificates) == ["shifted-0", "shifted-1"]
    assert derived.verify_derived(step).stated == ("couplings",)
