"""A program against a reference evaluator of ONNX, in every verification: faults of the reader show where they matter.

Both compute the same outputs for the same inputs: 0, ones, small, large, negative and random numbers, single entries. They agree
where every difference is below `_FACTOR` standard deviations of a computation in the type of the file (`evaluation`): on the
scale of the sums inside, so that small weights hide no wrong operator. Inputs where either leaves that type say nothing. Where
sums inside are so large that any other function would be allowed as well, nothing is compared, and the file is not covered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lipverify.checkers.evaluation import evaluate_with_deviations
from lipverify.checkers.kernel.program import Affine, Array, Program
from lipverify.checkers.reader.onnx import input_of, only
from lipverify.errors import NotCovered

_FACTOR = 64.0
_WORK = 1 << 27
"""Products of numbers that all inputs together may take, as long as one does not need more."""
_UNITS = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-52}
_UNABLE = (
    "NOT_IMPLEMENTED",
    "Unsupported model IR version",
    "is under development",
    "not registered",
    "No op registered",
)
Evaluator = Callable[[Array], Sequence[Array]]


class Agreement(NamedTuple):
    """evaluator: name and version; inputs: how many were compared; share: the largest difference in parts of what is allowed."""

    evaluator: str
    inputs: int
    share: float


def agree(data: bytes, program: Program, seed: int = 0) -> Agreement:
    """Holds the program that was read from the bytes of an ONNX file against a runtime.

    Raises:
        NotCovered: they disagree, or nothing installed can evaluate the file.
    """
    outputs = [k for k, output in enumerate(program.outputs) if len(output.view.places)]
    name, shape, kind = input_of(data)
    reduced = only(data, [program.outputs[k].name for k in outputs])
    inputs = _inputs(program, kind, seed)
    failures = []
    for make in (_onnxruntime, _reference):
        try:
            evaluator, run = make(reduced, name, [program.outputs[k].name for k in outputs])
            found = [run(x.reshape(shape)) for x in inputs]
        except Exception as error:  # a runtime that cannot run the file
            failures.append(f"{make.__name__[1:]}: {type(error).__name__}")
            if _says_that_it_is_no_model(error):
                break
            continue
        return _compared(program, outputs, inputs, found, evaluator, _UNITS[kind.name])
    raise NotCovered(f"no runtime that is installed evaluates the file ({', '.join(failures)})")


def _says_that_it_is_no_model(error: Exception) -> bool:
    """Whether a runtime refuses the file itself, and not a type, an operator set or a version that it does not have yet."""
    text = str(error)
    return not isinstance(error, ImportError) and not any(word in text for word in _UNABLE)


def _compared(program: Program, outputs: Sequence[int], inputs: Array, found: Sequence[Sequence[Array]], evaluator: str,
              unit: float) -> Agreement:  # fmt: skip
    results, deviations = evaluate_with_deviations(program, inputs, unit)
    known = np.ones(len(inputs), bool)
    worst, blind = 0.0, False
    for place, k in enumerate(outputs):
        ours, spread = results[k], deviations[k]
        theirs = np.stack([np.asarray(f[place], np.float64).reshape(-1) for f in found])
        if theirs.shape != ours.shape:
            raise NotCovered(f"{evaluator} makes an output of another size")
        fine = np.isfinite(ours).all(1) & np.isfinite(theirs).all(1) & np.isfinite(spread).all(1)
        fine &= np.abs(ours).max(1, initial=0.0) < (3e4 if unit > 2.0**-12 else 1e37)
        known &= fine
        with np.errstate(all="ignore"):
            allowed = _FACTOR * spread + unit * np.abs(ours) + 2.0**-120
            share = np.where(fine[:, None], np.abs(ours - theirs) / allowed, 0.0)
        if fine.any() and not _telling(ours[fine], theirs[fine], allowed[fine], unit):
            blind = True
        worst = max(worst, float(share.max(initial=0.0)))
    if not worst <= 1.0:
        raise NotCovered(f"{evaluator} computes another function than the checker read")
    if blind:
        raise NotCovered(f"sums inside hide in the type of the file what {evaluator} and the checker compute")
    # A file that leaves its type but at 0 is compared at 0 alone, where most functions agree.
    if 2 * int(known.sum()) < len(known):
        raise NotCovered(f"{evaluator} computes too few finite numbers to compare with")
    return Agreement(evaluator, int(known.sum()), worst)


def _telling(ours: Array, theirs: Array, allowed: Array, unit: float) -> bool:
    """Whether what is allowed is less than how much every entry changes over the inputs. ours, theirs, allowed: [inputs, n].

    Entries that change by a few roundings or not at all are as good as constant.
    """
    change = np.maximum(np.ptp(ours, 0), np.ptp(theirs, 0))
    idle = change <= 4.0 * unit * np.abs(theirs).max(0)
    return bool((idle | (allowed.max(0) <= change)).all())


def _inputs(program: Program, kind: np.dtype[Any], seed: int) -> Array:
    """[count, inputs], representable in the type of the file: fewer where one costs much."""
    size, rng = program.steps[0].size, np.random.default_rng(seed)
    one = np.zeros((3, size))
    one[np.arange(3), [0, size // 2, size - 1]] = [1.0, -1.0, 2.0]
    normal = rng.standard_normal((6, size))
    rows = [normal[0], normal[1], np.zeros(size), np.ones(size), -np.abs(normal[2]), 2.0**6 * normal[3], *one, -np.ones(size),
            2.0**-8 * normal[4], np.abs(normal[5])]  # fmt: skip
    work = sum(s.index.size * s.kernel.shape[1] if isinstance(s, Affine) else s.size for s in program.steps)
    count = max(2, min(len(rows), _WORK // max(work, 1)))
    return np.array(rows[:count]).astype(kind).astype(np.float64)


def _onnxruntime(data: bytes, name: str, outputs: Sequence[str]) -> tuple[str, Evaluator]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # What the file says, not what a fused kernel makes of it.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    kind = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
    dtype = {i.name: kind[i.type] for i in session.get_inputs() if i.name == name}[name]
    return f"onnxruntime {onnxruntime.__version__}", lambda x: session.run(
        list(outputs), {name: x.astype(dtype)}
    )


def _reference(data: bytes, name: str, outputs: Sequence[str]) -> tuple[str, Evaluator]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.ModelProto.FromString(data)
    evaluator = ReferenceEvaluator(model)
    told = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}[name]
    dtype = {1: np.float32, 10: np.float16, 11: np.float64}[told]
    return f"onnx.reference {onnx.__version__}", lambda x: evaluator.run(
        list(outputs), {name: x.astype(dtype)}
    )
