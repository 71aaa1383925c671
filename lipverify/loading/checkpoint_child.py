"""The child process that unpickles a torch checkpoint: standard input to standard output, then it ends.

Input is the file; output is a safetensors file whose tensors are numbered and whose metadata say where in the
object each one was (exit 0), or a JSON object {"error": kind, "detail": text} (exit 3). The parent believes
neither. Limits are set after torch is imported, since how much address space torch itself takes depends on its
build, and before the first byte of the file is looked at.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from typing import Any, NoReturn

FAILED = 3
MINIMUM_TORCH = (2, 10)  # CVE-2025-32434 and CVE-2026-24747 bypassed weights_only before it
MAX_LEAVES = 100_000
MAX_DEPTH = 16
MAX_KEY = 1 << 12

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def main() -> None:
    """Reads descriptor 0, writes descriptor 1."""
    import torch

    torch.set_num_threads(1)
    size = os.fstat(0).st_size
    version = torch.__version__
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < MINIMUM_TORCH:
        _fail("torch", version)
    _limit(size)
    with os.fdopen(0, "rb", closefd=False) as source:
        tensors, ignored = _collect(_load(source), 4 * size + (1 << 20))
    from lipverify.loading.safetensors import write_safetensors

    metadata = {
        "paths": json.dumps([path for path, _ in tensors]),
        "ignored": json.dumps(ignored),
    }
    _write(write_safetensors({str(i): tensor for i, (_, tensor) in enumerate(tensors)}, metadata))


def _limit(size: int) -> None:
    """Bounds what an accident can cost. A limit that this system does not know is left out."""
    import resource

    with open("/proc/self/statm", "rb") if os.path.exists("/proc/self/statm") else _nothing() as statm:
        fields = statm.read().split()
    taken = int(fields[0]) * resource.getpagesize() if fields else 4 << 30
    wanted = {
        # The storages, one dense copy of each, and the output twice while it is put together.
        "RLIMIT_AS": taken + (512 << 20) + 6 * size,
        "RLIMIT_CPU": 120,
        "RLIMIT_FSIZE": 5 * size + (64 << 20),
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 0,
    }
    for name, value in wanted.items():
        if hasattr(resource, name):
            try:
                resource.setrlimit(getattr(resource, name), (value, value))
            except (ValueError, OSError):
                continue


def _nothing() -> Any:
    import io

    return io.BytesIO()


def _load(source: Any) -> Any:
    import torch

    try:
        # Names every foreign global of a zip checkpoint from its opcodes, before anything is loaded.
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(source)
    except Exception:  # a legacy file, or a damaged one: the load below says which
        foreign = []
    if foreign:
        _fail("global", ", ".join(sorted(foreign)))
    source.seek(0)
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        named = _GLOBAL.search(str(problem))
        _fail("global", named[1]) if named else _fail("unsafe", "")
    except MemoryError:
        _fail("memory", "")
    except Exception as problem:  # torch raises almost anything on damaged input
        _fail("memory" if "alloc" in str(problem) else "damaged", type(problem).__name__)


def _collect(loaded: Any, max_bytes: int) -> tuple[list[tuple[list[str], Any]], list[list[str]]]:
    """Tensors with their paths in the object, and the paths of everything else in it."""
    import torch

    tensors: list[tuple[list[str], Any]] = []
    ignored: list[list[str]] = []
    total = count = 0
    waiting: list[tuple[list[str], Any]] = [([], loaded)]
    while waiting:
        path, value = waiting.pop()
        count += 1
        # A pickle can build a dictionary that contains itself.
        if count > MAX_LEAVES or len(path) > MAX_DEPTH:
            _fail("nested", "")
        if isinstance(value, dict):
            waiting.extend(([*path, _key(key)], item) for key, item in reversed(value.items()))
        elif isinstance(value, list | tuple):
            waiting.extend(([*path, str(i)], item) for i, item in reversed([*enumerate(value)]))
        elif isinstance(value, torch.Tensor):
            _check_kind(value, ".".join(path))
            # Strides of zero make a terabyte out of four bytes.
            total += value.numel() * value.element_size()
            if total > max_bytes:
                _fail("expanded", ".".join(path))
            tensors.append((path, value))
        else:
            ignored.append(path)
    return tensors, ignored


def _key(key: Any) -> str:
    return (key if isinstance(key, str) else repr(key))[:MAX_KEY]


def _check_kind(tensor: Any, name: str) -> None:
    import torch

    from lipverify.loading.safetensors import DTYPES

    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided:
        _fail("kind", f"{name[:MAX_KEY]}: sparse")
    if tensor.is_quantized or tensor.device.type != "cpu":
        _fail("kind", f"{name[:MAX_KEY]}: {'quantised' if tensor.is_quantized else tensor.device.type}")
    if dtype not in {name for name, _ in DTYPES.values()}:
        _fail("kind", f"{name[:MAX_KEY]}: {dtype}")
    if tensor.is_conj() or tensor.is_neg():
        _fail("kind", f"{name[:MAX_KEY]}: a lazy view")


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _fail(kind: str, detail: str) -> NoReturn:
    _write(json.dumps({"error": kind, "detail": detail[: 1 << 14]}).encode())
    sys.stdout.flush()
    os._exit(FAILED)
