"""A program against a reference evaluator of ONNX, in every verification: faults of the reader show where they matter.

Both compute the same outputs for the same inputs: 0, ones, small, large, negative and random numbers, single entries. They agree
where every difference is below `entries.FACTOR` deviations of a computation in the type of the file (`evaluation`): on the
scale of the sums inside, so that small weights hide no wrong operator. At inputs of ordinary sizes that is asked of the type of
the file, whatever else is: the claim is about real numbers, but not of a file whose every runtime computes something else. Where
sums inside hide a part of how much outputs change, or far out a file of float32 or float16 alone differs, it is written in
float64 and held against onnx's own evaluator, which decides; the verdict says how much the type hides, and by how much the
runtime was off. Where it does not tell, the verdict says how much may hide; what is not settled is not covered.

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

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.program import Affine, Array, Program
from lipverify.checkers.reader.entries import CLEAR, UNITS, Held, compared, rounds
from lipverify.checkers.reader.gates import turned_alone, work_of
from lipverify.checkers.reader.onnx import input_of, only
from lipverify.checkers.reader.openings import Around, openings
from lipverify.checkers.reader.reading import Reading, fed
from lipverify.checkers.reader.references import told_by_reference
from lipverify.checkers.reader.runtimes import Answer, Asked, Broken, evaluated, evaluated_apart
from lipverify.checkers.reader.subgraphs import all_nodes
from lipverify.checkers.reader.wire import parse_model
from lipverify.errors import NotCovered

_FEW, _BATCHES = 4, (2, 3)
_WORK = 1 << 27
"""Products of numbers that all inputs together may take, as long as one does not need more; a number that is compared is four."""
_OPEN, _LEAST, _WIDE = 80, 8, 24
"""Inputs at gates and in regions at most, and whatever they cost; and how many of those at gates are compared in float64, too."""
_OFF, _APART = 1.0, 0.25
"""How far a runtime may be off in the type of the file, whatever float64 says: in parts of what is allowed at ordinary inputs,
and in parts of how much an output changes, where sums hide more than `CLEAR` of that."""
_AGAIN = 3
"""At how many inputs that are hidden in its type a gate has to turn, and at no other one, for the file to be refused."""
_OFF_AT_TIES, _APART_AT_TIES = 8.0, 1.0
"""The same of files that round to steps: several numbers at once may be next to a tie, and each is a whole step off then."""
_HELD = 1 << 22
"""Numbers of steps and outputs that are evaluated at once, as long as one input does not need more."""
_SECONDS, _PACE = 60.0, 1e8
"""Of processor time for a runtime in a process of its own, and one more for so many products of numbers."""
_SECOND = 20.0
"""The same for a second opinion where the first has settled everything: that it did not come is said."""
_MEMORY, _MEMORY_PER_NUMBER = 4 << 30, 64
"""Bytes for it, and for every number of the program and byte of the file."""


_INTEGERS = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")


class Agreement(NamedTuple):
    """evaluator: name and version; inputs: how many were compared; share: the largest difference in parts of what is allowed.

    seed: of the inputs that were new. gates: how many of the inputs lie where gates open; None: there are no gates. within: the
    most that is allowed, in parts of how much an output changes over the inputs: a smaller difference would not have shown.
    left: at how many ordinary inputs an entry has no finite number, at most. hidden: at how many others sums hide an entry.
    hides, executed: where float64 decided, what the type of the file hides and by how much the runtime differed in it, both in
    parts of how much an output changes; else None. unanswered: float64 was asked at gates, and did not answer in time.
    """

    evaluator: str
    inputs: int
    share: float
    seed: int
    gates: int | None
    within: float
    left: int
    hidden: int
    hides: float | None
    executed: float | None
    unanswered: bool


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
        program,
        outputs,
        name,
        shape,
        [program.outputs[k].name for k in outputs],
        apart,
        several,
        ordinary,
        ordinary,
    )
    # The last ones may leave the type: what they say of others is enough.
    rows, at_gates, gates = _more(program, kind, first, rng, regions)
    inputs, at_gates = np.append(first, rows, axis=0), np.append(np.zeros(ordinary, bool), at_gates)
    failures: list[str] = []
    makes = ("onnxruntime", "reference") if told_by_reference(reduced) else ("onnxruntime",)
    found = run.held(reduced, inputs, makes, kind.name, failures)
    if found is None:
        raise NotCovered(f"no runtime that is installed evaluates the file ({', '.join(failures)})")
    # Kernels of some processors hold pairs of products of 8 bits in 16 bits, and cut them: onnx's own evaluator decides, at the
    # same inputs, since what differed at one of them is not forgotten.
    if (found.differ or found.hides) and makes[1:] and _multiplies_integers(reduced):
        found = run.held(reduced, inputs, makes[1:], kind.name, failures) or found
    off, apart_by = (_OFF_AT_TIES, _APART_AT_TIES) if rounds(program) else (_OFF, _APART)
    # Real numbers are what is claimed: but what rounding does not explain at an ordinary input is another function.
    if float(found.shares[:ordinary].max()) > off:
        raise NotCovered(f"{found.evaluator} computes another function than the checker read")
    found, own = _in_float64(run, reduced, kind.name, inputs, at_gates, found), found
    if found.differ:
        raise NotCovered(f"{found.evaluator} computes another function than the checker read")
    if found.hides:
        raise NotCovered(
            f"sums inside hide in the type of the file what {found.evaluator} and the checker compute"
        )
    # Where float64 has no more numbers there, none are hidden by the type: a quotient by 0 has no value. A file that leaves its
    # type at most inputs computes no function there, whatever float64 says of it.
    few = ordinary // (2 if found is not own and not found.unanswered else 4)
    if found.left > few or own.left > ordinary // 2:
        raise NotCovered(f"{found.evaluator} computes too few finite numbers to compare with")
    decided = found.evaluator != own.evaluator
    if decided and own.executed > apart_by:
        raise NotCovered(
            f"rounding in the type of the file makes another function of it: {own.evaluator} is off by "
            f"{own.executed:.2g} of how much an output changes"
        )
    # Of many gates one input alone turns some: where float64 was not asked about it, that says little.
    asked = found is not own and not found.unanswered
    unseen = [hidden | lost for hidden, lost in zip(found.hidden, found.lost, strict=True)]
    alone = turned_alone(program, inputs, unseen, 1 if asked else _AGAIN)
    if alone:
        raise NotCovered(
            f"{alone} of the places where its activations turn were not compared: sums inside hide what is computed there, or no "
            "number is finite"
        )
    return Agreement(
        found.evaluator,
        int(found.told.sum()),
        float(found.shares.max(initial=0.0)),
        seed,
        int((found.told & at_gates).sum()) if gates else None,
        found.within,
        found.left,
        int(_anywhere(found.hidden).sum()),
        own.within if decided else None,
        own.executed if decided else None,
        found.unanswered,
    )


def _multiplies_integers(data: bytes) -> bool:
    return any(node["op_type"] in _INTEGERS for node in all_nodes(parse_model(data)["graph"]))


def _in_float64(run: _Run, data: bytes, kind: str, inputs: Array, at_gates: Array, found: Held) -> Held:
    """What float64 says where the type of the file does not settle it, and of gates what it hides far out; else `found`.

    Where nothing tells in float64, what was found stands with how much it may hide.
    """
    ordinary, work = run.ordinary, work_of(run.program)
    settled = not found.differ and found.within <= CLEAR
    # Every input that is not settled, not the worst alone: what differs by rounding would hide what differs.
    far = (found.shares > 1.0) | _anywhere(found.hidden)
    if found.within > CLEAR:
        far[:] = True
    doubtful = far.copy()
    if work <= _WORK:
        far[np.flatnonzero(at_gates)[: min(_WIDE, _WORK // work)]] = True
    few = min(_FEW, ordinary)
    plain = few if settled and not found.left else ordinary
    rows = np.append(np.arange(plain), ordinary + np.flatnonzero(far[ordinary:]))
    if kind == "float64" or (settled and len(rows) == few) or not told_by_reference(data, wide=True):
        return found
    again = run._replace(ordinary=plain, telling=few)
    if settled and run.apart is not None:
        again = again._replace(apart=min(run.apart, _SECOND))
    try:
        other = again.held(data, inputs[rows], ("wide",), "float64", [])
    except _Unanswered:
        if not settled:
            raise
        return found._replace(unanswered=True)
    if other is None or (other.hides and not (other.differ or found.differ or found.hides)):
        return found
    if other.differ or other.hides:
        return other
    told = found.told.copy()
    told[rows] |= other.told
    hidden, lost = [one.copy() for one in found.hidden], [one.copy() for one in found.lost]
    for place in range(len(hidden)):
        hidden[place][rows] = other.hidden[place] & (doubtful[rows, None] | lost[place][rows])
        lost[place][rows] &= other.lost[place]
    decided = found if settled else other
    left = min(found.left, other.left) if plain == ordinary else found.left
    within = min(found.within, other.within)
    return decided._replace(told=told, hidden=hidden, lost=lost, left=left, within=within)


def _anywhere(entries: Sequence[Array]) -> Array:
    """[n]: whether it is so of an entry of an output."""
    return np.asarray(np.any([one.any(1) for one in entries], 0))


class _Unanswered(NotCovered):
    """A runtime in a process of its own did not answer."""


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
    telling: int
    """How many inputs of ordinary sizes come first, and how many of those have to tell: others may hide even in float64."""

    def held(self, data: bytes, inputs: Array, makes: Sequence[str], kind: str,
             failures: list[str]) -> Held | None:  # fmt: skip
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
        return compared(
            self.program,
            self.outputs,
            inputs,
            which,
            answer.numbers,
            UNITS[kind],
            answer.evaluator,
            self.ordinary,
            self.telling,
            _at_once(self.program),
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
            raise _Unanswered(f"a runtime that was to evaluate the file {error}") from None


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
    # What is hidden or lost is a byte of each entry, four times.
    charge((14 * few + count + sum(_BATCHES) + 12 + (count + _OPEN) // 2) * shown)
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
