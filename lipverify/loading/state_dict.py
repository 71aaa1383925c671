"""Weights without an architecture: state dicts of torch, safetensors and .npz, as a flat table of tensors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from lipverify.errors import InvalidFile, UnsafeInput, UnsupportedModel
from lipverify.loading.checkpoint_child import FAILED
from lipverify.loading.files import FileBytes, Path, read_regular
from lipverify.loading.formats import WEIGHTS, Format, require_format
from lipverify.loading.names import display, sentence
from lipverify.loading.numpy_archive import parse_npz
from lipverify.loading.safetensors import parse_tensors, require_finite
from lipverify.loading.zip_archive import STORED, members, read_member

if TYPE_CHECKING:
    from torch import Tensor

MAX_CHECKPOINT_BYTES = 2 << 30
SECONDS = 120.0

# Keys under which training scripts keep the network, the usual ones first.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "parameters",
)
# Prefixes that torch.nn.DataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")

# Entries that torch.save writes, in one folder.
_WRITTEN = re.compile(
    r"data\.pkl|data/[0-9]+|byteorder|version|\.data/serialization_id|\.format_version|\.storage_alignment"
)

_START = (
    "import sys; sys.path.append(sys.argv[1]); from lipverify.loading.checkpoint_child import main; main()"
)
_EXPORT = "save a plain state dict of tensors, or .safetensors"

Leaf = tuple[tuple[str, ...], "Tensor"]


@dataclass(frozen=True)
class StateDict:
    """Tensors by dotted name, on the CPU, in the dtype of the file, all finite.

    `unwrapped` lists the keys and prefixes that were taken off (`state_dict`, `module.`), `ignored` the dotted
    names of everything in the file that is not among `tensors`.
    """

    tensors: dict[str, Tensor]
    unwrapped: tuple[str, ...]
    ignored: tuple[str, ...]
    path: str
    sha256: str


def read_state_dict(path: Path) -> StateDict:
    """Reads weights: .safetensors, .npz, or a torch checkpoint (unpickled with weights_only=True in a child).

    Raises UnsafeInput when reading would need more than plain tensors (the offending global is named) or the
    archive is built as an attack, UnsupportedModel for sparse, complex or quantised tensors, InvalidFile for
    damage, NaN and infinity.
    """
    file = read_regular(path, MAX_CHECKPOINT_BYTES)
    found = require_format(file, WEIGHTS, "a file of weights")
    leaves: list[Leaf]
    rest: list[tuple[str, ...]] = []
    if found is Format.SAFETENSORS:
        leaves = [((name,), tensor) for name, tensor in parse_tensors(file.data, path)[0].items()]
    elif found is Format.NPZ:
        import torch

        leaves = [((name,), torch.from_numpy(array)) for name, array in parse_npz(file.data, path).items()]
    else:
        leaves, rest = read_leaves(file, found)
    return select(leaves, rest, file)


def read_leaves(file: FileBytes, found: Format) -> tuple[list[Leaf], list[tuple[str, ...]]]:
    """The tensors of a torch file with their places in it, and the places of everything else. Raises as `read_state_dict`."""
    if found is Format.TORCH_ZIP:
        _check_archive(file)
    return _unpickle(file)


def select(leaves: list[Leaf], rest: list[tuple[str, ...]], file: FileBytes) -> StateDict:
    """Finds the network among everything a checkpoint holds; `rest` are the paths that hold no tensors."""
    unwrapped: list[str] = []
    chosen = leaves
    while (key := _wrapper(chosen)) is not None:
        chosen = [(names[1:], tensor) for names, tensor in chosen if names[0] == key and len(names) > 1]
        unwrapped.append(key)
    depth = len(unwrapped)
    inside = tuple(unwrapped)
    ignored = [".".join(names) for names, _ in leaves if len(names) <= depth or names[:depth] != inside]
    ignored += [".".join(names) for names in rest]
    tensors: dict[str, Tensor] = {}
    for names, tensor in chosen:
        name = ".".join(names)
        if not name or name in tensors:
            what = f'tensor "{display(name)}" occurs twice' if name else "holds a tensor without a name"
            raise InvalidFile(sentence(file.path, what, _EXPORT))
        tensors[name] = tensor
    while prefix := next((p for p in _PREFIXES if tensors and all(n.startswith(p) for n in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        unwrapped.append(prefix)
    if not tensors:
        raise InvalidFile(sentence(file.path, "holds no tensors", _EXPORT))
    for name, tensor in tensors.items():
        require_finite(tensor, name, file.path)
    return StateDict(tensors, tuple(unwrapped), tuple(ignored), file.path, file.sha256)


def _wrapper(leaves: list[Leaf]) -> str | None:
    """The key to descend into: a usual name of a network, or the only container there is."""
    containers = list(dict.fromkeys(names[0] for names, _ in leaves if len(names) > 1))
    for key in WRAPPERS:
        if key in containers:
            return key
    return containers[0] if len(containers) == 1 and all(len(names) > 1 for names, _ in leaves) else None


def _check_archive(file: FileBytes) -> None:
    found = members(file.data, file.path).values()
    folders = {member.name.partition("/")[0] for member in found}
    for member in found:
        if len(folders) > 1 or not _WRITTEN.fullmatch(member.name.partition("/")[2]):
            # torch.load looks names up whatever their case: of data.pkl and DATA.PKL it may take either.
            what = f'archive member "{display(member.name, 60)}" is none that torch writes'
            raise UnsafeInput(sentence(file.path, what, "save it again with torch.save"))
        if member.method != STORED:
            # torch writes stored members; a compressed one makes torch.load allocate a thousand times its size.
            what = f'archive member "{display(member.name, 60)}" is compressed, which torch never writes'
            raise UnsafeInput(sentence(file.path, what, "save it again with torch.save"))
        read_member(file.data, member, file.path)


def _unpickle(file: FileBytes) -> tuple[list[Leaf], list[tuple[str, ...]]]:
    """Runs the child on these bytes. It starts from a fresh interpreter in isolated mode with an empty
    environment, in a process group of its own and an empty folder, and is killed when its time is over."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as answer:
        source.write(file.data)
        source.seek(0)
        with tempfile.TemporaryDirectory(prefix="lipverify-") as folder:
            child = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, root],
                stdin=source,
                stdout=answer,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={},
                start_new_session=True,
            )
            code = _wait(child, file)
        size = os.fstat(answer.fileno()).st_size
        if size > 5 * len(file.data) + (64 << 20):
            raise UnsafeInput(sentence(file.path, "unpickling it produced more data than it holds", _EXPORT))
        answer.seek(0)
        data = answer.read()
    if code == FAILED:
        _refuse(data, file)
    if code != 0:
        what = f"torch could not read it (the child process ended with {code})"
        raise InvalidFile(sentence(file.path, what, _EXPORT))
    tensors, metadata = parse_tensors(data, file.path)
    paths, rest = _paths(metadata.get("paths"), file), _paths(metadata.get("ignored"), file)
    if len(paths) != len(tensors) or list(tensors) != [str(i) for i in range(len(paths))]:
        raise InvalidFile(sentence(file.path, "the child process gave a damaged answer", _EXPORT))
    return list(zip(paths, tensors.values(), strict=True)), rest


def _wait(child: subprocess.Popen[bytes], file: FileBytes) -> int:
    try:
        return child.wait(SECONDS)
    except subprocess.TimeoutExpired:
        what = f"torch needs more than {SECONDS:g} s to read it"
        raise InvalidFile(sentence(file.path, what, _EXPORT)) from None
    finally:
        # Also when the user interrupts. While the child is not waited for, its number belongs to nobody else.
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _paths(text: str | None, file: FileBytes) -> list[tuple[str, ...]]:
    try:
        decoded: Any = json.loads(text or "")
    except (ValueError, RecursionError):
        decoded = None
    lists = isinstance(decoded, list) and all(isinstance(names, list) for names in decoded)
    if not lists or not all(isinstance(name, str) for names in decoded for name in names):
        raise InvalidFile(sentence(file.path, "the child process gave a damaged answer", _EXPORT))
    return [tuple(names) for names in decoded]


def _refuse(data: bytes, file: FileBytes) -> NoReturn:
    try:
        answer = json.loads(data[: 1 << 17])
        kind, detail = str(answer["error"]), display(str(answer["detail"]), 70)
    except (ValueError, KeyError, TypeError, RecursionError):
        kind, detail = "", ""
    if kind == "global":
        raise UnsafeInput(sentence(file.path, f"loading it would run foreign code ({detail})", _EXPORT))
    if kind == "unsafe":
        raise UnsafeInput(sentence(file.path, "it holds more than plain tensors", _EXPORT))
    if kind == "torch":
        what = f"reading pickled weights safely needs torch >= 2.10, found {detail}"
        raise UnsafeInput(sentence(file.path, what, "convert it to .safetensors"))
    if kind == "expanded":
        what = f'tensors up to "{detail}" unpack to more than 4 times the size of the file'
        raise UnsafeInput(sentence(file.path, what, _EXPORT))
    if kind == "kind":
        what = f"a tensor is not dense real numbers ({detail})"
        raise UnsupportedModel(sentence(file.path, what, "save dense real tensors"))
    reasons = {
        "memory": "reading it needs more memory than its size allows",
        "nested": "it is nested too deep or holds too many objects",
        "damaged": f"torch cannot read it ({detail})",
    }
    raise InvalidFile(sentence(file.path, reasons.get(kind, "the child process gave no answer"), _EXPORT))
