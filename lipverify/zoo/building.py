"""Retraining the zoo: weights and measured figures from the scripts in models_zoo/."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from lipverify.errors import InternalError, InvalidFile, UsageError
from lipverify.loading.files import read_regular
from lipverify.loading.names import sentence
from lipverify.zoo.card import CARD, Card, Measured, read_card, read_recipe, with_measured
from lipverify.zoo.location import MODEL, TRAINING, WEIGHTS, folder_of, names, root
from lipverify.zoo.network import accuracy, assemble, load_data, need_sklearn

# One arithmetic for every run: one thread and no vector kernels picked by the processor's model. Some scalar functions
# still differ in the last bit between makers of processors.
_ONE_ARITHMETIC = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "default",
}

Progress = Callable[[str], None]


def _silent(line: str) -> None:
    pass


def build(name: str, force: bool = False, progress: Progress = _silent) -> tuple[Card, ...]:
    """Trains the network `name`, or "all", and rewrites its weights and the measured part of its card.

    Without `force` a network whose weights agree with its card is left alone. `progress` gets one line at a
    time. Raises UsageError for an unknown name, without scikit-learn, or when the zoo cannot be written.
    """
    # Copies come after the networks whose stored weights they change.
    every = sorted(names(), key=_is_copy) if name == "all" else [name]
    return tuple(_build(each, force, progress) for each in every)


def _is_copy(name: str) -> bool:
    return "\ndef derive(" in (folder_of(name) / MODEL).read_text(encoding="utf-8")


def retrain(name: str, progress: Progress = _silent) -> bytes:
    """Trains the network `name` in a process of its own and returns its weights as a safetensors file."""
    folder_of(name)
    need_sklearn()
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / WEIGHTS
        last = "no output"
        with subprocess.Popen(
            [sys.executable, "-B", str(root() / TRAINING), name, str(target)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_ONE_ARITHMETIC},
            text=True,
        ) as child:
            for line in child.stdout or ():
                last = line.rstrip()
                progress(f"{name}: {last}")
        if child.returncode != 0:
            raise InternalError(f"training {name} failed: {last}")
        return target.read_bytes()


def _build(name: str, force: bool, progress: Progress) -> Card:
    folder = folder_of(name)
    if not force:
        try:
            known = read_card(folder)
            if read_regular(folder / WEIGHTS).sha256 == known.measured.sha256:
                progress(f"{name}: up to date")
                return known
        except InvalidFile as problem:
            progress(f"{name}: {problem}")
    content = retrain(name, progress)
    measured = _measure(folder, content)
    text = with_measured((folder / CARD).read_text(encoding="utf-8"), measured)
    try:
        _replace(folder / WEIGHTS, content)
        _replace(folder / CARD, text.encode())
    except OSError as problem:
        what = f"cannot be written ({problem.strerror})"
        raise UsageError(sentence(folder, what, "build in a checkout")) from None
    progress(f"{name}: test accuracy {measured.test_accuracy:.4f}")
    return read_card(folder)


def _measure(folder: Path, content: bytes) -> Measured:
    import torch

    training, input_shape = read_recipe(folder)
    module = assemble(folder, content)
    data = load_data(training.data, input_shape)
    return Measured(
        torch=torch.__version__,
        sha256=hashlib.sha256(content).hexdigest(),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        train_samples=len(data.y_train),
        train_accuracy=accuracy(module, data.x_train, data.y_train),
        test_samples=len(data.y_test),
        test_accuracy=accuracy(module, data.x_test, data.y_test),
    )


def _replace(path: Path, content: bytes) -> None:
    """Writes beside `path` and moves, so that nobody ever reads half a file."""
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except OSError:
        os.unlink(scratch)
        raise
