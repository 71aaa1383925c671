"""Forged evidence, made from the grammar of proofs: every field of valid proofs replaced by every edge value, in turn.

A changed proof may be accepted only if all facts that it then adds are true, as far as points and directions can tell.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from lipverify.checkers.kernel import Condition, Constant, Program, Region, Subject, parse_steps, prove
from lipverify.checkers.kernel.jacobians import jacobian_limit
from lipverify.checkers.kernel.multipliers import multipliers_hold
from lipverify.checkers.kernel.neurons import differences
from lipverify.checkers.kernel.program import Affine, Lattice, Product, Softmax, View
from lipverify.checkers.kernel.proof import added, every_kind
from lipverify.checkers.kernel.ranges import Ranges
from lipverify.checkers.kernel.theorems import (
    AtLeast,
    Emptiness,
    Facts,
    Gained,
    Known,
    Part,
    Rows,
    lowest,
    picked,
)
from lipverify.checkers.theories.radii import largest_where
from lipverify.checkers.theories.signs import Bent, Monotone
from lipverify.errors import RefutedCertificate, UnreadableCertificate
from tests.unit.checkers.kernel.programs import Array, Writing, ball, mlp, pooled, results, shown

Document = list[dict[str, Any]]
ORDER = {"l1": 1.0, "l2": 2.0, "linf": np.inf}
_ROOM = 1.0 + 1e-9


@dataclass
class Case:
    """A valid proof."""

    name: str
    program: Program
    regions: list[Region]
    document: Document = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)

    def add(self, kind: str, **fields: Any) -> int:
        self.document.append({"step": kind, **fields})
        return len(self.document) - 1

    @property
    def last(self) -> int:
        return len(self.program.steps) - 1

    def rows(self) -> list[int]:
        return [0, self.program.steps[-1].size]

    def ranges(self, region: int = 0, *conditions: list[Any]) -> int:
        return self.add("ranges", region=region, conditions=list(conditions))

    def jacobian(
        self, ranges: int | None, rows: list[int], norms: tuple[str, str], slack: float = _ROOM
    ) -> int:
        """With the least limit, or with less room than that."""
        subject = Subject(self.program, self.regions)
        known, slopes, elements = None, lambda k: None, subject.elements
        if ranges is not None:
            (step,) = parse_steps([self.document[ranges]], {}, subject)
            fact = added(Facts(subject), step)
            assert isinstance(fact, Known)
            known = fact.ranges
            slopes, elements = known.slopes.get, known.program
        found = differences(elements, 0, len(elements.steps) - 1, slopes)
        own = found.output.rows(range(*rows[:2]))
        if len(rows) == 3:
            own = picked(found.output, Rows(*rows))
        limit = jacobian_limit(found, known, own, norms) * slack
        fields = {
            "start": 0,
            "end": self.last,
            "ranges": ranges,
            "rows": rows,
            "norms": list(norms),
            "limit": limit.hex(),
        }
        return self.add("jacobian", **fields)

    def value(self, ranges: int, rows: list[int], sign: int) -> int:
        """With the largest limit."""
        subject = Subject(self.program, self.regions)
        (step,) = parse_steps([self.document[ranges]], {}, subject)
        known = added(Facts(subject), step)
        assert isinstance(known, Known)
        low = lowest(known.ranges, Rows(*rows), sign)
        return self.add("value", ranges=ranges, rows=rows, sign=sign, limit=low.hex())

    def multipliers(self, ranges: int | None, rows: list[int], norms: tuple[str, str], start: int = 0, end: int | None = None,
                    wider: bool = False) -> int:  # fmt: skip
        """Multipliers of one family, with the least limit of a fine grid."""
        subject = Subject(self.program, self.regions)
        end = self.last if end is None else end
        known = {}
        if ranges is not None:
            facts = parse_steps([self.document[ranges]], {}, subject)
            known = dict(
                Ranges(
                    subject.elements, self.regions[facts[0].fields["region"]], facts[0].fields["conditions"]
                ).slopes
            )
        layers, number = subject.layers(start, end), len(self.document)
        names: list[str | None] = [None] * len(layers)
        if wider:
            for n, k in enumerate(layers):
                low, high = known[k]
                known[k] = low - 0.01, high + 0.01
                names[n] = f"slopes.{number}.{n}"
                self.arrays[str(names[n])] = np.array(known[k])
        place = subject.elements.place
        found = differences(subject.elements, place[start], place[end], known.get)
        tau = np.linspace(1.0, 1.5, found.inputs) if norms[0] == "linf" else None
        best: tuple[float, list[Array]] = (math.inf, [])
        for growth, first in itertools.product((1.0, 6.0), (0.7, 2.0, 12.0)):
            whole = [np.full(subject.elements.size(k), first * growth**n) for n, k in enumerate(layers)]
            at = {k: n for n, k in enumerate(layers)}
            own = [whole[at[k]][free] for k, free, _ in found.layers]
            low, high = 1e-3, min(best[0], 1e4)
            if not multipliers_hold(found, found.output.rows(range(*rows)), own, high, tau):
                continue
            for _ in range(40):
                middle = math.sqrt(low * high)
                holds = multipliers_hold(found, found.output.rows(range(*rows)), own, middle, tau)
                low, high = (low, middle) if holds else (middle, high)
            best = high, whole
        for n, d in enumerate(best[1]):
            self.arrays[f"blocks.{number}.{n}"] = d
        if tau is not None:
            self.arrays[f"weights.{number}"] = tau
        return self.add("multipliers", start=start, end=end, ranges=ranges, wider=names if wider else None,
                        blocks=[f"blocks.{number}.{n}" for n in range(len(layers))], rows=rows, norms=list(norms),
                        weights=f"weights.{number}" if tau is not None else None, limit=best[0].hex())  # fmt: skip

    def gains(self) -> list[int]:
        found = []
        for k, step in enumerate(self.program.steps):
            if isinstance(step, Affine):
                limit = float(np.linalg.norm(step.kernel[0], 2)) * (1 + 1e-8)
                found.append(self.add("gain", chain=[k], torus=None, limit=limit.hex()))
        return found


@lru_cache(maxsize=1)
def cases() -> list[Case]:
    """Valid proofs with every kind of step, on small programs."""
    rng = np.random.default_rng(11)
    found = []
    norms = ("l2", "l2"), ("linf", "linf")

    case = Case("everywhere", mlp(rng, (3, 6, 5, 2), "LeakyRelu", alpha=0.1), [])
    gains = case.gains()
    for pair, limit in ((norms[0], 100.0), (norms[1], 500.0)):
        case.add("product", start=0, end=5, gains=gains, norms=list(pair), limit=limit.hex())
    case.multipliers(None, [0, 2], norms[0])
    ones = [case.multipliers(None, [r, r + 1], ("linf", "l1")) for r in (0, 1)]
    case.add("rows", of=ones, norm="l1")
    found.append(case)

    program = mlp(np.random.default_rng(2), (3, 7, 6, 2))
    case = Case("ball", program, [ball(np.array([0.1, -0.2, 0.3]), 0.3)])
    whole = case.ranges()
    case.jacobian(whole, [0, 2], norms[1])
    case.jacobian(whole, [0, 2], norms[0])
    case.jacobian(whole, [0, 1, 1], ("linf", "linf"))
    case.multipliers(whole, [0, 2], norms[0])
    case.multipliers(whole, [1, 2], ("linf", "l2"), wider=True)
    known = Ranges(Subject(program).elements, case.regions[0], ())
    low, high = known.chain.ranges(known.output)
    case.add("value", ranges=whole, rows=[0, 1], sign=1, limit=float(low[0] - 1e-9).hex())
    case.add("value", ranges=whole, rows=[1, 2], sign=-1, limit=float(-high[1] - 1e-9).hex())
    found.append(case)

    case = Case("parts", program, [ball(np.array([0.1, -0.2, 0.3]), 0.5)])
    free = int(
        np.flatnonzero(
            (lambda s: s[1] > s[0])(Ranges(Subject(program).elements, case.regions[0], ()).slopes[0])
        )[0]
    )
    halves = []
    for side in ("above", "below"):
        quarters = []
        for inner in ("above", "below"):
            part = case.ranges(0, [0, free, (0.0).hex(), side], [-1, 1, (-0.2).hex(), inner])
            quarters.append(case.jacobian(part, [0, 2], norms[1]))
        halves.append(case.add("cover", above=quarters[0], below=quarters[1]))
    case.add("cover", above=halves[0], below=halves[1])
    found.append(case)

    case = Case("leaves", program, [ball(np.array([0.1, -0.2, 0.3]), 0.5)])
    whole, known = case.ranges(), Ranges(Subject(program).elements, case.regions[0], ())
    case.arrays["flat"], weights = np.linspace(0.0, 1.0, 7), [0.25, 0.5]
    halves = []
    for side in ("above", "below"):
        leaves = []
        for inner in ("above", "below"):
            both = Condition(0, free, 0.0, side == "above"), Condition(1, 2, 0.125, inner == "above")
            said = [[c.layer, c.entry, c.at.hex(), "above" if c.above else "below"] for c in both]
            most = largest_where(known, known.output.rows([1]), both, weights, {0: case.arrays["flat"]})
            leaves.append(
                case.add(
                    "leaf", ranges=whole, conditions=said,
                    weights=[w.hex() for w in weights], slopes=["flat", None], rows=[1, 2], sign=-1,
                    limit=float(-most - Fraction(1e-9)).hex(),
                )
            )  # fmt: skip
        halves.append(case.add("cover", above=leaves[0], below=leaves[1]))
    case.add("cover", above=halves[0], below=halves[1])
    found.append(case)

    case = Case("maxima", pooled(rng, (3, 12, 6, 2), 3), [ball(np.array([0.1, -0.2, 0.3]), 0.4)])
    whole = case.add("largest", region=0)
    for pair in norms:
        case.jacobian(whole, [0, 2], pair)
    case.value(whole, [0, 1], 1)
    found.append(case)

    case = Case("empty", program, [ball(np.array([0.1, -0.2, 0.3]), 0.5, "l2")])
    # The l2 ball holds no corner of its box: x_0 and x_1 both far to one side. The conditions alone do not contradict each other.
    side = (0.1 + 0.45), (-0.2 + 0.45)
    corner = [[-1, 0, side[0].hex(), "above"], [-1, 1, side[1].hex(), "above"]]
    void = case.add("empty", ranges=case.ranges(0, *corner), weights=[(1.0).hex(), (1.0).hex()])
    rest = case.jacobian(case.ranges(0, corner[0], [-1, 1, side[1].hex(), "below"]), [0, 2], norms[0])
    case.add("cover", above=void, below=rest)
    found.append(case)

    case = Case("pieces", mlp(rng, (3, 5, 4, 5, 2), "Tanh"), [ball(np.zeros(3), 0.4)])
    whole = case.ranges()
    first = case.multipliers(whole, [0, 4], norms[0], 0, 3)
    second = case.multipliers(whole, [0, 2], norms[0], 3, case.last, wider=True)
    case.add("compose", first=first, second=second)
    third = case.add("product", start=3, end=case.last, gains=[], norms=["l2", "l2"], limit=(300.0).hex())
    case.add("compose", first=first, second=third)
    found.append(case)

    w = Writing(3)
    w.dense(rng.standard_normal((4, 3)) / 2)
    recurrent, inputs = 0.15 * rng.standard_normal((4, 4)), rng.standard_normal((4, 4))
    w.implicit(recurrent, inputs, rng.standard_normal(4))
    w.dense(rng.standard_normal((2, 4)) / 2)
    case = Case("implicit", w.program(), [])
    case.arrays["d"] = np.full(4, 5.0)
    gain = case.add("implicit", of=2, multipliers="d", limit=(20.0).hex())
    case.document[gain]["limit"] = _least(case, gain, 0.1, 20.0)
    case.add("product", start=0, end=3, gains=[gain], norms=["l2", "l2"], limit=(60.0).hex())
    case.multipliers(None, [0, 2], norms[0])
    found.append(case)

    centre = np.array([0.4, -0.1, 0.2])
    case = Case("walk", program, [ball(centre, r, "l2") for r in (0.0, 0.05, 0.2)])
    point = Ranges(Subject(program).elements, case.regions[0], ())
    limit = float(point.chain.ranges(point.output.rows([0]))[0][0]) - 1e-9
    start = case.add("value", ranges=case.ranges(0), rows=[0, 1], sign=1, limit=limit.hex())
    steps = [case.jacobian(case.ranges(k), [0, 1], norms[0]) for k in (1, 2)]
    case.add("walk", value=start, constants=steps, regions=[1, 2])
    found.append(case)

    w = Writing(3)
    w.dense(np.abs(rng.standard_normal((5, 3))))
    w.scalar("Tanh")
    w.dense(np.abs(rng.standard_normal((1, 5))))
    case = Case("sign", w.program(), [ball(np.zeros(3), 0.5)])
    for ranges in (None, case.ranges()):
        for j in (0, 2):
            case.add("sign", ranges=ranges, row=0, input=j, sign=1)
    found.append(case)

    w = Writing(3)
    w.dense(rng.standard_normal((5, 3)))
    w.scalar("Relu")
    w.dense(np.abs(rng.standard_normal((2, 5))) * np.array([[1.0], [-1.0]]))
    case = Case("convex", w.program(), [])
    for row, sign in ((0, 1), (1, -1)):
        case.add("convex", row=row, sign=sign)
    found.append(case)

    w = Writing(6)
    taps, image, padding = rng.standard_normal((1, 2, 1, 3)), (1, 6), ((1, 1),)
    places = np.arange(6)[:, None] + np.arange(-1, 2)
    index = np.where((places >= 0) & (places < 6), places, -1)[None]
    w.put(
        Affine(w.view(), 12, taps[:, :, 0], index, None, 0, Lattice(taps, image, (1,), (1,), padding, False))
    )
    w.scalar("Relu")
    w.dense(rng.standard_normal((2, 12)) / 3)
    case = Case("torus", w.program(), [])
    torus = case.add("gain", chain=[1], torus=[[8, 1]], limit=(20.0).hex())
    case.document[torus]["limit"] = _least(case, torus, 0.1, 20.0)
    dense = case.add(
        "gain", chain=[3], torus=None, limit=(float(np.linalg.norm(w.steps[3].kernel[0], 2)) * _ROOM).hex()
    )
    case.add("product", start=0, end=3, gains=[torus, dense], norms=["l2", "l2"], limit=(100.0).hex())
    found.append(case)

    found.append(convolutions())

    w = Writing(3)
    w.dense(rng.standard_normal((6, 3)) / 2, 0.3 * rng.standard_normal(6))
    w.softmax(3)
    gate = w.scalar("Silu", beta=1.0)
    w.product(1, gate)
    w.normalise(6, np.ones(6), np.zeros(6), 0.1)
    w.sort(3)
    w.dense(rng.standard_normal((2, 6)) / 2)
    case = Case("products", w.program(), [ball(np.array([0.3, 0.1, -0.2]), 0.05)])
    whole = case.ranges()
    case.jacobian(whole, [0, 2], norms[0])
    case.multipliers(whole, [0, 2], norms[0])
    found.append(case)

    found.append(attention(np.random.default_rng(5)))
    found.append(pair_of_networks())
    for case in found:
        _tight(case)
    return found


def convolutions() -> Case:
    """A block with a shortcut, a stride, and a dense part of two layers, over frequencies."""
    rng, w, side = np.random.default_rng(4), Writing(6), ((1, 1), (0, 0))
    w.conv(rng.standard_normal((1, 2, 1, 3, 1)) / 2, (1, 6, 1), padding=side)
    first = w.scalar("Relu")
    w.sum(first, w.conv(rng.standard_normal((1, 2, 2, 3, 1)) / 3, (2, 6, 1), padding=side))
    w.scalar("Relu")
    w.conv(rng.standard_normal((1, 2, 2, 3, 1)) / 2, (2, 6, 1), (2, 1), padding=side)
    last = w.scalar("Relu")
    through = w.dense(rng.standard_normal((3, 6)) / 2)
    w.scalar("Relu")
    w.dense(rng.standard_normal((2, 3)))
    case = Case("frequencies", w.program(), [])
    case.arrays |= {f"channels.{k}": np.array([0.3, 0.35]) * 0.3**k for k in range(3)} | {
        "behind": np.full(3, 40.0)
    }
    case.add("frequencies", start=0, last=last, through=through, end=case.last, image=[1, 6, 1], torus=[8, 1],
             channels=[f"channels.{k}" for k in range(3)], blocks=["behind"], limit=(100.0).hex())  # fmt: skip
    case.document[0]["limit"] = _least(case, 0, 0.1, 100.0)
    return case


def attention(rng: np.random.Generator) -> Case:
    """Two tokens of two numbers: attention, then a residual block of normalised tokens."""
    w = Writing(4)
    token = np.arange(4).reshape(1, 2, 2)

    q, k, v = (w.put(Affine(w.view(0), 4, rng.standard_normal((1, 2, 2)), token)) for _ in range(3))
    # Entry e of token i lies at 2 e + i: scores [i, j] are sums over e.
    i, j, e = np.meshgrid(np.arange(2), np.arange(2), np.arange(2), indexing="ij")
    products = w.put(Product(View((q,), (2 * e + i).ravel()), 8, View((k,), (2 * e + j).ravel())))
    scores = w.put(Affine(w.view(products), 4, np.ones((1, 1, 2)), np.arange(8).reshape(1, 4, 2)))
    weights = w.put(Softmax(w.view(scores), 4, np.arange(4).reshape(2, 2)))
    i, e, j = np.meshgrid(np.arange(2), np.arange(2), np.arange(2), indexing="ij")
    products = w.put(Product(View((weights,), (2 * i + j).ravel()), 8, View((v,), (2 * e + j).ravel())))
    mixed = w.put(Affine(w.view(products), 4, np.ones((1, 1, 2)), np.arange(8).reshape(1, 4, 2)))
    added = w.sum(0, mixed)
    w.normalise(2, np.array([1.0, 0.5]), np.array([0.1, 0.0]), 0.25)
    w.put(Affine(w.view(), 4, rng.standard_normal((1, 2, 2)), token))
    w.put(Affine(w.view(), 4, np.eye(2)[None], np.array([[[0, 2], [1, 3]]])))
    w.scalar("Silu", beta=1.0)
    w.put(Affine(w.view(), 4, np.ones((1, 1, 1)), np.array([0, 2, 1, 3]).reshape(1, 4, 1)))
    w.sum(added, len(w.steps) - 1)
    case = Case("attention", w.program(), [])
    for norms in (["token-rms/2", "token-rms/2"], ["token-l2/2", "linf"], ["token-rms/2", "token-l2/1"]):
        number = case.add("tokens", within=["token-l2/2", (1.5).hex()], norms=norms, limit=(1000.0).hex())
        case.document[number]["limit"] = _least(case, number, 0.0, 1000.0)
    return case


def pair_of_networks() -> Case:
    """A network and one next to it: their difference over a ball and over parts of it, entries and differences of entries."""
    first = mlp(np.random.default_rng(2), (3, 7, 6, 2))
    rng, w = np.random.default_rng(3), Writing(3)
    for step in first.steps[1:]:
        if isinstance(step, Affine):
            assert step.offset is not None
            w.dense(step.kernel[0] + 0.01 * rng.standard_normal(step.kernel[0].shape), step.offset)
        else:
            w.scalar("Relu")
    program = first.beside(w.program())
    case = Case("pair", program, [ball(np.array([0.1, -0.2, 0.3]), 0.4)])
    pairs = [[2, 0], [3, 1]]
    whole = case.add("carried", region=0, conditions=[], pairs=pairs)
    case.value(whole, [4, 6], 1)
    case.value(whole, [4, 5, 5], -1)
    case.value(case.add("carried", region=0, conditions=[], pairs=[[0, 2], [1, 3]]), [4, 6], -1)
    some = case.add(
        "carried", region=0, conditions=[], pairs=[[2, 0, [6, 0, 0, 3, 4, 5, 1]], [3, 0, [0, 1, 2, 3, 4, 5]]]
    )
    case.value(some, [4, 6], 1)
    sides = []
    for side in ("above", "below"):
        part = case.add("carried", region=0, conditions=[[-1, 0, (0.1).hex(), side]], pairs=pairs)
        sides.append(case.value(part, [4, 6], 1))
    case.add("cover", above=sides[0], below=sides[1])
    return case


def _least(case: Case, number: int, low: float, high: float) -> str:
    """The least limit of a step, by bisection; the step uses no ranges, whose facts `prove` does not keep."""
    subject = Subject(case.program, case.regions)
    facts = Facts(subject)
    facts.found += prove(parse_steps(case.document[:number], case.arrays, subject), subject)
    for _ in range(60):
        middle = (low + high) / 2
        document = [*case.document[:number], case.document[number] | {"limit": middle.hex()}]
        try:
            with np.errstate(all="ignore"):
                added(facts, parse_steps(document, case.arrays, subject)[number])
            high = middle
        except RefutedCertificate:
            low = middle
    return high.hex()


def _tight(case: Case) -> None:
    """The least limits of products, so that less is a false step wherever the bound itself is not loose."""
    for number, step in enumerate(case.document):
        if step["step"] == "product":
            step["limit"] = _least(case, number, 0.0, 1000.0)


# -- changes

TEXTS = """ |1|nan|inf|-0x0.0p+0|0x0.0p+0|0x1p+0|0x1.0000000000000p+0|-0x1.0000000000000p+0|0x0.0000000000001p-1022|
0x1.fffffffffffffp+1023|0x1.0000000000000p-300|l1|l2|linf|above|below""".replace("\n", "").split("|")


def edges(rng: np.random.Generator, value: Any, names: Sequence[str], count: int) -> Iterator[Any]:
    """Values that a field could hold in place of this one."""
    yield from (
        -1,
        0,
        1,
        2,
        count - 1,
        count,
        count + 1,
        10**9,
        1 << 64,
        True,
        False,
        None,
        1.5,
        math.nan,
        math.inf,
    )
    yield from TEXTS
    yield from ([], {}, [value], [value, value], {"step": value})
    yield from names
    if isinstance(value, str) and value.lstrip("-").startswith("0x"):
        number = float.fromhex(value)
        for factor in (1 - 1e-6, 0.9, 0.5, 0.1, 1e-3, -1.0, 2.0, float(rng.uniform(0.5, 1.0))):
            yield (number * factor).hex()
    if type(value) is int:
        yield from (value - 1, value + 1, -value, float(value), str(value))


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value in a document, with the way to it."""
    if path:
        yield path, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def changed(document: Document, path: tuple[Any, ...], value: Any) -> Document:
    found = copy.deepcopy(document)
    node: Any = found
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return found


def documents(case: Case, rng: np.random.Generator) -> Iterator[Document]:
    """Every value by every edge value; steps and fields left out, repeated, exchanged, and steps in place of others."""
    document, names = case.document, sorted(case.arrays)
    for path, value in places(document):
        count = case.program.steps[-1].size if path[-1] in ("rows", "row") else len(document)
        for other in edges(rng, value, names, count):
            if type(other) is not type(value) or other != value:
                yield changed(document, path, other)
        if isinstance(value, list) and len(value) > 1:
            yield changed(document, path, value[::-1])
            yield changed(document, path, value[:-1])
            yield changed(document, path, [*value, value[-1]])
        if isinstance(value, dict):
            for key in value:
                yield changed(document, path, {k: v for k, v in value.items() if k != key})
            yield changed(document, path, value | {"note": 0})
            yield from (
                changed(document, path, value | {"step": kind})
                for kind in [*every_kind(), "lemma", "__init__"]
            )
            yield from (changed(document, path, other) for other in document if other is not value)
    for i in range(len(document)):
        yield document[:i] + document[i + 1 :]
        yield [*document[:i], document[-1], *document[i:]]


def arrays(case: Case, rng: np.random.Generator) -> Iterator[dict[str, Array]]:
    """Arrays of other types, shapes and numbers, and arrays of other steps."""
    for name, array in case.arrays.items():
        others = [array.astype(kind) for kind in (np.float32, np.int64, object)]
        others += [array[..., :-1], array[None], array.reshape(-1, 1), np.float64(1.0), array[..., ::-1]]
        for other in others + [array * factor for factor in (0.0, -1.0, 1e-300, 1e300)]:
            yield case.arrays | {name: np.asarray(other)}
        for factor in (0.25, 0.5, 0.9, 0.99, 1.01, 2.0, 8.0):
            yield case.arrays | {name: array * factor}
        for value in (0.0, -0.0, -1.0, 5e-324, 1e308, np.nan, np.inf, -np.inf):
            place = tuple(int(rng.integers(n)) for n in array.shape)
            other = array.copy()
            other[place] = value
            yield case.arrays | {name: other}
        yield from (case.arrays | {name: other} for key, other in case.arrays.items() if key != name)
        yield {k: v for k, v in case.arrays.items() if k != name}


def forgeries(
    found: Sequence[Case], count: int, seed: int
) -> Iterator[tuple[Case, Document, dict[str, Array]]]:
    """At least `count` changed proofs: every single change or, where these are more, some of them; then pairs of changes."""
    rng = np.random.default_rng(seed)
    single = [(c, d, c.arrays) for c in found for d in documents(c, rng)]
    single += [(c, c.document, a) for c in found for a in arrays(c, rng)]
    order = rng.permutation(len(single))
    yield from (single[k] for k in order[:count])
    for k in range(max(0, count - len(single))):
        case, document, beside = single[order[k % len(order)]]
        if document:
            ways = [(path, value) for path, value in places(document) if len(path) > 1]
            path, value = ways[int(rng.integers(len(ways)))]
            options = list(edges(rng, value, sorted(beside), len(document)))
            document = changed(document, path, options[int(rng.integers(len(options)))])
        yield case, document, beside


# -- what is true


class Truth:
    """Points of everything and of the regions of a case, with derivatives of all steps there."""

    def __init__(self, case: Case, rng: np.random.Generator, count: int = 150) -> None:
        self.case, self.subject = case, Subject(case.program, case.regions)
        n, h = case.program.steps[0].size, 1e-6
        x = [rng.standard_normal((count, n)) * rng.choice([0.3, 1.0, 3.0], (count, 1))]
        for region in case.regions:
            step = np.clip(rng.uniform(-1, 1, (count, n)) * rng.choice([0.3, 1.0, 3.0], (count, 1)), -1, 1)
            length = (
                np.linalg.norm(step, axis=1, keepdims=True) if region.norm == "l2" else np.ones((count, 1))
            )
            x.append(region.centre + region.radius * step / np.maximum(1.0, length))
        self.x = np.concatenate(x)
        self.values = results(case.program.steps, self.x)
        ends = [[results(case.program.steps, self.x + s * h * e) for s in (1, -1)] for e in np.eye(n)]
        self.slopes = [
            np.stack([(a[k] - b[k]) / (2 * h) for a, b in ends], -1) for k in range(len(self.values))
        ]
        self.elements = results(self.subject.elements.steps, self.x)
        self.directions = np.concatenate(
            [np.eye(n), rng.standard_normal((20, n)), rng.choice([-1.0, 1.0], (20, n))]
        ).T

    def inside(self, part: Part) -> Array:
        """Which points are in a part, none of them at its edge."""
        x = self.x
        found = np.ones(len(x), dtype=bool)
        if part.region is not None:
            region = self.case.regions[part.region]
            apart = np.linalg.norm(x - region.centre, 2 if region.norm == "l2" else np.inf, axis=1)
            found = (
                (apart <= region.radius * (1 - 1e-4)) & (x >= region.low).all(1) & (x <= region.high).all(1)
            )
        if part.within is not None:
            found &= (
                _length(x[..., None], f"{part.within.norm}/{part.within.width}")[:, 0] <= part.within.most
            )
        for c in part.conditions:
            v = self.x
            if c.layer >= 0:
                step = self.subject.elements.steps[self.subject.elements.layers[c.layer]]
                views = [step.view, step.other] if isinstance(step, Product) else [step.view]
                v = np.concatenate([shown(view, self.elements) for view in views], 1)
            found &= (v[:, c.entry] > c.at + 1e-5) if c.above else (v[:, c.entry] < c.at - 1e-5)
        return np.asarray(found)

    def holds(self, fact: Any) -> bool:
        """Whether no point contradicts a fact."""
        if isinstance(fact, Gained):
            steps = self.case.program.steps
            size = len(steps[fact.first].view.places)
            ones = np.random.default_rng(0).standard_normal((60, size))
            if not isinstance(steps[fact.first], Affine):
                return float(fact.gains["l2", "l2"]) > 0  # implicit layers: behind a product, below
            y = ones
            for step in steps[fact.first : fact.last + 1]:
                y = np.einsum(
                    "got,ngpt->ngop", step.kernel, np.append(y, 0 * y[:, :1], 1)[:, step.index]
                ).reshape(60, -1)
            slopes = {
                (p, q): np.linalg.norm(y, ORDER[q], axis=1) / np.linalg.norm(ones, ORDER[p], axis=1)
                for p, q in fact.gains
            }
            return all(bool((v <= float(fact.gains[pair]) * (1 + 1e-9)).all()) for pair, v in slopes.items())
        at = self.inside(fact.part)
        most = float(max(min(fact.limit, Fraction(10) ** 300), -(Fraction(10) ** 300)))
        if isinstance(fact, Emptiness):
            return not at.any()
        if isinstance(fact, Constant):
            before, after = (self.slopes[k][at] @ self.directions for k in (fact.start, fact.end))
            after = after[:, slice(*fact.rows[:2])] - (
                0 if fact.rows.minus is None else after[:, [fact.rows.minus]]
            )
            speeds = [_length(v, n) for v, n in zip((before, after), fact.norms, strict=True)]
            return bool((speeds[1] <= most * speeds[0] * (1 + 1e-6) + 1e-7).all())
        if isinstance(fact, AtLeast):
            y = self.values[-1][at]
            rows = y[:, slice(*fact.rows[:2])] - (0 if fact.rows.minus is None else y[:, [fact.rows.minus]])
            return bool((fact.sign * rows >= most - 1e-9).all())
        if isinstance(fact, Bent):
            x = self.x.reshape(-1, self.x.shape[1])
            middle = results(self.case.program.steps, (x + x[::-1]) / 2)[-1][:, fact.row]
            y = self.values[-1][:, fact.row]
            return bool((fact.sign * (middle - (y + y[::-1]) / 2) <= 1e-9 * (1.0 + np.abs(y))).all())
        assert isinstance(fact, Monotone)
        return bool((fact.sign * self.slopes[-1][at][:, fact.row, fact.input] >= -1e-7).all())


def _length(v: Array, norm: str) -> Array:
    """Norms along the second axis of [points, entries, directions]."""
    name, _, width = norm.partition("/")
    if not width:
        return np.asarray(np.linalg.norm(v, ORDER[norm], axis=1))
    # Without points the number of tokens cannot be told from the size.
    shape = len(v), v.shape[1] // int(width), int(width), v.shape[2]
    tokens = np.linalg.norm(v.reshape(shape), axis=2).max(1)
    return np.asarray(tokens / math.sqrt(int(width)) if name == "token-rms" else tokens)


@dataclass
class Outcome:
    """How many changed proofs there were, were accepted, and said something false; the first of these."""

    tried: int = 0
    accepted: int = 0
    false: int = 0
    example: Any = None


def hunt(count: int, seed: int = 0, check: Callable[..., Any] = prove) -> Outcome:
    """Checks that many forgeries. Any other exception than a refusal is a failure of the kernel, and is raised."""
    found, outcome = cases(), Outcome()
    truths = {case.name: Truth(case, np.random.default_rng(seed + 1)) for case in found}
    for case, document, beside in forgeries(found, count, seed):
        outcome.tried += 1
        subject = truths[case.name].subject
        try:
            facts = check(parse_steps(document, beside, subject), subject)
        except (RefutedCertificate, UnreadableCertificate):
            continue
        outcome.accepted += 1
        wrong = [f for f in facts if f is not None and hasattr(f, "part") and not truths[case.name].holds(f)]
        wrong += [f for f in facts if isinstance(f, Gained) and not truths[case.name].holds(f)]
        if wrong:
            outcome.false += 1
            outcome.example = outcome.example or (case.name, wrong[0], document)
    return outcome
