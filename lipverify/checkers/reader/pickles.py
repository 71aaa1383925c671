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
_PARAMETER, _TABLE = ("torch._utils", "_rebuild_parameter"), ("collections", "OrderedDict")
_HARMLESS = (
    ("torch", "Size"), ("torch", "device"), ("builtins", "set"), ("_codecs", "encode"), ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)  # fmt: skip
"""What is called with no tensor, and makes none."""
_OPCODES = (
    "PROTO FRAME GLOBAL STACK_GLOBAL BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET EMPTY_DICT EMPTY_LIST EMPTY_TUPLE EMPTY_SET "
    "MARK TUPLE TUPLE1 TUPLE2 TUPLE3 REDUCE BUILD SETITEM SETITEMS APPEND APPENDS BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINBYTES SHORT_BINBYTES NONE NEWTRUE NEWFALSE BINPERSID STOP"
)
_WORDS = frozenset(_OPCODES.split())
"""Opcodes that writers of archives use."""
_MOST, _LOOK, _AXES, _TIMES, _LARGEST = 1 << 21, 1 << 12, 12, 8, 1 << 63
_PARTS = 7
"""Of what a tensor is made from: storage, start, sizes, strides, gradients, hooks, metadata (of which there is none)."""
_MARK, _OTHER, _NONE, _TENSOR = object(), object(), object(), object()


class _Global(NamedTuple):
    module: str
    name: str


class _Storage(NamedTuple):
    kind: str
    key: str
    size: int


class _Given(NamedTuple):
    """A tuple with a storage or a tensor in it, or with such a tuple. raw: whether there is a storage."""

    values: tuple[Any, ...]
    raw: bool


class _Table:
    """A dictionary or a list that the pickle fills. keys: of a dictionary, those that are words."""

    def __init__(self) -> None:
        self.keys: set[Any] = set()


def stored_tensors(pickle: bytes, storages: Mapping[str, bytes]) -> tuple[list[Array], int]:
    """Every tensor that is made on the way, with its type, sizes and numbers, and how many more repeat numbers of a storage.
    storages: bytes by key.

    Nothing else is made of storages, and all of them are read: what a file holds beside these tensors is no number. A tensor
    becomes a parameter at most, or an entry of tables: nothing is called with one, put into one, or given as a state.

    Raises:
        NotCovered: no pickle, a tensor that reaches beyond its storage, or numbers that are used in another way.
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
    need(walk.kinds.keys() == storages.keys(), "a storage that no tensor reads")
    return list(walk.tensors.values()), len(walk.repeated)


class _Walk:
    """A stack of what the opcodes so far have put there: numbers, words, tuples, tables, names, storages and tensors; all else is
    one thing."""

    def __init__(self, storages: Mapping[str, bytes]) -> None:
        self.storages, self.stack, self.memo = storages, list[Any](), dict[int, Any]()
        self.tensors: dict[tuple[Any, ...], Array] = {}
        self.repeated: set[tuple[Any, ...]] = set()
        self.kinds: dict[str, str] = {}
        self.room = _TIMES * sum(map(len, storages.values()))

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name, stack = opcode.name, self.stack
        need(name in _WORDS, f"a pickle with {name}")
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
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
            return _NONE if name == "NONE" else _OTHER
        if type(argument) in (int, str) and name != "GLOBAL":
            # Every use of a number takes the time of its digits, and an operation of three bytes uses twenty.
            small = type(argument) is str or abs(argument) < _LARGEST
            need(small, "a pickle with a number of more than 64 bits")
            return argument
        if name in ("GLOBAL", "STACK_GLOBAL"):
            words = argument.split(" ", 1) if name == "GLOBAL" else taken
            return _Global(*words) if len(words) == 2 and all(type(w) is str for w in words) else _OTHER
        raw = any(isinstance(t, _Storage) or (isinstance(t, _Given) and t.raw) for t in taken)
        held = raw or any(t is _TENSOR or isinstance(t, _Given) for t in taken)
        if "TUPLE" in name:
            return _Given(tuple(taken), raw) if held else tuple(taken)
        if name == "REDUCE":
            return self._called(taken[0], taken[1], held)
        if name == "BINPERSID" and not held:
            return _storage(taken[0])
        need(not raw, "numbers of an archive that are used in an unknown way")
        if name in ("EMPTY_DICT", "EMPTY_LIST"):
            return _Table()
        if name in ("SETITEM", "SETITEMS", "APPEND", "APPENDS"):
            table = taken[0]
            need(isinstance(table, _Table), "a pickle that puts something into another thing than a table")
            keys = taken[1::2] if name.startswith("SETITEM") else [_OTHER]
            table.keys.update(key if type(key) is str else _OTHER for key in keys)
            return table
        need(not held or name == "STOP", "numbers of an archive that are used in an unknown way")
        if name == "BUILD":
            # A table with words of its own, such as `keys`, would be another table for whoever reads it.
            thing, state = taken
            plain = isinstance(thing, _Table) and isinstance(state, _Table) and state.keys <= {"_metadata"}
            need(plain or thing is _OTHER, "a pickle that changes what it has made")
            return thing
        return _OTHER

    def _called(self, function: Any, given: Any, held: bool) -> Any:
        """What a function gives: of those that torch.load calls with nothing but data, the few that leave numbers as they are."""
        known = function if isinstance(function, _Global) else None
        if known in _REBUILT:
            self._tensor(given)
            return _TENSOR
        if known == _PARAMETER:
            tensor = isinstance(given, _Given) and len(given.values) == 3 and given.values[0] is _TENSOR
            need(tensor, "a parameter of an unknown form")
            return _TENSOR
        plain = (known == _TABLE and given == ()) or known in _HARMLESS
        need(plain and not held, "numbers of an archive that are used in an unknown way")
        return _Table() if known == _TABLE else _OTHER

    def _tensor(self, given: Any) -> None:
        """A view of a storage: which type, where it begins, sizes and strides, in numbers."""
        # One tuple may be used by every third byte: its length is looked at before its entries.
        need(isinstance(given, _Given) and 4 <= len(given.values) <= _PARTS, "a tensor of an unknown form")
        (storage, start, sizes, strides), more = given.values[:4], given.values[4:]
        whole = all(
            isinstance(t, tuple) and len(t) <= _AXES and all(type(n) is int and n >= 0 for n in t)
            for t in (sizes, strides)
        )
        whole = whole and type(start) is int and isinstance(storage, _Storage)
        need(whole and len(sizes) == len(strides), "a tensor of an invalid shape")
        # Metadata are bits that turn the numbers' signs.
        plain = all(t is _NONE for t in more[2:])
        need(plain and not any(isinstance(t, _Storage | _Given) for t in more), "a tensor of an unknown form")
        body, dtype = self.storages.get(storage.key), np.dtype(_KINDS[storage.kind])
        need(body is not None and len(body) == storage.size * dtype.itemsize, "a storage of another size")
        assert body is not None
        need(self.kinds.setdefault(storage.key, storage.kind) == storage.kind, "a storage of two types")
        size = math.prod(sizes)
        last = start + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
        need(start >= 0 and (size == 0 or last < storage.size), "a tensor that reaches beyond its storage")
        key = (storage.key, start, sizes, strides)
        # Numbers that are repeated are none of the file's: much would be made of a few bytes.
        if size > storage.size:
            self.repeated.add(key)
        if key in self.tensors or size > storage.size:
            return
        self.room -= size * dtype.itemsize
        need(self.room >= 0, "an archive of too many tensors in one storage")
        flat = np.frombuffer(body, dtype)[min(start, storage.size) :]
        steps = [s * dtype.itemsize for s in strides]
        lib = np.lib.stride_tricks
        self.tensors[key] = (
            lib.as_strided(flat, sizes, steps, writeable=False) if size else np.empty(sizes, dtype)
        )


def _storage(given: Any) -> _Storage:
    """('storage', torch's class, key, place, count), of a known type."""
    need(
        isinstance(given, tuple) and len(given) == 5 and given[0] == "storage", "a storage of an unknown form"
    )
    _, kind, key, place, count = given
    need(type(place) is str and place != "meta", "a storage without numbers")
    known = isinstance(kind, _Global) and kind.module == "torch" and kind.name in _KINDS
    need(known and type(key) is str and type(count) is int and count >= 0, "a storage of an unknown type")
    return _Storage(kind.name, key, count)
