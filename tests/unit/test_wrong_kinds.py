"""Arguments of any kind, to every public function: an answer or one of our own sentences, never an error from inside."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify.errors import InternalError, LipverifyError
from lipverify.falsify import Search
from tests.tiers import FULL


class Odd:
    """An object of a class of its own."""


ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 2.5, float("nan"), float("inf"), 1j, "", "nonsense", "linf", b"bytes", "\0"),
    *([], [1, "a"], [[1], [1, 2]], {}, {"a": 1}, set(), (1, 2, 3), object(), Odd, Odd(), print, lambda: 0),
    *(np.zeros(3), np.array(["a"]), np.array(None), np.float32(1), np.int64(-3), np.zeros((2, 4)) * np.nan),
    *(
        torch.zeros(0),
        torch.zeros(2, 4),
        torch.zeros(2, 4, dtype=torch.complex64),
        torch.zeros(2, 4).to_sparse(),
    ),
    *(torch.zeros(2, 4, device="meta"), torch.tensor(1), torch.device("cpu"), torch.float32),
    *(
        nn.Linear(4, 2),
        nn.Linear,
        range(3),
        slice(2),
        Ellipsis,
        lv.Everywhere(),
        lv.Norm.L1,
        lv.Rigour.SOLVER,
    ),
)


@pytest.fixture(scope="module")
def graph() -> lv.Graph:
    torch.manual_seed(0)
    return lv.extract(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.zeros(2, 4))


def right(graph: lv.Graph) -> dict[str, dict[str, Any]]:
    """Arguments that every function answers, quickly."""
    x, ball = torch.zeros(2, 4), lv.Ball(torch.zeros(2, 4), 0.1)
    quick = {"analyzers": "product", "search": Search(seconds=0.01)}
    box = lv.InputBox((4,), -1, 1)
    return {
        "load": {"model": "zoo:wine-selu"},
        "extract": {"module": nn.Linear(4, 2).eval(), "example": x},
        "margin": {"graph": graph, "first": 0, "second": 1},
        "evaluate": {"graph": graph, "x": x},
        "audit": {"graph": graph, **quick},
        "bounds": {"graph": graph, "ball": ball, "method": "interval"},
        "radii": {"graph": graph, "x": x, "y": [0, 1], "method": "crown", "proofs": False, "budget": 0.1},
        "compare": {"models": {"a": graph}, "analyzers": "product", "budget": 0.1},
        "monotone": {"graph": graph, "region": (0, 1), "features": 0, "output": 0, "budget": 0.1},
        "ask": {"question": lv.Deviation(graph, graph, box), "budget": 0.1},
        "deviation": {"f": graph, "g": graph, "region": box, "budget": 0.1},
        "execution_error": {"graph": graph, "box": (0, 1)},
        "convex": {"graph": graph},
        "closed_loop": {"policy": 0.1, "dynamics": [[0.9, 0.1], [0.0, 0.8]], "control": [[0.0], [1.0]]},
        "game": {"curvature": [1.0, 1.0], "couplings": [[0.0, 4.0], [0.1, 0.0]]},
        "sensitivity": {"graph": graph, "reach": 1.0, "analyzers": "product"},
        "verify": {"certificate": "absent.json", "model": graph},
        "Ball": {"center": x, "radius": 0.1},
        "InputBox": {"shape": (4,), "low": 0, "high": 1},
        "Query": {},
        "Deviation": {"f": graph, "g": graph, "region": box},
    }


def public_functions() -> list[str]:
    return sorted(
        name
        for name in lv.__all__
        if inspect.isfunction(getattr(lv, name)) or name in ("Ball", "InputBox", "Query", "Deviation")
    )


def test_every_public_function_is_asked(graph: lv.Graph) -> None:
    assert set(right(graph)) == set(public_functions())


def raw(function: Callable[..., Any], given: dict[str, Any]) -> str | None:
    """The error from inside that a call ends in; None for an answer or a sentence."""
    try:
        function(**given)
    except LipverifyError as error:
        fine = not isinstance(error, InternalError) and 5 < len(str(error)) < 900
        return None if fine else f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("name", public_functions())
def test_no_argument_of_any_kind_ends_in_an_error_from_inside(name: str, graph: lv.Graph) -> None:
    function, given = getattr(lv, name), right(graph)[name]
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert raw(function, given) is None
    found = {
        f"{parameter.name}={odd!r:.60}": error
        for (place, parameter), (kind, odd) in itertools.product(enumerate(parameters), enumerate(ODD))
        if FULL or (place + kind) % 4 == 0
        # A callback of the user's may raise what it likes.
        if not (callable(odd) and parameter.name in ("report", "advance", "expired"))
        if (error := raw(function, {**given, parameter.name: odd})) is not None
    }
    assert not found, "\n".join(f"{what}: {error:.200}" for what, error in found.items())


def test_arguments_that_are_none_of_theirs_are_named(graph: lv.Graph) -> None:
    with pytest.raises(lv.UsageError, match='audit has no argument "nrom"; did you mean "norm"'):
        lv.audit(graph, nrom="l2")
    with pytest.raises(lv.UsageError, match="missing a required argument: 'graph'"):
        lv.audit()
    with pytest.raises(lv.UsageError, match="give example=x"):
        lv.audit(nn.Linear(4, 2))
    with pytest.raises(lv.UsageError, match="make an object of the class first"):
        lv.audit(nn.Linear, example=torch.zeros(2, 4))
    with pytest.raises(AttributeError, match='did you mean "audit"'):
        lv.adit  # noqa: B018
