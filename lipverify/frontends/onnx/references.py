"""Runs an ONNX model for comparison: onnxruntime where it is installed, else the reference evaluator of onnx."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lipverify.loading.names import display
from lipverify.loading.onnx_weights import Held, completed

Array = NDArray[Any]
Runner = Callable[[Array], Sequence[Array]]
"""The model's input tensor to all its outputs."""


@dataclass(frozen=True)
class Original:
    """A model as it was read, with the large tensors that lie beside its message."""

    model: Any
    held: Held = field(default_factory=dict, repr=False)

    def whole(self) -> Any:
        """One message with everything in it."""
        return completed(self.model, self.held)


def runners(source: Original, feed: str) -> list[tuple[str, Callable[[], Runner]]]:
    """The readers at hand, best first: a name, and a function that makes one run the model."""
    found: list[tuple[str, Callable[[], Runner]]] = []
    try:
        import onnxruntime
    except ImportError:
        pass
    else:
        found.append((f"onnxruntime {onnxruntime.__version__}", lambda: _onnxruntime(source, feed)))
    found.append((f"onnx {onnx.__version__} reference", lambda: _reference(source.whole(), feed)))
    return found


def _onnxruntime(source: Original, feed: str) -> Runner:
    """From bytes in memory: no path is known to it, so no external data can be opened. It shares the tensors that are held."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    # Its matrices are multiplied a few times only: no second copy of them, in an order of its own.
    options.add_session_config_entry("session.disable_prepacking", "1")
    model = source.model
    held = {t.name: source.held[t.name] for t in model.graph.initializer if t.name in source.held}
    if held:
        model = _asking(model, held)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(None, {**held, feed: x})


def _asking(model: Any, held: Held) -> Any:
    """A copy that takes the held tensors as further inputs: of stored ones onnxruntime makes a copy, of inputs none."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    listed = {value.name for value in copy.graph.input}
    stored = list(copy.graph.initializer)
    del copy.graph.initializer[:]
    for tensor in stored:
        if tensor.name not in held:
            copy.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            shape = list(tensor.dims)
            copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))
    return copy


def _reference(model: Any, feed: str) -> Runner:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model)

    def run(x: Array) -> Sequence[Array]:
        with np.errstate(all="ignore"):
            return evaluator.run(None, {feed: x})  # type: ignore[no-any-return]

    return run


def reason(error: Exception) -> str:
    """A foreign error in a few words."""
    text = str(error).strip()
    return display(text.splitlines()[0] if text else type(error).__name__, 120)


def advice(reader: str) -> str:
    """What to do where the reader is the evaluator of onnx, which lacks a few forms of old operator sets."""
    if reader.startswith("onnxruntime") or _has_onnxruntime():
        return ""
    return "; onnxruntime reads more models: install lipverify[runtime]"


def _has_onnxruntime() -> bool:
    from importlib.util import find_spec

    return find_spec("onnxruntime") is not None
