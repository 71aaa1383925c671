"""Runtimes that evaluate ONNX files: in this process, or in one of their own whose time, memory and crashes are its own.

A certificate's file is a stranger's: what hangs or breaks a runtime ends that process, and proves nothing. This file, and
`widening` beside it, is what runs there, as a script that imports nothing of lipverify. What comes back is a line of JSON and
numbers whose count is known before.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Evaluator = Callable[[Array], Sequence[Array]]
_ERF = np.frompyfunc(math.erf, 1, 1)
_UNABLE = {
    "NOT_IMPLEMENTED": "NOT_IMPLEMENTED",
    "Unsupported model IR version": "Unsupported",
    "is under development": "development",
    "not registered": "registered",
    "No op registered": "registered",
    "Batchwise recurrent operations": "Batchwise",
}
"""What runtimes say of what they do not have yet -> the word of it that must not stand in the file, which they quote."""
_LINE, _WAIT = 1 << 16, 10
"""Bytes of the line of JSON at most; how many times the seconds of processor time a process may be waited for."""
_START = "import runpy, sys; path = sys.argv[1]; sys.path[:] = sys.argv[2:]; runpy.run_path(path, run_name='__main__')"


class Broken(Exception):
    """A process of its own that did not answer: out of time, ended by a signal, or with other numbers than it was asked for."""


class Asked(NamedTuple):
    """What a runtime is to evaluate: these outputs of these sizes, at inputs [count, size] of this shape each.

    makes: names of runtimes (`RUNTIMES`), of which the first that evaluates the file decides. batches: numbers of inputs that
    are samples of one batch too, where the runtime takes it; what it gives of them stands behind the others.
    """

    data: bytes
    name: str
    shape: tuple[int, ...]
    names: Sequence[str]
    sizes: Sequence[int]
    inputs: Array
    makes: Sequence[str]
    batches: Sequence[Sequence[int]] = ()

    @property
    def samples(self) -> int:
        """Samples that are evaluated, alone and in batches."""
        return len(self.inputs) + sum(map(len, self.batches))


class Answer(NamedTuple):
    """evaluator: name and version, None where no runtime evaluates the file; numbers: [`Asked.samples`, size] for each output.

    numbers are None where an output has another size. failures: of the runtimes that were tried before.
    """

    evaluator: str | None
    numbers: Sequence[Array] | None
    failures: Sequence[str]


def evaluated(asked: Asked) -> Answer:
    """By the first runtime that can, in this process."""
    failures: list[str] = []
    for make in asked.makes:
        try:
            evaluator, run = RUNTIMES[make](asked.data, asked.name, asked.names)
            found = _alone_or_together(run, asked)
        except Exception as error:  # a runtime that cannot run the file
            failures.append(f"{make}: {type(error).__name__}")
            if _says_that_it_is_no_model(error, asked.data):
                break
            continue
        flat = [[np.asarray(output, np.float64).reshape(-1) for output in outputs] for outputs in found]
        fits = all([len(output) for output in outputs] == list(asked.sizes) for outputs in flat)
        numbers = [np.stack(rows) for rows in zip(*flat, strict=True)] if fits else None
        return Answer(evaluator, numbers, failures)
    return Answer(None, None, failures)


def _alone_or_together(run: Evaluator, asked: Asked) -> list[Sequence[Array]]:
    """Every output for every input, and then for every sample of every batch."""
    found = [run(x.reshape(asked.shape)) for x in asked.inputs]
    for batch in asked.batches:
        try:
            whole = run(asked.inputs[list(batch)].reshape(len(batch), *asked.shape[1:]))
        except Exception:  # a runtime, or a file, that takes one sample alone
            found += [found[k] for k in batch]
            continue
        parts = [
            _samples(np.asarray(w), np.asarray(o), len(batch)) for w, o in zip(whole, found[0], strict=True)
        ]
        found += [[part[k] for part in parts] for k in range(len(batch))]
    return found


def _samples(whole: Array, one: Array, count: int) -> Sequence[Array]:
    """What an output for `count` samples holds of each, by its sizes for one; the whole of it where they say nothing."""
    longer = [k for k, (m, n) in enumerate(zip(whole.shape, one.shape, strict=False)) if m != n]
    if whole.size == count * one.size and (whole.ndim != one.ndim or len(longer) == 1):
        # Of sizes without an axis of the batch the first one is the slowest.
        return (
            np.split(whole, count, longer[0])
            if whole.ndim == one.ndim
            else np.split(whole.reshape(-1), count)
        )
    return [whole] * count


def _says_that_it_is_no_model(error: Exception, data: bytes) -> bool:
    """Whether a runtime refuses the file itself, and not a type, an operator set or a version that it does not have yet.

    Names of the file are parts of what it says: no word of theirs chooses who is asked.
    """
    text = str(error)
    unable = any(said in text and word.encode() not in data for said, word in _UNABLE.items())
    return not isinstance(error, ImportError) and not unable


# -- a process of its own


def evaluated_apart(asked: Asked, seconds: float, memory: int) -> Answer:
    """`evaluated` in a process of its own.

    Args:
        seconds: of processor time, and ten times as many of waiting. memory: bytes of address space, where the system limits it.

    Raises:
        Broken: it did not answer.
    """
    command = [sys.executable or "", "-I", "-c", _START, __file__, *map(str, sys.path)]
    told = {"name": asked.name, "shape": asked.shape, "names": list(asked.names), "sizes": list(asked.sizes),
            "count": len(asked.inputs), "batches": [list(batch) for batch in asked.batches],
            "makes": list(asked.makes), "memory": memory, "seconds": max(1, math.ceil(seconds))}  # fmt: skip
    parts = (json.dumps(told).encode() + b"\n", asked.inputs.astype("<f8").tobytes(), asked.data)
    size = 8 * asked.samples * sum(asked.sizes)
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                   env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    except OSError as error:
        raise Broken(f"could not be started ({error.strerror})") from None
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(_WAIT * max(1.0, seconds), stop)
    timer.daemon = True
    timer.start()
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for part in parts:
                process.stdin.write(part)
            process.stdin.close()
        except BrokenPipeError:
            pass
        line, content = process.stdout.readline(_LINE), process.stdout.read(size + 1)
        code = process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if late.is_set() or code != 0 or not line.endswith(b"\n"):
        raise Broken("did not end in time" if late.is_set() else f"ended with the code {code}")
    return _answer(json.loads(line), content, asked)


def _answer(told: Mapping[str, Any], content: bytes, asked: Asked) -> Answer:
    failures = [str(failure)[:200] for failure in told["failures"]]
    if told["evaluator"] is None or not told["fits"]:
        return Answer(None if told["evaluator"] is None else str(told["evaluator"])[:80], None, failures)
    if len(content) != 8 * asked.samples * sum(asked.sizes):
        raise Broken("made another number of numbers")
    ends = np.cumsum([0, *asked.sizes]) * asked.samples
    flat = np.frombuffer(content, "<f8")
    numbers = [flat[a:b].reshape(-1, n) for a, b, n in zip(ends, ends[1:], asked.sizes, strict=False)]
    return Answer(str(told["evaluator"])[:80], numbers, failures)


def spent() -> float:
    """Processor time of this process and of those that it has waited for, in seconds."""
    return time.process_time() + _of_children()


def _of_children() -> float:
    try:
        import resource
    except ImportError:
        return 0.0
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _limit(seconds: int, memory: int) -> None:
    try:
        import resource
    except ImportError:  # there is none on Windows: the parent's clock is all
        return
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _serve(source: BinaryIO, target: BinaryIO) -> None:
    told = json.loads(source.readline())
    _limit(told["seconds"], told["memory"])
    count, size = told["count"], math.prod(told["shape"])
    inputs = np.frombuffer(source.read(8 * count * size), "<f8").reshape(count, size)
    asked = Asked(
        source.read(),
        told["name"],
        tuple(told["shape"]),
        told["names"],
        told["sizes"],
        inputs,
        told["makes"],
        told["batches"],
    )
    found = evaluated(asked)
    line = {"evaluator": found.evaluator, "fits": found.numbers is not None, "failures": list(found.failures)}
    target.write(json.dumps(line).encode() + b"\n")
    for numbers in found.numbers or ():
        target.write(np.ascontiguousarray(numbers, "<f8").tobytes())
    target.flush()


# -- runtimes


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


def _saturated(x: Array, scale: Array, settings: Mapping[str, Any]) -> Array:
    """x within 2^30 steps of a quantiser, beyond the ends of all its types. scale: one, one for each slice, or for each block."""
    axis, steps = settings.get("axis", 1), np.abs(np.asarray(scale))
    if settings.get("block_size"):
        steps = np.take(np.repeat(steps, settings["block_size"], axis), np.arange(x.shape[axis]), axis)
    elif steps.size > 1:
        steps = steps.reshape([-1 if k == axis % x.ndim else 1 for k in range(x.ndim)])
    elif steps.size == 1:
        steps = steps.reshape(())
    return np.clip(x, -(2.0**30) * steps, 2.0**30 * steps).astype(x.dtype)


def _saturating(quantize: Any) -> Any:
    """An implementation of onnx, saturated far out: its own rounds to 32 bits first, which overflow."""
    settings = inspect.signature(quantize._run).parameters

    class QuantizeLinear(quantize):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: Array, scale: Array, *zero: Array, **more: Any) -> tuple[Array]:
            # By its name it is given settings of the newest operator set too.
            known = {name: value for name, value in more.items() if name in settings}
            return super()._run(_saturated(x, scale, known), scale, *zero, **known)  # type: ignore[no-any-return]

    return QuantizeLinear


def _maxima(pool: Any) -> Any:
    """An implementation of MaxPool of onnx, whose own loops over all results: of whole windows, by views of them."""

    class MaxPool(pool):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: Array, **more: Any) -> tuple[Array, ...]:
            size, axes = more.get("kernel_shape") or (), x.ndim - 2
            plain = len(size) == axes and more.get("auto_pad", "NOTSET") in (None, "", "NOTSET")
            plain = plain and x.dtype.kind == "f"
            if not plain or more.get("ceil_mode") or len(self.onnx_node.output) > 1:
                return super()._run(x, **more)  # type: ignore[no-any-return]
            pads, steps, apart = (
                list(more.get(k) or [n] * m)
                for k, n, m in (("pads", 0, 2 * axes), ("strides", 1, axes), ("dilations", 1, axes))
            )
            ends = [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)]
            padded = np.pad(x, ends, constant_values=-np.inf)
            width = [(n - 1) * d + 1 for n, d in zip(size, apart, strict=True)]
            seen = np.lib.stride_tricks.sliding_window_view(padded, width, tuple(range(2, x.ndim)))
            places = (slice(None),) * 2 + tuple(slice(None, None, s) for s in steps)
            seen = seen[places + tuple(slice(None, None, d) for d in apart)]
            return (seen.max(tuple(range(x.ndim, x.ndim + axes))).astype(x.dtype),)

    return MaxPool


def _grouped(convolution: Any) -> Any:
    """An implementation of ConvTranspose of onnx, which is wrong for several groups: one call for each."""

    class ConvTranspose(convolution):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: Array, w: Array, *bias: Array, **more: Any) -> tuple[Array, ...]:
            count = int(more.get("group") or 1)
            if count == 1:
                return super()._run(x, w, *bias, **more)  # type: ignore[no-any-return]
            parts = [np.split(a, count, axis) for a, axis in ((x, 1), (w, 0), *((b, 0) for b in bias))]
            found = [
                super(ConvTranspose, self)._run(*part, **more | {"group": 1})[0]
                for part in zip(*parts, strict=True)
            ]
            return (np.concatenate(found, 1),)

    return ConvTranspose


_LAWS: Mapping[str, Callable[[Array], Array]] = {
    "Tanh": np.tanh,
    "Sigmoid": lambda z: 1.0 / (1.0 + np.exp(-z)),
    "Relu": lambda z: np.maximum(z, 0.0),
    "Softsign": lambda z: z / (1.0 + np.abs(z)),
}
_RECURRENT = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}


def _recurrent(layer: Any, name: str) -> Any:
    """An implementation of a recurrent layer of onnx, whose own reads no lengths of sequences, nor all activations.

    Of one length for all samples those steps are taken, and states behind them are 0.
    """

    class Recurrent(layer):  # type: ignore[misc]
        op_domain = ""

        def choose_act(self, *_: Any) -> None:
            """Each direction has its own (`_run_forward`)."""

        def _run_forward(self, *given: Array) -> tuple[Array, ...]:
            for called, law in zip(("f", "g", "h"), self.laws.pop(0), strict=False):
                setattr(self, "f1" if name == "RNN" else called, _LAWS[law])
            return super()._run_forward(*given)  # type: ignore[no-any-return]

        def _run(self, x: Array, w: Array, r: Array, b: Array | None = None, lengths: Array | None = None,
                 *states: Array, **more: Any) -> tuple[Array, ...]:  # fmt: skip
            laws, time, count = (
                more.get("activations") or (),
                int(more.get("layout") or 0),
                len(_RECURRENT[name]),
            )
            self.laws = [laws[k : k + count] or _RECURRENT[name] for k in range(0, count * len(w), count)]
            length = x.shape[time] if lengths is None else int(lengths[0])
            if lengths is not None and (lengths != length).any():
                raise ValueError("sequences of unequal lengths")
            y, *ends = super()._run(np.take(x, np.arange(length), time), w, r, b, None, *states, **more)
            if self.laws:
                raise ValueError("an implementation that reads no activations")
            rest = [(0, x.shape[time] - length if axis == time else 0) for axis in range(y.ndim)]
            return (np.pad(y, rest), *ends)

    Recurrent.__name__ = name
    return Recurrent


def _reference(data: bytes, name: str, outputs: Sequence[str]) -> tuple[str, Evaluator]:
    import onnx
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun
    from onnx.reference.ops import load_op

    class BatchNormalization(OpRun):  # type: ignore[misc]
        """With the stored statistics: onnx's own takes those of the batch in old operator sets."""

        op_domain = ""

        def _run(self, x: Array, *stored: Array, epsilon: float = 1e-5, **_: Any) -> tuple[Array]:
            weight, bias, mean, var = (a.reshape(-1, *(1,) * (x.ndim - 2)) for a in stored)
            return ((weight * (x - mean) / np.sqrt(var + x.dtype.type(epsilon)) + bias).astype(x.dtype),)

    class Erf(OpRun):  # type: ignore[misc]
        """In the type of x: onnx's own is in float32."""

        op_domain = ""

        def _run(self, x: Array) -> tuple[Array]:
            return (np.asarray(_ERF(x), x.dtype),)

    class Gelu(OpRun):  # type: ignore[misc]
        """In float64: onnx's own has constants of float32."""

        op_domain = ""

        def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
            z = np.asarray(x, np.float64)
            if approximate == "tanh":
                tail = np.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z * z * z))
            else:
                tail = np.asarray(_ERF(z / math.sqrt(2.0)), np.float64)
            return (np.asarray(0.5 * z * (1.0 + tail), x.dtype),)

    class HardSwish(OpRun):  # type: ignore[misc]
        """As `Gelu`."""

        op_domain = ""

        def _run(self, x: Array) -> tuple[Array]:
            z = np.asarray(x, np.float64)
            return (np.asarray(z * np.clip(z / 6.0 + 0.5, 0.0, 1.0), x.dtype),)

    class Softmax(OpRun):  # type: ignore[misc]
        """Of old operator sets: over all axes from this one on, where onnx's own takes one axis."""

        op_domain = ""

        def _run(self, x: Array, **_: Any) -> tuple[Array]:
            axis = next((int(a.i) for a in self.onnx_node.attribute if a.name == "axis"), 1)
            z = x.reshape(math.prod(x.shape[: axis % x.ndim]), -1)
            e = np.exp(z - z.max(1, keepdims=True))
            return ((e / e.sum(1, keepdims=True)).reshape(x.shape),)

    class LogSoftmax(OpRun):  # type: ignore[misc]
        """As `Softmax`."""

        op_domain = ""

        def _run(self, x: Array, **_: Any) -> tuple[Array]:
            axis = next((int(a.i) for a in self.onnx_node.attribute if a.name == "axis"), 1)
            z = x.reshape(math.prod(x.shape[: axis % x.ndim]), -1)
            z = z - z.max(1, keepdims=True)
            return ((z - np.log(np.exp(z).sum(1, keepdims=True))).reshape(x.shape),)

    model = onnx.ModelProto.FromString(data)
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    own = [BatchNormalization, Erf, Gelu, HardSwish]
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        own.append(_saturating(load_op("", "QuantizeLinear", *versions[:1])))
    if any(node.op_type == "MaxPool" for node in model.graph.node):
        own.append(_maxima(load_op("", "MaxPool", *versions[:1])))
    if any(node.op_type == "ConvTranspose" for node in model.graph.node):
        own.append(_grouped(load_op("", "ConvTranspose", *versions[:1])))
    own += [_recurrent(load_op("", op, *versions[:1]), op) for op in _RECURRENT]
    if any(version < 13 for version in versions):
        own += [Softmax, LogSoftmax]
    evaluator = ReferenceEvaluator(model, new_ops=own)
    told = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}[name]
    dtype = {1: np.float32, 10: np.float16, 11: np.float64}[told]
    return f"onnx.reference {onnx.__version__}", lambda x: evaluator.run(
        list(outputs), {name: x.astype(dtype)}
    )


def _wide(data: bytes, name: str, outputs: Sequence[str]) -> tuple[str, Evaluator]:
    """onnx's own evaluator, of the file written in float64."""
    widened = runpy.run_path(os.path.join(os.path.dirname(__file__), "widening.py"))["widened"]
    found = widened(data, name)
    if found is None:
        raise ValueError("it holds several types of floats")
    return RUNTIMES["reference"](found, name, outputs)


RUNTIMES: dict[str, Callable[[bytes, str, Sequence[str]], tuple[str, Evaluator]]] = {
    "onnxruntime": _onnxruntime,
    "reference": _reference,
    "wide": _wide,
}

if __name__ == "__main__":
    # What a runtime itself prints is no answer.
    _answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, _answers)
    os._exit(0)  # the answer is out: how a runtime ends says nothing about it
