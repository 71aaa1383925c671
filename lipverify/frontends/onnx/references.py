"""Runs an ONNX model for comparison: onnxruntime where it is installed, else the reference evaluator of onnx."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lipverify.loading.names import display

Array = NDArray[Any]
Runner = Callable[[Array], Sequence[Array]]
"""The model's input tensor to all its outputs."""


def runners(model: Any, feed: str) -> list[tuple[str, Callable[[], Runner]]]:
    """The readers at hand, best first: a name, and a function that makes one run the model."""
    found: list[tuple[str, Callable[[], Runner]]] = []
    try:
        import onnxruntime
    except ImportError:
        pass
    else:
        found.append((f"onnxruntime {onnxruntime.__version__}", lambda: _onnxruntime(model, feed)))
    found.append((f"onnx {onnx.__version__} reference", lambda: _reference(model, feed)))
    return found


def _onnxruntime(model: Any, feed: str) -> Runner:
    """From bytes in memory: no path is known to it, so no external data can be opened."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    # Its matrices are multiplied a few times only: no second copy of them, in an order of its own.
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(None, {feed: x})


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
