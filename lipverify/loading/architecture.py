"""The architecture of bare weights: a callable in the user's own Python file, run only when the user says so."""

from __future__ import annotations

import contextlib
import os
import sys
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lipverify.errors import UnsafeInput, UsageError
from lipverify.loading.files import Path, read_regular
from lipverify.loading.names import display, sentence
from lipverify.loading.state_dict import StateDict, read_state_dict

if TYPE_CHECKING:
    from torch.nn import Module

MAX_SOURCE_BYTES = 4 << 20
MAX_LISTED = 10


@dataclass(frozen=True)
class TrustedModule:
    """A module with its weights, in evaluation mode, and what was trusted to build it: for the report."""

    module: Module
    weights: StateDict
    code_path: str
    code_sha256: str


def load_weights(path: Path, architecture: str, trust_code: bool) -> TrustedModule:
    """Builds the module of `--arch FILE.py:callable` and fills in the weights of a file, strictly.

    The parameters take the dtype of the file and the module is put into evaluation mode. Raises UnsafeInput
    without `trust_code`, before any code is looked at; UsageError when the code fails or does not return a
    torch.nn.Module, or when names or shapes do not fit; otherwise as read_state_dict.
    """
    if not trust_code:
        what = f"--arch {display(architecture, 60)} runs code of that file"
        raise UnsafeInput(f"{what}; add --trust-code if you trust it")
    # The weights first: a damaged file should not cost a run of the user's code.
    weights = read_state_dict(path)
    module, code_path, code_sha256 = build_module(architecture)
    fill(module, weights)
    return TrustedModule(module.eval(), weights, code_path, code_sha256)


def build_module(architecture: str) -> tuple[Module, str, str]:
    """Runs FILE.py and calls the callable without arguments: the module, the path and the file's SHA-256.

    Only for code that the user trusts. Raises UsageError when it fails or gives anything but a Module.
    """
    import torch

    file_name, colon, name = architecture.rpartition(":")
    if not colon or not name.isidentifier() or not file_name:
        raise UsageError(f'--arch "{display(architecture, 60)}" must be FILE.py:callable')
    file = read_regular(file_name, MAX_SOURCE_BYTES)
    namespace = types.ModuleType(f"_lipverify_architecture_{file.sha256[:16]}")
    namespace.__file__ = os.path.abspath(file_name)
    folder = os.path.dirname(namespace.__file__)
    # Dataclasses and pickling look their module up by name; a failed run leaves no half-made module behind.
    sys.modules[namespace.__name__] = namespace
    # At the end: the file may import its neighbours, and no neighbour can pose as an installed package.
    sys.path.append(folder)
    try:
        # Standard output belongs to our own JSON.
        with contextlib.redirect_stdout(sys.stderr):
            exec(compile(file.data, namespace.__file__, "exec"), namespace.__dict__)
            if not callable(getattr(namespace, name, None)):
                defined = [key for key, value in vars(namespace).items() if callable(value) and key[0] != "_"]
                listed = ", ".join(display(key, 30) for key in defined[:5]) or "none"
                what = f"has no callable {display(name, 40)}"
                raise UsageError(sentence(file_name, what, f"it has: {listed}"))
            module = getattr(namespace, name)()
        if not isinstance(module, torch.nn.Module):
            what = f"{name}() returned {type(module).__name__}, not a torch.nn.Module"
            raise UsageError(sentence(file_name, what, "return the module, without weights"))
    except UsageError:
        sys.modules.pop(namespace.__name__, None)
        raise
    except (Exception, SystemExit) as problem:
        sys.modules.pop(namespace.__name__, None)
        reason = f"{type(problem).__name__}: {display(str(problem), 80)}"
        raise UsageError(sentence(file_name, f"{name} failed with {reason}")) from problem
    finally:
        if folder in sys.path:
            sys.path.reverse()
            sys.path.remove(folder)
            sys.path.reverse()
    return module, os.path.abspath(file_name), file.sha256


def fill(module: Module, weights: StateDict) -> None:
    """Puts the weights into the module, in the dtype of the file. Raises UsageError, listing at most ten, when
    a tensor is missing, unused or of another shape; the batch counters of BatchNorm may be missing."""
    wanted: dict[str, Any] = module.state_dict()
    given = dict(weights.tensors)
    problems = []
    for name, tensor in wanted.items():
        shown = display(name, 40)
        if name not in given:
            if name.rpartition(".")[2] == "num_batches_tracked":
                # A counter that only training reads; checkpoints older than it are common.
                given[name] = tensor
                continue
            problems.append(f"missing {shown}")
        elif not hasattr(tensor, "shape"):
            problems.append(f"{shown} is not a tensor in the architecture")
        elif tensor.shape != given[name].shape:
            problems.append(f"{shown} is {list(given[name].shape)}, expected {list(tensor.shape)}")
        elif tensor.is_floating_point() != given[name].is_floating_point():
            problems.append(f"{shown} is {given[name].dtype}, expected {tensor.dtype}")
    problems += [f"unused {display(name, 40)}" for name in given if name not in wanted]
    if problems:
        more = f", and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        what = "weights do not fit the architecture: " + ", ".join(problems[:MAX_LISTED]) + more
        raise UsageError(sentence(weights.path, what))
    try:
        # Assigned, not copied: a copy would round float64 weights to the module's float32.
        module.load_state_dict(given, strict=True, assign=True)
    except RuntimeError as problem:
        what = f"weights do not fit the architecture ({display(str(problem), 80)})"
        raise UsageError(sentence(weights.path, what)) from problem
