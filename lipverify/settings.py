"""What other people have set in torch and numpy, put aside while a verb of ours runs and given back afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

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


def _flushes_subnormals() -> bool:
    smallest = np.array([sys.float_info.min])
    return bool((smallest * 0.5)[0] == 0.0)
