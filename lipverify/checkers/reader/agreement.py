"""A program against a reference evaluator of ONNX, in every verification: faults of the reader show where they matter.

Both compute the same outputs for the same inputs: 0, ones, small, large, negative and random numbers, single entries. They agree
where every difference is below `_FACTOR` standard deviations of a computation in the type of the file (`evaluation`): on the
scale of the sums inside, so that small weights hide no wrong operator. Inputs where either leaves that type say nothing. Where
sums inside are so large that any other function would be allowed as well, or a file of float32 or float16 alone differs by more,
it is written in float64 and held against onnx's own evaluator, which decides: the claim is about real numbers, and deep networks
differ in float32 by more than a model of their roundings says. What is not settled there is not covered.

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
from lipverify.checkers.reader.onnx import input_of, only
from lipverify.checkers.reader.openings import Around, openings, work_of
from lipverify.checkers.reader.reading import Reading, fed
from lipverify.checkers.reader.runtimes import Answer, Asked, Broken, evaluated, evaluated_apart
from lipverify.checkers.reader.subgraphs import all_nodes
from lipverify.checkers.reader.wire import parse_model
from lipverify.errors import NotCovered

_FACTOR, _FEW, _BATCHES = 64.0, 4, (2, 3)
_WORK = 1 << 27
"""Products of numbers that all inputs together may take, as long as one does not need more; a number that is compared is four."""
_OPEN = 128
"""Inputs at gates and in regions at most."""
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

    seed: of the inputs that were new.
    """

    evaluator: str
    inputs: int
    share: float
    seed: int


class _Unsettled(NotCovered):
    """Rounding in the type of the file may be all that differs. rows: inputs beside the ordinary ones where it is too much."""

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = list(rows)


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
    inputs = _inputs(program, kind, rng)
    run = _Run(
        program, outputs, name, shape, [program.outputs[k].name for k in outputs], apart, several, len(inputs)
    )
    # The last ones may leave the type: what they say of others is enough.
    inputs = np.append(inputs, _more(program, kind, inputs, rng, regions), axis=0)
    failures: list[str] = []
    try:
        found = run.held(reduced, inputs, ("onnxruntime", "reference"), kind.name, failures)
    except _Unsettled as error:
        ordinary = inputs[: run.ordinary]
        # The first ones have to tell; large ones may hide even in float64 what is compared at others.
        run = run._replace(ordinary=min(_FEW, run.ordinary))
        # Kernels of some processors hold pairs of products of 8 bits in 16 bits, and cut them: onnx's own evaluator decides. Far
        # out it overflows where numbers become integers, which then end at the quantiser's ends.
        if any(node["op_type"] in _INTEGERS for node in all_nodes(parse_model(data)["graph"])):
            found = run.held(reduced, ordinary, ("reference",), kind.name, failures)
            if found is not None:
                return Agreement(*found, seed)
        wide = _widened(reduced, kind.name)
        # Every input that is not settled, not the worst alone: what differs by rounding would hide what differs.
        rows = np.append(ordinary, inputs[error.rows], axis=0)
        found = None if wide is None else run.held(wide, rows, ("reference",), "float64", failures)
        if found is None:
            raise
    if found is None:
        raise NotCovered(f"no runtime that is installed evaluates the file ({', '.join(failures)})")
    return Agreement(*found, seed)


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
             failures: list[str]) -> tuple[str, int, float] | None:  # fmt: skip
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
        found = _compared(
            self.program,
            self.outputs,
            inputs,
            which,
            answer.numbers,
            _UNITS[kind],
            answer.evaluator,
            self.ordinary,
        )
        return answer.evaluator, *found

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


def _widened(data: bytes, kind: str) -> bytes | None:
    """A file of float32 or float16 alone, without subgraphs, in float64; None where it holds another type of floats."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    own = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}.get(kind)
    others = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE} - {own}
    if own is None:
        return None

    def wide(tensor: Any) -> None:
        if tensor.data_type == own:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return None
    scales = {
        name for node in graph.node if node.op_type in ("Resize", "Upsample") for name in node.input[1:]
    }
    del graph.value_info[:]
    stored = [t for t in graph.initializer if t.name not in scales]
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                if own != TensorProto.FLOAT:
                    return None
                value = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                attribute.CopyFrom(
                    helper.make_attribute("value", numpy_helper.from_array(np.array(value, np.float64)))
                )
            elif attribute.HasField("t") and scales.isdisjoint(node.output):
                stored.append(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to":
                if attribute.i in {*others, TensorProto.BFLOAT16}:
                    return None
                attribute.i = TensorProto.DOUBLE if attribute.i == own else attribute.i
    if any(t.data_type in others for t in graph.initializer) or any(t.data_type in others for t in stored):
        return None
    for tensor in stored:
        wide(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == own:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return bytes(model.SerializeToString())


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

    def telling(self, unit: float) -> bool:
        """Whether what is allowed is less than how much every entry changes over the inputs.

        Entries that change by a few roundings or not at all are as good as constant.
        """
        if not self.some:
            return True
        change = np.maximum(self.ours[1] - self.ours[0], self.theirs[1] - self.theirs[0])
        idle = change <= 4.0 * unit * np.abs(self.theirs).max(0)
        return bool((idle | (self.allowed <= change)).all())


def _compared(program: Program, outputs: Sequence[int], inputs: Array, which: Array, found: Sequence[Array], unit: float,
              evaluator: str, ordinary: int) -> tuple[int, float]:  # fmt: skip
    """A few inputs at once: of the others, extremes alone are kept. which: the input of every row of `found`, each once first."""
    seen = [_Seen(numbers.shape[1]) for numbers in found]
    count, rows, shares = 0, _at_once(program), np.zeros(len(inputs))
    finite = np.zeros(len(inputs), bool)
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
        finite[which[at[at < len(inputs)]]] = known[at < len(inputs)]
    count, worst = int(finite.sum()), float(shares.max(initial=0.0))
    if not worst <= 1.0:
        far = ordinary + np.flatnonzero(shares[ordinary:] > 1.0)
        raise _Unsettled(f"{evaluator} computes another function than the checker read", far.tolist())
    if not all(one.telling(unit) for one in seen):
        raise _Unsettled(
            f"sums inside hide in the type of the file what {evaluator} and the checker compute",
            range(ordinary, len(inputs)),
        )
    # A file that leaves its type but at 0 is compared at 0 alone, where most functions agree.
    if 2 * int(finite[:ordinary].sum()) < ordinary:
        raise NotCovered(f"{evaluator} computes too few finite numbers to compare with")
    return count, worst


def _more(
    program: Program, kind: np.dtype[Any], known: Array, rng: np.random.Generator, regions: Sequence[Around]
) -> Array:
    """[count, inputs]: where gates open, of large sizes, in regions; those that the type holds, as many as the work allows."""
    work, shown = work_of(program), _shown(program)
    most = min(_OPEN, _WORK // max(work + 4 * shown, 1))
    rows = openings(program, known, rng, _WORK // 8, regions)[:most]
    charge(rows.size + len(rows) * shown, 8 * len(rows) * work)
    with np.errstate(over="ignore"):
        rows = rows.astype(kind).astype(np.float64)
    return np.asarray(rows[np.isfinite(rows).all(1)])


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
