"""Tensors that the pickle of a torch archive describes: its opcodes are followed as words, and nothing in it is called."""

from __future__ import annotations

import math
import pickletools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.program import Array
from lipverify.checkers.reader.refusals import need
from lipverify.errors import NotCovered

_KINDS: dict[str, Any] = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?", "BFloat16Storage": ("V", 2),
}  # fmt: skip
_REBUILT = (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor"))
_MOST, _LOOK, _AXES = 1 << 21, 1 << 12, 12
_MARK, _OTHER = object(), object()


class _Global(NamedTuple):
    module: str
    name: str


class _Storage(NamedTuple):
    kind: str
    key: str
    size: int


def stored_tensors(pickle: bytes, storages: Mapping[str, bytes]) -> list[Array]:
    """Every tensor with its type, sizes and numbers. storages: bytes by key.

    Raises:
        NotCovered: no pickle, or a tensor that reaches beyond its storage.
    """
    walk = _Walk(storages)
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(pickle)):
            need(count < _MOST, "a pickle of too many operations to check")
            if count % _LOOK == 0:
                charge(0)  # whoever waits may have waited long enough
            walk.step(opcode, argument)
            end = (position or 0) + 1
    except (ValueError, IndexError, KeyError, UnicodeError):
        raise NotCovered("a pickle that cannot be followed") from None
    need(end == len(pickle), "a pickle with bytes behind its end")
    return walk.tensors


class _Walk:
    """A stack of what the opcodes so far have put there: numbers, words, tuples, names and storages; all else is one thing."""

    def __init__(self, storages: Mapping[str, bytes]) -> None:
        self.storages, self.stack, self.memo = storages, list[Any](), dict[int, Any]()
        self.tensors: list[Array] = []

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name, stack = opcode.name, self.stack
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        else:
            made = self._made(name, argument, self._taken(opcode))
            stack += [made] * len(opcode.stack_after)

    def _taken(self, opcode: pickletools.OpcodeInfo) -> list[Any]:
        """What an opcode takes off the stack, in its order."""
        before, taken = list(opcode.stack_before), []
        if pickletools.markobject in before:
            while (top := self.stack.pop()) is not _MARK:
                taken.append(top)
            before = before[: before.index(pickletools.markobject)]
        taken += [self.stack.pop() for _ in before]
        return taken[::-1]

    def _made(self, name: str, argument: Any, taken: list[Any]) -> Any:
        if name in ("NEWTRUE", "NEWFALSE", "NONE"):
            return _OTHER
        if type(argument) in (int, str) and name != "GLOBAL":
            return argument
        if name in ("GLOBAL", "STACK_GLOBAL"):
            words = argument.split(" ", 1) if name == "GLOBAL" else taken
            return _Global(*words) if len(words) == 2 and all(type(w) is str for w in words) else _OTHER
        if "TUPLE" in name:
            return tuple(taken)
        if name == "BINPERSID":
            return _storage(taken[0])
        if name == "REDUCE" and isinstance(taken[0], _Global) and taken[0] in _REBUILT:
            self._tensor(taken[1])
        return _OTHER

    def _tensor(self, given: Any) -> None:
        """A view of a storage: which type, where it begins, sizes and strides, in numbers."""
        if not isinstance(given, tuple) or len(given) < 4 or not isinstance(given[0], _Storage):
            return
        storage, start, sizes, strides = given[:4]
        whole = all(
            isinstance(t, tuple) and all(type(n) is int and n >= 0 for n in t) for t in (sizes, strides)
        )
        need(
            whole and len(sizes) == len(strides) <= _AXES and type(start) is int,
            "a tensor of an invalid shape",
        )
        body, dtype = self.storages.get(storage.key), np.dtype(_KINDS[storage.kind])
        need(body is not None and len(body) == storage.size * dtype.itemsize, "a storage of another size")
        assert body is not None
        size = math.prod(sizes)
        last = start + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
        need(start >= 0 and (size == 0 or last < storage.size), "a tensor that reaches beyond its storage")
        if (
            size > storage.size
        ):  # numbers that are repeated are none of the file's: much would be made of a few bytes
            return
        charge(size)
        flat = np.frombuffer(body, dtype)[min(start, storage.size) :]
        steps = [s * dtype.itemsize for s in strides]
        seen = (
            np.lib.stride_tricks.as_strided(flat, sizes, steps, writeable=False)
            if size
            else np.empty(sizes, dtype)
        )
        self.tensors.append(np.ascontiguousarray(seen).reshape(sizes))


def _storage(given: Any) -> Any:
    """('storage', torch's class, key, place, count), where it is one of a known type."""
    if not isinstance(given, tuple) or len(given) != 5 or given[0] != "storage":
        return _OTHER
    _, kind, key, _, count = given
    named = isinstance(kind, _Global) and kind.module == "torch" and kind.name in _KINDS
    return (
        _Storage(kind.name, key, count)
        if named and type(key) is str and type(count) is int and count >= 0
        else _OTHER
    )
