"""From a word of the command line to a device."""

from __future__ import annotations

import torch

from lipverify.errors import UsageError


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
