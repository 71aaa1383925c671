"""What the tests of hostile files share: the shape of a refusal, payloads, and valid files to start from."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipverify import loading
from lipverify.errors import LipverifyError
from tests.clocks import within

READERS = [loading.read_onnx, loading.read_state_dict, loading.read_safetensors, loading.read_points]
by_reader = pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)

CHILD_SECONDS = 60.0  # starting torch in a fresh process


def refused(code: int, call: Callable[..., Any], *args: Any, seconds: float = 2.0) -> str:
    """The message of the refusal, after checking exit code, form and time."""
    with within(seconds), pytest.raises(LipverifyError) as caught:
        call(*args)
    message = str(caught.value)
    assert caught.value.exit_code == code, message
    assert len(message) <= 200, message
    assert all(" " <= character <= "~" for character in message), ascii(message)
    return message


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


class Payload:
    """Pickles to a call that creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.marker}",))


def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as target:
        for name, data in entries.items():
            target.writestr(name, data)
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=True)
    return buffer.getvalue()


def small_model() -> Any:
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy")
    return helper.make_model(helper.make_graph([node], "g", [x], [y], [weight]))
