"""How much memory may be taken: what the system has free, the limits it sets on this process, and `--memory`.

Sizes are bytes. Estimates are made before memory is taken (`refuse_beyond`), and loops over rows take as many at once as fit
(`share`). An allocation that fails all the same is no bug: `failed` knows it, `words` says it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lipverify.errors import UnsupportedModel

try:  # not on every system
    import resource as _RESOURCE
except ImportError:  # pragma: no cover
    _RESOURCE = None  # type: ignore[assignment]

_BEFORE = -1 if _RESOURCE is None else _RESOURCE.getrlimit(_RESOURCE.RLIMIT_DATA)[0]
_LIMIT: list[int | None] = [None]
_PLENTY = 1 << 62
_LEAST = 1 << 20
_ASIDE = 1 << 28
_MOST_HALVINGS = 6
_CHUNKS = {"halvings": 0, "asked": 0}
"""How often chunks were halved, and how many asked for their size."""
T = TypeVar("T")
_GROUPS = Path("/sys/fs/cgroup")
_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Limit, use, and the part of it that is given back, of control groups of the second and of the first version."""


def limit(most: int | None) -> None:
    """What this process may take, from now on: estimates keep to it, and the system refuses what goes far beyond.

    None lifts both. The system counts what is reserved, also what is never touched.
    """
    if _RESOURCE is None or (most is None and _LIMIT[0] is None):
        _LIMIT[0] = most
        return
    _LIMIT[0] = most
    _, hard = _RESOURCE.getrlimit(_RESOURCE.RLIMIT_DATA)
    if most is None:
        _RESOURCE.setrlimit(_RESOURCE.RLIMIT_DATA, (_BEFORE, hard))
        return
    status = _fields(Path("/proc/self/status"))
    untouched = max(status.get("VmData", 0) - status.get("RssAnon", 0), 0)
    wanted = int(1.05 * most) + untouched
    allowed = [end for end in (wanted, _BEFORE, hard) if end >= 0]
    _RESOURCE.setrlimit(_RESOURCE.RLIMIT_DATA, (min(allowed), hard))


def free() -> int:
    """What may still be taken: the least of what the system has, what the process and its group may have, and `limit`."""
    system = _fields(Path("/proc/meminfo")).get("MemAvailable", _PLENTY)
    own = _fields(Path("/proc/self/status"))
    found = [system, *_group()]
    if _LIMIT[0] is not None:
        found.append(_LIMIT[0] - own.get("VmRSS", 0))
    if _RESOURCE is not None:
        soft, _ = _RESOURCE.getrlimit(_RESOURCE.RLIMIT_AS)
        if soft >= 0:
            found.append(soft - own.get("VmSize", 0))
    return max(min(found), 0)


def share(most: int, part: int = 4) -> int:
    """What one chunk of a loop may take: `most`, or a part of what is free where that is less; 1 MiB at least."""
    _CHUNKS["asked"] += 1
    return max(min(most, free() // part) >> _CHUNKS["halvings"], _LEAST)


def halving(work: Callable[[], T]) -> T:
    """What `work` gives; where an allocation fails it begins again with chunks (`share`) of half the size.

    Raises what `work` raises; a failed allocation after six halvings, and where no size of a chunk was asked for.
    """
    before = _CHUNKS["halvings"]
    try:
        while True:
            asked = _CHUNKS["asked"]
            try:
                return work()
            except Exception as error:
                more = _CHUNKS["asked"] > asked and _CHUNKS["halvings"] < before + _MOST_HALVINGS
                if not (failed(error) and more):
                    raise
            # Outside the handler, whose frames hold what had been allocated.
            _CHUNKS["halvings"] += 1
    finally:
        _CHUNKS["halvings"] = before


def aside(size: int) -> mmap.mmap | None:
    """Room for `size` bytes in a file without a name, where that is much and the disk for temporary files has it; else None.

    What is in it stays when its pages are let go (`madvise(MADV_DONTNEED)`): they count to this process only while they are used.
    """
    if size < _ASIDE or not hasattr(os, "posix_fallocate"):
        return None
    try:
        with tempfile.TemporaryFile() as file:
            # All of it now: a page for which the disk has no room would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
            return mmap.mmap(file.fileno(), size)
    except OSError:
        return None


def refuse_beyond(needed: float, what: str, remedy: str = "give a larger --memory") -> None:
    """Raises UnsupportedModel, with both sizes, where `needed` bytes are more than may be taken."""
    available = free()
    if needed > available:
        raise UnsupportedModel(
            f"{what} needs about {_gigabytes(needed)}; {_gigabytes(available)} are available: {remedy}"
        )


def failed(error: BaseException) -> bool:
    """Whether an allocation failed: numpy and Python say MemoryError, torch a RuntimeError of its own or by words."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def words(error: BaseException) -> str:
    """Why there is no answer, after `failed`: the size that was asked for where the error tells it, and what is available."""
    asked = re.search(
        r"allocate (?:memory: you tried to allocate )?([0-9.]+) ?([kMGTP]?i?B|bytes)", str(error)
    )
    size = "" if asked is None else f" of {_asked(asked[1], asked[2])}"
    return f"an allocation{size} failed; {_gigabytes(free())} are available: give a larger --memory or a smaller question"


def _asked(number: str, unit: str) -> str:
    return _gigabytes(float(number)) if unit == "bytes" else f"{number} {unit}"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _fields(path: Path) -> dict[str, int]:
    """The sizes in a file of the system; none where it has no such file."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return {name: int(size) << 10 for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def _group() -> list[int]:
    """What the control groups of the process have left, its own and those around it, in either version of them."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, kinds, name = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        root = _GROUPS / kinds
        most, used, cache = _FILES[kinds]
        place = root / name.lstrip("/")
        for folder in (place, *(p for p in place.parents if p.is_relative_to(root))):
            limit_, current = _number(folder / most), _number(folder / used)
            if limit_ is not None and current is not None:
                # Pages of files that nobody uses just now are given back when memory is wanted.
                found.append(limit_ - current + _cached(folder / "memory.stat", cache))
    return found


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _cached(path: Path, name: str) -> int:
    try:
        found = re.search(rf"^{name} (\d+)$", path.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return 0
    return 0 if found is None else int(found[1])


def keep_freed() -> bool:
    """Asks the C library to keep freed memory for the next array; whether it has been asked (glibc).

    It gives large arrays back to the system, which fills the next ones with zeros, page by page: half of the faults and a
    tenth of the time of a proof over a ball of a residual CNN. For a process that ends with its work.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""
