"""Where to compute; and what other people have set in torch and numpy, put aside while a verb of ours runs and given back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from lipverify.errors import UsageError

_NUMPY: Any = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}


@contextmanager
def ordinary() -> Iterator[None]:
    """Torch and numpy as they are when nobody has set anything; what was set is there again afterwards.

    A default type or device decides what `torch.tensor` makes; inference mode and `no_grad` take gradients away from the
    searches; autocast and shorter formats of float32 products round to fewer digits than our error bounds count; flushed
    subnormal numbers make the steps of `nextafter` vanish. Where nothing is set this costs a microsecond and changes nothing.
    """
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    flushing = _flushes_subnormals()
    with ExitStack() as stack:
        if np.geterr() != _NUMPY:
            stack.enter_context(np.errstate(**_NUMPY))
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        if precision != "highest":
            stack.callback(torch.set_float32_matmul_precision, precision)
            torch.set_float32_matmul_precision("highest")
        if flushing:
            stack.callback(torch.set_flush_denormal, True)
            torch.set_flush_denormal(False)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        yield


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one.

    Raises:
        UsageError: CUDA is asked for and absent, or the word is unknown.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in {"cpu", "cuda"}:
        raise UsageError(f"unknown device {name!r}; choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is available; `lipverify doctor` shows what torch sees")
    return torch.device(name)


def _flushes_subnormals() -> bool:
    smallest = np.array([sys.float_info.min])
    return bool((smallest * 0.5)[0] == 0.0)
