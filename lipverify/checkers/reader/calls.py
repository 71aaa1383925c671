"""One operator as it is called: operands and settings that are each taken, or refused.

An operator's translation takes what it understands. What is left over when it is done (an attribute nobody asked for, an operand
nobody looked at, a result nobody made) ends the reading, so nothing can be ignored by mistake.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from lipverify.checkers.kernel.program import Array
from lipverify.checkers.reader.building import FLOATS, Builder, Missing, Operand, Stored, Value, weights
from lipverify.checkers.reader.refusals import need, shown
from lipverify.errors import NotCovered

MAX_OPERANDS, _CALL = 10_000, 64
Mark = TypeVar("Mark", bound=Missing)


@dataclass(frozen=True)
class Body:
    """A subgraph. nodes: in the order in which they are computed; seen: names around it that it reads; own: all others.

    told: element type and axes of an input (-1 where unknown), where the file says them.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Any, ...]
    tensors: Mapping[str, Stored]
    told: Mapping[str, tuple[np.dtype[Any], Sequence[int] | None]]
    seen: frozenset[str]
    own: frozenset[str]


class Call:
    """One operator of a model.

    version: the operator set. words: it is an operator of a certificate, which writes lists of sizes as settings always.
    given: settings by name: int, float, str, or a tuple or array of these.
    """

    def __init__(self, p: Builder, op: str, version: int, operands: Sequence[Operand], given: Mapping[str, Any],
                 results: int, words: bool = False) -> None:  # fmt: skip
        self.op, self.version, self.words, self.results = op, version, words, results
        need(max(len(operands), results) <= MAX_OPERANDS, f"{op} of too many operands or results")
        self._account = p
        p.charge(_CALL + len(operands) + results)
        self.operands, self._told = list(operands), len(operands)
        while self.operands and self.operands[-1] is None:
            self.operands.pop()
        self._given, self._taken, self._known = dict(given), [False] * len(self.operands), 0

    # -- operands

    def operand(self, place: int) -> Value | Stored | None:
        """An operand, None where it is left out."""
        self.take(place)
        if place >= len(self.operands):
            return None
        found = self.operands[place]
        if isinstance(found, Missing):
            raise NotCovered(found.reason)
        return found

    def take(self, place: int) -> None:
        """Says that an operand has been looked at."""
        self._known = max(self._known, place + 1)
        if place < len(self.operands):
            self._taken[place] = True

    def marked(self, place: int, kind: type[Mark]) -> Mark | None:
        """An operand that is `kind`, for operators that know what to do with it, taken; None: it is something else."""
        found = self.operands[place] if place < len(self.operands) else None
        if not isinstance(found, kind):
            return None
        self.take(place)
        return found

    def any(self, place: int) -> Value | Stored:
        found = self.operand(place)
        need(isinstance(found, Value | Stored), f"{self.op} lacks an operand")
        assert isinstance(found, Value | Stored)
        return found

    def all(self) -> list[Value | Stored]:
        """Every operand, at least one."""
        need(len(self.operands) == self._told > 0, f"{self.op} lacks an operand")
        return [self.any(k) for k in range(len(self.operands))]

    def value(self, p: Builder, place: int) -> Value:
        return p.computed(self.any(place))

    def stored(self, place: int) -> Array:
        """A stored tensor as it is: its numbers exactly. Those that are rounded are `weights`."""
        found = self.any(place)
        need(isinstance(found, Stored), f"{self.op} with a computed tensor where a stored one is expected")
        assert isinstance(found, Stored)
        need(
            found.rounded == 0, f"{self.op} of stored numbers that are rounded is not covered by the checker"
        )
        real = found.array.dtype.kind == "f"
        self._account.charge(found.array.size)  # whoever asks looks at all of it
        need(not real or bool(np.isfinite(found.array).all()), f"{self.op} of a stored infinity")
        return found.array

    def reals(self, place: int, kind: np.dtype[Any]) -> Array:
        """Stored floats of the type `kind`, as float64."""
        values, rounded = self.weights(place, kind)
        need(rounded == 0, f"{self.op} of stored numbers that are rounded is not covered by the checker")
        return values

    def weights(self, place: int, kind: np.dtype[Any]) -> tuple[Array, int]:
        """Stored floats of the type `kind` as float64, and how many roundings are behind them."""
        found = self.any(place)
        need(isinstance(found, Stored), f"{self.op} with a computed tensor where a stored one is expected")
        assert isinstance(found, Stored)
        need(found.kind == kind, f"{self.op} of numbers of different types")
        self._account.charge(found.array.size)
        return weights(found)

    def optional(self, place: int, kind: np.dtype[Any]) -> Array | None:
        return None if self.operand(place) is None else self.reals(place, kind)

    def integers_at(self, place: int, short: bool = False) -> list[int]:
        """A stored list of integers of 64 bits; short: or of 32."""
        array = self.stored(place)
        need(
            array.dtype in (np.dtype("<i8"), np.dtype("<i4" if short else "<i8")) and array.ndim <= 1,
            f"{self.op} with sizes that are no integers",
        )
        need(array.size <= 1 << 16, f"{self.op} with too many sizes")
        return [int(n) for n in array.reshape(-1)]

    def continued(
        self, operands: Sequence[Operand], op: str | None = None, version: int | None = None
    ) -> Call:
        """This call with other operands, in the middle of its translation: settings that are taken there are taken here.

        op, version: of an operator that is called inside of this one.
        """
        self.op, self.version = op or self.op, self.version if version is None else version
        need(self._told <= self._known, f"{self.op} of too many operands")
        self.operands, self._told = list(operands), len(operands)
        self._taken, self._known = [False] * len(operands), 0
        return self

    # -- settings

    def has(self, name: str) -> bool:
        return name in self._given

    def sees(self, name: str) -> Any:
        """A setting that somebody else takes; None where it is left out."""
        return self._given.get(name)

    def _take(self, name: str, default: Any, kinds: tuple[type, ...]) -> Any:
        if name not in self._given:
            need(default is not None, f"{self.op} lacks the setting {name}")
            return default
        found = self._given.pop(name)
        need(type(found) in kinds, f"the setting {name} of {self.op} has another type")
        return found

    def integer(self, name: str, default: int | None) -> int:
        return int(self._take(name, default, (int,)))

    def flag(self, name: str, default: int) -> bool:
        found = self.integer(name, default)
        need(found in (0, 1), f"the setting {name} of {self.op} is neither 0 nor 1")
        return bool(found)

    def number(self, name: str, default: float | None) -> float:
        """A float; defaults are those of float32. Infinite or no number: refused."""
        value = float(self._take(name, default, (float,)))
        need(math.isfinite(value), f"the setting {name} of {self.op} is not finite")
        return float(np.float32(value)) if not self.words else value

    def limit(self, name: str, default: float) -> float:
        """A float that may be infinite."""
        value = float(self._take(name, default, (float,)))
        need(not math.isnan(value), f"the setting {name} of {self.op} is no number")
        return value

    def text(self, name: str, default: str) -> str:
        return str(self._take(name, default, (str,)))

    def integers(self, name: str, default: Sequence[int] | None) -> list[int]:
        found = self._take(name, None if default is None else tuple(default), (tuple,))
        need(
            all(type(n) is int for n in found) and len(found) <= 1 << 16,
            f"the setting {name} of {self.op} is no list of integers",
        )
        return list(found)

    def reals_given(self, name: str) -> list[float]:
        found = self._take(name, None, (tuple,))
        need(all(type(n) is float for n in found), f"the setting {name} of {self.op} is no list of numbers")
        return list(found)

    def texts(self, name: str, default: Sequence[str]) -> list[str]:
        found = self._take(name, tuple(default), (tuple,))
        need(all(type(t) is str for t in found), f"the setting {name} of {self.op} is no list of words")
        return list(found)

    def body(self, name: str) -> Body:
        """A subgraph as a setting."""
        found = self._take(name, None, (Body,))
        assert isinstance(found, Body)
        return found

    def array(self, name: str, default: Array) -> Array:
        """A tensor as a setting."""
        found = self._take(name, default, (np.ndarray,))
        return np.asarray(found)

    def listed(self, place: int, name: str, since: int, short: bool = False) -> list[int] | None:
        """Integers that are a setting before the operator set `since` and an operand from then on; None where left out."""
        if self.words or self.version < since:
            return self.integers(name, ()) if self.has(name) else None
        return None if self.operand(place) is None else self.integers_at(place, short)

    def finish(self) -> None:
        """Refuses what nobody took."""
        if self._given:
            need(False, f"the setting {shown(min(self._given))} of {self.op} is not covered by the checker")
        unread = [
            k
            for k, (taken, o) in enumerate(zip(self._taken, self.operands, strict=True))
            if not taken and o is not None
        ]
        need(
            not unread and self._told <= self._known,
            f"operand {unread[:1]} of {self.op} is not covered by the checker",
        )


def same_kind(operands: Sequence[Value | Stored], op: str) -> np.dtype[Any]:
    """The one type of floats of all operands."""
    kinds = {o.kind for o in operands}
    need(len(kinds) == 1, f"{op} of numbers of different types")
    kind = kinds.pop()
    need(kind in FLOATS, f"{op} of numbers that are not real")
    return kind
