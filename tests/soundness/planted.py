"""Forgeries by hand, one for every check that evidence has to pass: refused for its reason, false or a crash without that check.

PLANTED: the module and the words of a check -> a proof that this check alone keeps from being believed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from lipverify.checkers.kernel import Program
from lipverify.checkers.kernel.program import Affine, Lattice, View
from tests.soundness.forged import Case
from tests.unit.checkers.kernel.programs import Array, Writing, ball

INF, TWO = ("linf", "linf"), ("l2", "l2")
ZERO = (0.0).hex()


def linear(*matrices: Any) -> Program:
    w = Writing(np.shape(matrices[0])[1])
    for matrix in matrices:
        w.dense(np.array(matrix, dtype=np.float64))
    return w.program()


def kinked(first: Any, bias: Any, last: Any) -> Program:
    """last relu(first x + bias)."""
    w = Writing(np.shape(first)[1])
    w.dense(np.array(first, dtype=np.float64), np.array(bias, dtype=np.float64))
    w.scalar("Relu")
    w.dense(np.array(last, dtype=np.float64))
    return w.program()


def planted(program: Program, *regions: Any) -> Case:
    n = program.steps[0].size
    return Case("planted", program, list(regions) or [ball(np.zeros(n), 1.0)])


def derivatives(c: Case, ranges: int | None, rows: list[int], limit: float, norms: tuple[str, str] = INF, start: int = 0,
                end: int | None = None) -> int:  # fmt: skip
    end = c.last if end is None else end
    return c.add(
        "jacobian", start=start, end=end, ranges=ranges, rows=rows, norms=list(norms), limit=limit.hex()
    )


def lipsdp(c: Case, limit: float, norms: tuple[str, str] = TWO, **fields: Any) -> Case:
    """For programs without neurons, or with what is given."""
    default = {
        "start": 0,
        "end": c.last,
        "ranges": None,
        "wider": None,
        "blocks": [],
        "weights": None,
        "rows": c.rows(),
    }
    c.add("multipliers", **(default | {"norms": list(norms), "limit": limit.hex()} | fields))
    return c


def gain_of(steps: list[int], limit: float, program: Program, torus: Any = None) -> Case:
    c = planted(program)
    c.add("gain", chain=steps, torus=torus, limit=limit.hex())
    c.add("product", start=0, end=c.last, gains=[0], norms=list(TWO), limit=(limit * 1.01).hex())
    return c


def tokens(limit: float) -> Case:
    c = planted(ONES)
    c.add("tokens", within=None, norms=["token-l2/1", "linf"], limit=limit.hex())
    return c


def product(c: Case, limit: float, start: int = 0) -> Case:
    c.add("product", start=start, end=c.last, gains=[], norms=list(TWO), limit=limit.hex())
    return c


def convolution(scaling: Array, places: Array) -> Program:
    """One tap on six places, then a scaling that reads some of them."""
    w = Writing(6)
    taps = np.ones((1, 1, 1, 1))
    index = np.arange(6)[None, :, None]
    w.put(
        Affine(
            w.view(), 6, taps[:, :, 0], index, None, 0, Lattice(taps, (1, 6), (1,), (1,), ((0, 0),), False)
        )
    )
    w.put(Affine(View((1,), places), 6, scaling[:, None, None], np.arange(6)[:, None, None]))
    return w.program()


def over_frequencies(program: Program, torus: int, size: int, limit: float, channels: int = 1) -> Case:
    """A convolution of one channel along one axis, an activation, and a dense layer; or the last one alone."""
    c = planted(program)
    c.arrays["m"] = np.full(1, 1e8)
    c.add("frequencies", start=0, last=c.last - 1, through=c.last, end=c.last, image=[1, size, 1], torus=[torus, 1],
          channels=["m"] * channels, blocks=[], limit=limit.hex())  # fmt: skip
    return c


def apart() -> Program:
    """y_0 = -x_1, y_1 = x_0, behind an activation: on a torus of two points the two taps fall on one, and cancel."""
    w = Writing(2)
    w.conv(np.array([1.0, 0.0, -1.0]).reshape(1, 1, 1, 3, 1), (1, 2, 1), padding=((1, 1), (0, 0)))
    w.scalar("Relu")
    w.dense(np.eye(2))
    return w.program()


def implicit() -> Case:
    """z = relu(z / 2 + x) doubles what is positive."""
    w = Writing(1)
    w.implicit(np.array([[0.5]]), np.array([[1.0]]))
    c = planted(w.program())
    c.arrays["d"] = np.array([2.0])
    c.add("implicit", of=1, multipliers="d", limit=(1.9).hex())
    c.add("product", start=0, end=1, gains=[0], norms=list(TWO), limit=(1.95).hex())
    return c


def other_slopes() -> Case:
    c = planted(kinked(np.eye(2), [0.0, 0.0], 10 * np.eye(2)))
    c.arrays |= {"s": np.zeros((2, 2)), "d": np.ones(2)}
    return lipsdp(c, 0.1, ranges=c.ranges(), wider=["s"], blocks=["d"])


def sign() -> Case:
    c = planted(linear([[1.0, -1.0]]))
    c.add("sign", ranges=None, row=0, input=1, sign=1)
    return c


def convex() -> Case:
    c = planted(kinked(np.eye(2), [0.0, 0.0], np.array([[1.0, -1.0]])))
    c.add("convex", row=0, sign=1)
    return c


def value(rows: list[int], limit: float) -> Case:
    """y_0 = x_0, y_1 = 100 x_1."""
    c = planted(linear(np.diag([1.0, 100.0])))
    c.add("value", ranges=c.ranges(), rows=rows, sign=1, limit=limit.hex())
    return c


def steep() -> Case:
    """Of relu(x_0) + relu(x_1) it is said that it is above 1/2 where 5 x_0 is."""
    c = planted(kinked(np.eye(2), [0.0, 0.0], [[1.0, 1.0]]), ball(np.zeros(2), 1.0))
    c.arrays["s"] = np.full(2, 5.0)
    c.add("leaf", ranges=c.ranges(), conditions=[[-1, 0, (0.125).hex(), "above"], [-1, 1, (0.0).hex(), "above"]],
          weights=[(5.0).hex(), (5.0).hex()], slopes=["s"], rows=[0, 1], sign=1, limit=(0.5).hex())  # fmt: skip
    return c


def both_rows() -> Case:
    """y_0 = x_0 >= -2, and y_1 = 100 x_1."""
    c = planted(linear(np.diag([1.0, 100.0])))
    c.add(
        "leaf",
        ranges=c.ranges(),
        conditions=[],
        weights=[],
        slopes=None,
        rows=[0, 2],
        sign=1,
        limit=(-2.0).hex(),
    )
    return c


def half(entry: int) -> Case:
    """Of the inputs with x_1 > 1/4 it is said that there are none."""
    c = planted(linear(np.eye(2)))
    part = c.ranges(0, [-1, entry, (0.25).hex(), "above"])
    c.add("empty", ranges=part, weights=[(1.0).hex()])
    return c


def bump() -> Program:
    """Slope 100 for -1/2 < x < 1/2, and 0 elsewhere."""
    return kinked([[1.0], [1.0]], [0.5, -0.5], [[100.0, -100.0]])


def covered(
    program: Program, above: tuple[Any, list[int]], below: tuple[Any, list[int]], *regions: Any
) -> Case:
    """Derivatives of at most 0.1 on two parts, each a region and its conditions, and rows; then both together."""
    c = planted(program, *regions)
    sides = [derivatives(c, c.ranges(*part), rows, 0.1) for part, rows in (above, below)]
    c.add("cover", above=sides[0], below=sides[1])
    return c


def at(place: float, side: str) -> list[Any]:
    return [-1, 0, place.hex(), side]


def joined(program: Program, norm: str, *parts: dict[str, Any], regions: Any = ()) -> Case:
    c = planted(program, *regions)
    for part in parts:
        region = part.pop("region", None)
        part["ranges"] = None if region is None else c.ranges(region)
        part["made"] = derivatives(c, **part)
    c.add("rows", of=[part["made"] for part in parts], norm=norm)
    return c


def composed(program: Program, first: dict[str, Any], second: dict[str, Any]) -> Case:
    c = planted(program)
    c.add("compose", first=derivatives(c, None, **first), second=derivatives(c, None, **second))
    return c


def walked(program: Program, regions: list[Any], limit: float, norms: tuple[str, str], slope: float, row: int = 0,
           conditions: Any = (), known: int = 1, part: Any = ()) -> Case:  # fmt: skip
    """From a value on region 0 to region 1, by a constant on a part of region `known`."""
    c = planted(program, *regions)
    inner = c.add("value", ranges=c.ranges(0, *conditions), rows=[0, 1], sign=1, limit=limit.hex())
    constant = derivatives(c, c.ranges(known, *part), [row, row + 1], slope, norms)
    c.add("walk", value=inner, constants=[constant], regions=[1])
    return c


def beside() -> list[Any]:
    """Balls around 2: the point, one that holds the steep place of `bump`, and one that does not."""
    return [ball(np.array([2.0]), r) for r in (0.0, 3.0, 1.0)]


def balls(norm: str, n: int, *radii: float, move: float = 0.0) -> list[Any]:
    return [ball(np.full(n, move * k), r, norm) for k, r in enumerate(radii)]


def passed_by() -> Program:
    """relu(x) + 50 x."""
    w = Writing(1)
    first = w.dense(np.eye(1))
    w.dense(50 * np.eye(1), None, first)
    w.scalar("Relu", first)
    w.sum(3, 2)
    return w.program()


def edited(c: Case, number: int, **fields: Any) -> Case:
    c.document[number] |= fields
    return c


def wrong_kind() -> Case:
    c = gain_of([1], 20.1, ONES)
    c.add("compose", first=0, second=1)
    return c


ONES = linear(np.full((2, 2), 10.0))
"""Its constants: 20 in l2, 20 in linf, 20 root 2 from linf to l2 and from l2 to l1."""
THREE = linear(np.diag([1.0, 100.0, 1.0]))
STEPS = linear(np.eye(2), 100 * np.eye(2), np.eye(2))
TURNED = kinked([[1.0], [-1.0]], [-0.01, -0.01], 100 * np.eye(2))

APART = balls("linf", 1, 1.0, 1.0, move=-5.0)


def written_by_itself() -> Case:
    """9 + 5 max(y, 0) is at most 9.1: in a layer that is written by the next one, what that makes of it is overwritten."""
    w = Writing(2)
    w.dense(np.eye(2))
    w.scalar("Relu")
    w.dense(np.array([[0.0, 5.0], [0.0, 1.0]]), np.array([9.0, -0.01]))
    w.scalar("Relu")
    w.dense(np.eye(2))
    c = planted(w.program().beside(w.program()), ball(np.full(2, 0.25), 1.0))
    whole = c.add("carried", region=0, conditions=[], pairs=[[0, 1], [2, 3]])
    c.add("value", ranges=whole, rows=[0, 1], sign=-1, limit=(-9.1).hex())
    return c


def module_of(name: str) -> Any:
    """A module of the kernel, or of a theory, by its name in the table."""
    return import_module(f"lipverify.checkers.{name if name.startswith('theories.') else f'kernel.{name}'}")


PLANTED: dict[tuple[str, str], Callable[[], Case]] = {
    ("theorems", "steps that are no chain"): lambda: gain_of([1, 3], 1.001, STEPS),
    ("theorems", "the gain * of step * is not proved"): lambda: gain_of([1], 19.0, ONES),
    ("theorems", "the gains prove *"): lambda: product(planted(ONES), 19.0),
    ("theorems", "the multipliers of step *"): implicit,
    ("theories.frequencies.waves", "a torus smaller than a window"):
        lambda: over_frequencies(linear([[1.0, -1.0]]), 1, 2, 0.01, 0),
    ("theories.frequencies.waves", "a torus that taps wrap around"): lambda: over_frequencies(apart(), 2, 2, 0.01),
    ("theorems", "slopes that are not shown to be as given"): other_slopes,
    ("theorems", "the multipliers do not prove *"): lambda: lipsdp(planted(ONES), 19.0),
    ("theorems", "weights of the inputs go with linf"): lambda: lipsdp(planted(ONES), 20.1, ("linf", "l2")),
    ("theorems", "l1 of several rows"): lambda: lipsdp(planted(ONES), 20.1, ("l2", "l1")),
    ("theorems", "the derivatives prove *"): lambda: (lambda c: (derivatives(c, None, [0, 2], 19.0), c)[1])(planted(ONES)),
    ("theories.tokens", "norms of tokens prove *"): lambda: tokens(19.0),
    ("theories.signs", "a derivative without that sign"): sign,
    ("theories.signs", "a row that is not known to be convex"): convex,
    ("theorems", "a value that is not shown *"): lambda: value([1, 2], -50.0),
    ("theories.radii", "a part that is not shown to be empty"): lambda: half(1),
    ("theories.radii", "weights of other conditions"): lambda: edited(half(1), 1, weights=[]),
    ("theorems", "a part without conditions"): lambda: covered(linear([[0.01]]), ((0,), [0, 1]), ((0,), [0, 1])),
    ("theorems", "parts that are not the two sides of a condition"):
        lambda: covered(bump(), ((0, at(0.6, "above")), [0, 1]), ((0, at(-0.6, "below")), [0, 1])),
    ("theorems", "parts that differ in more than a condition"):
        lambda: covered(bump(), ((0, at(0.6, "above")), [0, 1]), ((1, at(0.6, "below")), [0, 1]), *APART),
    ("theorems", "facts that say different things of the two sides"):
        lambda: covered(TURNED, ((0, at(0.0, "above")), [1, 2]), ((0, at(0.0, "below")), [0, 1])),
    ("theorems", "no rows"): lambda: edited(joined(ONES, "l1", {"rows": [0, 1], "limit": 20.1}), 1, of=[]),
    ("theorems", "rows that do not follow each other"):
        lambda: joined(THREE, "linf", {"rows": [0, 1], "limit": 1.01}, {"rows": [2, 3], "limit": 1.01}),
    ("theorems", "constants of other functions"):
        lambda: joined(linear(np.eye(2), np.diag([1.0, 100.0])), "linf", {"rows": [0, 1], "limit": 1.01},
                       {"rows": [1, 2], "limit": 1.01, "end": 1}),
    ("theorems", "constants in another norm"):
        lambda: joined(linear(np.ones((3, 2))), "l1", {"rows": [0, 2], "limit": 2.01}, {"rows": [2, 3], "limit": 2.01}),
    ("theorems", "facts about different parts"):
        lambda: joined(TURNED, "linf", {"rows": [0, 1], "limit": 0.1, "region": 0}, {"rows": [1, 2], "limit": 0.1, "region": 1},
                       regions=[ball(np.array([-2.0]), 1.0), ball(np.array([2.0]), 1.0)]),
    ("theorems", "functions that do not follow"):
        lambda: composed(STEPS, {"rows": [0, 2], "limit": 1.01, "end": 1}, {"rows": [0, 2], "limit": 1.01, "start": 2}),
    ("theorems", "constants in different norms"):
        lambda: composed(linear(np.ones((4, 1)), np.ones((1, 4))),
                         {"rows": [0, 4], "limit": 1.01, "norms": ("l2", "linf"), "end": 1},
                         {"rows": [0, 1], "limit": 2.01, "norms": TWO, "start": 1}),
    ("theories.radii", "a constant of another function"):
        lambda: walked(linear(np.array([[100.0], [0.01]])), balls("linf", 1, 0.0, 1.0), -0.001, INF, 0.011, 1),
    ("theories.radii", "a constant of another ball"): lambda: walked(bump(), beside(), 99.0, INF, 0.1, known=2),
    ("theories.radii", "a constant of no whole ball"):
        lambda: walked(bump(), beside(), 99.0, INF, 0.1, part=[at(1.0, "above")]),
    ("theories.radii", "a constant in another norm than that of its ball"):
        lambda: walked(linear(np.ones((1, 4))), balls("linf", 4, 0.0, 1.0), -0.001, TWO, 2.01),
    ("theories.radii", "balls that do not grow"):
        lambda: walked(linear([[1.0]]), balls("linf", 1, 0.0, 1.0, move=-9.0), -0.001, INF, 1.01),
    ("theories.radii", "a value on no whole ball"):
        lambda: walked(linear([[1.0]]), balls("linf", 1, 1.0, 1.0), -0.001, INF, 1.01, conditions=[at(0.0, "above")]),
    ("theorems", "fact * is of another kind *"):
        wrong_kind,
    ("language", "an integer out of its range"): lambda: half(-1),
    ("language", "a number that is negative"): lambda: lipsdp(planted(ONES), -20.1),
    ("language", "an array that is not there"): lambda: edited(other_slopes(), 1, blocks=["e"]),
    ("theories.radii", "several rows"): both_rows,
    ("theories.radii", "slopes of lines outside *"): steep,
    ("language", "a list for other layers"): lambda: edited(other_slopes(), 1, blocks=[]),
    ("language", "none of *"): lambda: edited(product(planted(ONES), 21.0), 0, norms=["l3", "l2"]),
    ("theories.carried", "a layer that is written by what is computed from it"): written_by_itself,
    ("elementary", "a step that is no function of the other alone"):
        lambda: (lambda c: (derivatives(c, None, [0, 1], 1.01, start=3), c)[1])(planted(passed_by())),
    ("gains", "a step that is no function of the other alone"): lambda: product(planted(passed_by()), 2.0, start=3),
    ("gains", "a scaling that differs within a channel"):
        lambda: gain_of([1, 2], 1.001, convolution(np.array([1.0, 9.0, 1.0, 1.0, 1.0, 1.0]), np.arange(6)), [[6, 0]]),
    ("gains", "not one convolution with scalings"):
        lambda: gain_of([1, 2], 1.001, convolution(np.ones(6), np.zeros(6, dtype=np.int64)), [[6, 0]]),
}  # fmt: skip
