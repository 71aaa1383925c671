"""A program against a reference evaluator of ONNX, in every verification: faults of the reader show where they matter.

Both compute the same outputs for the same inputs: 0, ones, small, large, negative and random numbers, single entries. They agree
where every difference is below `_FACTOR` standard deviations of a computation in the type of the file (`evaluation`): on the
scale of the sums inside, so that small weights hide no wrong operator. Inputs where either leaves that type say nothing. Where
sums inside are so large that any other function would be allowed as well, or a file of float32 or float16 alone differs by more,
it is written in float64 and held against onnx's own evaluator, which decides: the claim is about real numbers, and deep networks
differ in float32 by more than a model of their roundings says. What is not settled there is not covered.
Where sums hide a part of how much outputs change, float64 is asked too; where it does not tell, the verdict says how large one.

Where the file takes any number of samples, two and three go together as well: what one sample gives must not depend on others. A
runtime that takes one alone is believed: the verdict speaks of one sample.

Further inputs are of large sizes, lie in the regions of the claim, and where gates of the program open (`openings`): what is 0 at
all others is compared there. Where they leave the type of the file they say nothing.

Half of the first inputs are new in every verification, so that nobody can write a file for them: the verdict says with
which seed.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lipverify.checkers.evaluation import evaluate_with_deviations
from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.program import Affine, Array, Program
from lipverify.checkers.reader.gates import work_of
from lipverify.checkers.reader.onnx import input_of, only
from lipverify.checkers.reader.openings import Around, openings
from lipverify.checkers.reader.reading import Reading, fed
from lipverify.checkers.reader.references import told_by_reference
from lipverify.checkers.reader.runtimes import Answer, Asked, Broken, evaluated, evaluated_apart
from lipverify.checkers.reader.subgraphs import all_nodes
from lipverify.checkers.reader.wire import parse_model
from lipverify.errors import NotCovered

_FACTOR, _FEW, _BATCHES = 64.0, 4, (2, 3)
_WORK = 1 << 27
"""Products of numbers that all inputs together may take, as long as one does not need more; a number that is compared is four."""
_OPEN, _LEAST, _WIDE = 80, 8, 24
"""Inputs at gates and in regions at most, and whatever they cost; and how many of those at gates are compared in float64, too."""
CLEAR = 1.0 / 64.0
"""Where more than this part of a change is allowed in the type of the file, float64 is asked."""
_HELD = 1 << 22
"""Numbers of steps and outputs that are evaluated at once, as long as one input does not need more."""
_UNITS = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-52}
_SECONDS, _PACE = 60.0, 1e8
"""Of processor time for a runtime in a process of its own, and one more for so many products of numbers."""
_MEMORY, _MEMORY_PER_NUMBER = 4 << 30, 64
"""Bytes for it, and for every number of the program and byte of the file."""


_INTEGERS = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")


class Agreement(NamedTuple):
    """evaluator: name and version; inputs: how many were compared; share: the largest difference in parts of what is allowed.

    seed: of the inputs that were new. gates: how many of the inputs lie where gates open; None: there are no gates. within: the
    most that is allowed, in parts of how much an output changes over the inputs: a smaller difference would not have shown.
    """

    evaluator: str
    inputs: int
    share: float
    seed: int
    gates: int | None
    within: float


class _Held(NamedTuple):
    """One comparison: differences in parts of what is allowed, and whether anything was compared, for each input."""

    evaluator: str
    inputs: int
    shares: Array
    told: Array
    within: float

    @property
    def differ(self) -> bool:
        """Whether there is a difference that is no rounding."""
        return not bool((self.shares <= 1.0).all())

    @property
    def hidden(self) -> bool:
        """Whether any other function would be allowed as well."""
        return not self.within <= 1.0


def agree(data: bytes, program: Program, seed: int | None = None, apart: float | None = None,
          reading: Reading | None = None, regions: Sequence[Around] = ()) -> Agreement:  # fmt: skip
    """Holds the program that was read from the bytes of an ONNX file against a runtime.

    Args:
        seed: of the inputs that are new; None: one that nobody knows before. apart: the runtime gets a process of its own, and at
            most so many seconds of processor time; None: it runs in this one. reading: how the inputs were read, where not by the
            file alone. regions: of a claim, where inputs are taken too.

    Raises:
        NotCovered: they disagree, nothing installed can evaluate the file, or the runtime's process did not answer.
    """
    seed = secrets.randbits(32) if seed is None else seed
    outputs = [k for k, output in enumerate(program.outputs) if len(output.view.places)]
    reduced = only(data, [program.outputs[k].name for k in outputs])
    reduced = reduced if reading is None else fed(reduced, reading)
    name, shape, kind, several = input_of(reduced)
    rng = np.random.default_rng([seed, *hashlib.sha256(data).digest()])
    first = _inputs(program, kind, rng)
    ordinary = len(first)
    run = _Run(
        program, outputs, name, shape, [program.outputs[k].name for k in outputs], apart, several, ordinary
    )
    # The last ones may leave the type: what they say of others is enough.
    rows, at_gates, gates = _more(program, kind, first, rng, regions)
    inputs, at_gates = np.append(first, rows, axis=0), np.append(np.zeros(ordinary, bool), at_gates)
    failures: list[str] = []
    makes = ("onnxruntime", "reference") if told_by_reference(reduced) else ("onnxruntime",)
    found = run.held(reduced, inputs, makes, kind.name, failures)
    if found is None:
        raise NotCovered(f"no runtime that is installed evaluates the file ({', '.join(failures)})")
    # The first ones have to tell; large ones may hide even in float64 what is compared at others.
    few = run._replace(ordinary=min(_FEW, ordinary))
    # Kernels of some processors hold pairs of products of 8 bits in 16 bits, and cut them: onnx's own evaluator decides. Far
    # out it overflows where numbers become integers, which then end at the quantiser's ends.
    if (found.differ or found.hidden) and any(
        node["op_type"] in _INTEGERS for node in all_nodes(parse_model(data)["graph"])
    ):
        other = few.held(reduced, first, ("reference",), kind.name, failures)
        if other is not None:
            inputs, at_gates, found = first, at_gates[:ordinary], other
    found = _in_float64(few, reduced, kind.name, inputs, ordinary, at_gates, found)
    if found.differ:
        raise NotCovered(f"{found.evaluator} computes another function than the checker read")
    if found.hidden:
        raise NotCovered(
            f"sums inside hide in the type of the file what {found.evaluator} and the checker compute"
        )
    opened = int((found.told & at_gates).sum()) if gates else None
    share = float(found.shares.max(initial=0.0))
    return Agreement(found.evaluator, found.inputs, share, seed, opened, found.within)


def _in_float64(
    run: _Run, data: bytes, kind: str, inputs: Array, ordinary: int, at_gates: Array, found: _Held
) -> _Held:
    """What float64 says where the type of the file does not settle it, and of gates what it hides far out; else `found`.

    Where nothing tells in float64, what was found stands with how much it may hide.
    """
    settled = not found.differ and found.within <= CLEAR
    work = work_of(run.program)
    # Every input that is not settled, not the worst alone: what differs by rounding would hide what differs.
    far = found.shares > 1.0
    if found.within > CLEAR:
        far[:] = True
    elif work <= _WORK:
        far[np.flatnonzero(at_gates)[: min(_WIDE, _WORK // work)]] = True
    rows = np.append(
        np.arange(run.ordinary if settled else ordinary), ordinary + np.flatnonzero(far[ordinary:])
    )
    if kind == "float64" or (settled and len(rows) == run.ordinary) or not told_by_reference(data, wide=True):
        return found
    other = run.held(data, inputs[rows], ("wide",), "float64", [])
    if other is None or (other.hidden and not (other.differ or found.differ or found.hidden)):
        return found
    if other.differ or other.hidden:
        return other
    told = found.told.copy()
    told[rows] |= other.told
    decided = found if settled else other
    return decided._replace(told=told, within=min(found.within, other.within))


class _Run(NamedTuple):
    """What is compared."""

    program: Program
    outputs: Sequence[int]
    name: str
    shape: tuple[int, ...]
    names: Sequence[str]
    apart: float | None
    several: bool
    ordinary: int
    """How many inputs come first that have to be finite, and to tell."""

    def held(self, data: bytes, inputs: Array, makes: Sequence[str], kind: str,
             failures: list[str]) -> _Held | None:  # fmt: skip
        """The comparison with the first runtime that evaluates the file; None where none does."""
        sizes = [len(self.program.outputs[k].view.places) for k in self.outputs]
        few = len(inputs)
        batches = [[k % self.ordinary for k in range(count)] for count in _BATCHES] if self.several else []
        answer = self._asked(Asked(data, self.name, self.shape, self.names, sizes, inputs, makes, batches))
        failures += answer.failures
        if answer.evaluator is None:
            return None
        if answer.numbers is None:
            more = " for several samples at once, or for one" if self.several else ""
            raise NotCovered(f"{answer.evaluator} makes an output of another size{more}")
        which = np.array([*range(few), *(k for batch in batches for k in batch)])
        return _compared(
            self.program,
            self.outputs,
            inputs,
            which,
            answer.numbers,
            _UNITS[kind],
            answer.evaluator,
            self.ordinary,
        )

    def _asked(self, asked: Asked) -> Answer:
        if self.apart is None:
            return evaluated(asked)
        numbers = sum(s.size + (s.index.size if isinstance(s, Affine) else 0) for s in self.program.steps)
        seconds = min(self.apart, _SECONDS + asked.samples * work_of(self.program) / _PACE)
        memory = _MEMORY + _MEMORY_PER_NUMBER * (numbers + len(asked.data))
        try:
            return evaluated_apart(asked, seconds, memory)
        except Broken as error:
            raise NotCovered(f"a runtime that was to evaluate the file {error}") from None


class _Seen:
    """Of every entry of one output, over inputs so far: ours, theirs [2, n], smallest and largest; allowed [n], the most."""

    def __init__(self, size: int) -> None:
        self.ours, self.theirs = (np.array([[np.inf], [-np.inf]]).repeat(size, 1) for _ in range(2))
        self.allowed, self.some = np.zeros(size), False

    def add(self, ours: Array, theirs: Array, allowed: Array) -> None:
        """More inputs. All three: [inputs, n]."""
        self.some = self.some or len(ours) > 0
        for ends, numbers in ((self.ours, ours), (self.theirs, theirs)):
            np.minimum(ends[0], numbers.min(0, initial=np.inf), out=ends[0])
            np.maximum(ends[1], numbers.max(0, initial=-np.inf), out=ends[1])
        np.maximum(self.allowed, allowed.max(0, initial=0.0), out=self.allowed)

    def within(self, unit: float) -> float:
        """The most that is allowed, in parts of how much an entry changes over the inputs.

        Entries that change by a few roundings or not at all are as good as constant.
        """
        if not self.some:
            return 0.0
        change = np.maximum(self.ours[1] - self.ours[0], self.theirs[1] - self.theirs[0])
        idle = change <= 4.0 * unit * np.abs(self.theirs).max(0)
        return float(np.where(idle, 0.0, self.allowed / np.where(idle, 1.0, change)).max(initial=0.0))


def _compared(program: Program, outputs: Sequence[int], inputs: Array, which: Array, found: Sequence[Array], unit: float,
              evaluator: str, ordinary: int) -> _Held:  # fmt: skip
    """A few inputs at once: of the others, extremes alone are kept. which: the input of every row of `found`, each once first."""
    seen = [_Seen(numbers.shape[1]) for numbers in found]
    rows, shares = _at_once(program), np.zeros(len(inputs))
    finite, compared = np.zeros((2, len(inputs)), bool)
    for start in range(0, len(inputs), rows):
        results, deviations = evaluate_with_deviations(program, inputs[start : start + rows], unit)
        at = np.flatnonzero((which >= start) & (which < start + rows))
        own, known = which[at] - start, np.ones(len(at), bool)
        for place, k in enumerate(outputs):
            ours, spread, theirs = results[k][own], deviations[k][own], found[place][at]
            fine = np.isfinite(ours).all(1) & np.isfinite(theirs).all(1) & np.isfinite(spread).all(1)
            fine &= np.abs(ours).max(1, initial=0.0) < (3e4 if unit > 2.0**-12 else 1e37)
            known &= fine
            with np.errstate(all="ignore"):
                allowed = _FACTOR * spread + unit * np.abs(ours) + 2.0**-120
                # At a gate, far out, sums may cancel: an entry that is all rounding is no function to compare.
                known_well = allowed <= np.maximum(np.abs(ours), np.abs(theirs)) / 4.0
                told = fine[:, None] & (known_well | (which[at] < ordinary)[:, None])
                share = np.where(told, np.abs(ours - theirs) / allowed, 0.0)
            telling = fine & (which[at] < ordinary)
            seen[place].add(ours[telling], theirs[telling], allowed[telling])
            np.maximum.at(shares, which[at], share.max(1, initial=0.0))
            np.logical_or.at(compared, which[at], told.any(1))
        finite[which[at[at < len(inputs)]]] = known[at < len(inputs)]
    result = _Held(
        evaluator, int(finite.sum()), shares, compared & finite, max(one.within(unit) for one in seen)
    )
    # A file that leaves its type but at 0 is compared at 0 alone, where most functions agree.
    if not (result.differ or result.hidden) and 2 * int(finite[:ordinary].sum()) < ordinary:
        raise NotCovered(f"{evaluator} computes too few finite numbers to compare with")
    return result


def _more(program: Program, kind: np.dtype[Any], known: Array, rng: np.random.Generator,
          regions: Sequence[Around]) -> tuple[Array, Array, bool]:  # fmt: skip
    """[count, inputs]: where gates open, of large sizes, in regions; those that the type holds, as many as the work allows.

    With which of them lie at gates, and whether there are gates.
    """
    work, shown = work_of(program), _shown(program)
    found = openings(program, known, rng, regions)
    with np.errstate(over="ignore"):
        rows = found.rows.astype(kind).astype(np.float64)
    kept = np.flatnonzero(np.isfinite(rows).all(1))
    kept = kept[: min(_OPEN, max(_LEAST, _WORK // max(work + 4 * shown, 1)))]
    charge(found.rows.size + len(kept) * shown, 8 * len(kept) * work)
    return rows[kept], found.gates[kept], found.some


def _inputs(program: Program, kind: np.dtype[Any], rng: np.random.Generator) -> Array:
    """[count, inputs], representable in the type of the file: fewer where one costs much."""
    size = program.steps[0].size
    work, shown = work_of(program), _shown(program)
    count = max(2, min(len(_ROWS), _WORK // max(work + 4 * shown, 1)))
    # Values and deviations of all steps, what is made of them at the largest one, and what it gathers.
    few, sizes = min(count, _at_once(program)), [s.size for s in program.steps]
    charge(few * (2 * sum(sizes) + 12 * max(sizes)), 8 * count * work)
    charge(max((s.index.size for s in program.steps if isinstance(s, Affine)), default=0))
    # Of every output values and deviations and what is made of them to compare, the runtime's numbers, and their extremes.
    charge((10 * few + count + sum(_BATCHES) + 5) * shown)
    rows = [make(rng, size) for make in _ROWS[:count]]
    return np.array(rows).astype(kind).astype(np.float64)


def _shown(program: Program) -> int:
    """Numbers of all outputs."""
    return sum(len(output.view.places) for output in program.outputs)


def _at_once(program: Program) -> int:
    """How many inputs are evaluated together."""
    return max(1, _HELD // (2 * sum(s.size for s in program.steps) + 10 * _shown(program)))


def _alone(value: float) -> Callable[[np.random.Generator, int], Array]:
    """This number at one place."""
    return lambda rng, size: value * (np.arange(size) == rng.integers(size))


_ROWS: Sequence[Callable[[np.random.Generator, int], Array]] = (
    lambda rng, size: rng.standard_normal(size),
    lambda rng, size: rng.standard_normal(size),
    lambda rng, size: np.zeros(size),
    lambda rng, size: np.ones(size),
    lambda rng, size: -np.abs(rng.standard_normal(size)),
    lambda rng, size: 2.0**6 * rng.standard_normal(size),
    lambda rng, size: 2.0**12 * rng.standard_normal(size),
    _alone(1.0),
    _alone(-1.0),
    _alone(2.0),
    lambda rng, size: -np.ones(size),
    lambda rng, size: 2.0**-8 * rng.standard_normal(size),
    lambda rng, size: np.abs(rng.standard_normal(size)),
)
