"""Evidence that the budget left no time to prove, as plain data: kept beside its bound, read again to be proved later.

Nothing that is read here is believed: the checker proves the bound from what the evidence writes, or does not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

import torch
from torch import Tensor

from lipverify.errors import InternalError, InvalidFile
from lipverify.ir.certificate import Certificate, Gains, Step
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Everywhere, Query
from lipverify.linalg.rounding import Upper

KEPT: dict[str, type[Any]] = {kind.__name__: kind for kind in (Gains, Step, Upper)}
"""The kinds of evidence that are kept, by name; no other name is looked up. Analyzers add theirs with `keepable`."""
_DEEP = 64
UNPROVED = (
    "the budget ended before the checker had proved it; `lipverify prove` goes on with the folder of --out"
)
"""Why a bound whose evidence is kept has no proof yet."""
ENDED = "the budget ended before the checker had proved it; give a larger --budget"
"""The same where nothing is kept."""


Kind = TypeVar("Kind", bound=type[Any])


def keepable(kind: Kind) -> Kind:
    """A decorator of dataclasses: evidence that is kept where the budget leaves no time for its proof.

    Raises:
        InternalError: another class has that name.
    """
    known = KEPT.setdefault(kind.__name__, kind)
    if known is not kind:
        raise InternalError(
            f"two kinds of evidence are called {kind.__name__!r}, in {known.__module__} and {kind.__module__}"
        )
    return kind


def kept(evidence: Any, query: Query) -> dict[str, Any] | None:
    """The evidence and its query as JSON; None for a kind that is not kept."""
    try:
        return {"evidence": _written(evidence), "query": _written_query(query)}
    except TypeError:
        return None


def cut(certificate: Certificate) -> Certificate:
    """A bound whose proof the budget ended; it names what goes on with it, which is `prove` where its evidence can be kept."""
    pending = kept(certificate.evidence, certificate.query) is not None
    return dataclasses.replace(certificate, unchecked=UNPROVED if pending else ENDED)


def restored(document: Any) -> tuple[Any, Query]:
    """What `kept` wrote, of kinds whose analyzer is loaded.

    Raises:
        InvalidFile: it is damaged, or names something else than evidence.
    """
    try:
        return _read(document["evidence"], _DEEP), _read_query(document["query"])
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        InvalidOperation,
        ImportError,
    ) as error:
        raise InvalidFile(f"the kept evidence is damaged ({type(error).__name__})") from None


def _written(value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Norm):
        return {"norm": str(value)}
    if isinstance(value, int):
        return {"int": str(value)}
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, Decimal):
        return {"decimal": str(value)}
    if isinstance(value, Tensor) and value.dtype is torch.float64 and bool(value.isfinite().all()):
        return {"shape": list(value.shape), "tensor": value.detach().cpu().flatten().tolist()}
    if isinstance(value, tuple):
        return [_written(each) for each in value]
    kind = type(value).__name__
    if dataclasses.is_dataclass(value) and KEPT.get(kind) is type(value):
        return {
            "kind": kind,
            "fields": {f.name: _written(getattr(value, f.name)) for f in dataclasses.fields(value)},
        }
    raise TypeError(f"{kind} is not kept")


def _read(value: Any, depth: int) -> Any:
    if depth < 0:
        raise ValueError("nested too deeply")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, list):
        return tuple(_read(each, depth - 1) for each in value)
    if not isinstance(value, Mapping):
        raise TypeError("a number without its type")
    if "norm" in value:
        return Norm.parse(value["norm"])
    if "int" in value:
        return int(value["int"][:40])
    if "float" in value:
        return float.fromhex(value["float"])
    if "decimal" in value:
        return Decimal(value["decimal"][:100])
    if "tensor" in value:
        return _tensor(value)
    kind = value["kind"]
    made = KEPT[kind]
    given = value["fields"]
    if set(given) != {f.name for f in dataclasses.fields(made)}:
        raise ValueError("other fields")
    return made(**{name: _read(each, depth - 1) for name, each in given.items()})


def _tensor(value: Mapping[str, Any]) -> Tensor:
    shape = [int(size) for size in value["shape"]]
    found = torch.tensor(value["tensor"], dtype=torch.float64)
    if min(shape, default=0) < 0 or found.ndim != 1 or math.prod(shape) != len(found):
        raise ValueError("another shape")
    if not bool(found.isfinite().all()):
        raise ValueError("not finite")
    return found.reshape(shape)


def _written_query(query: Query) -> dict[str, Any]:
    found: dict[str, Any] = {"norm_in": str(query.norm_in), "norm_out": str(query.norm_out)}
    if isinstance(query.region, Ball):
        ball = query.region
        box = None if ball.box is None else [_written(end.double()) for end in ball.box]
        found["ball"] = {
            "center": _written(ball.center.double()),
            "radius": ball.radius.hex(),
            "norm": str(ball.norm),
            "box": box,
        }
    return found


def _read_query(document: Mapping[str, Any]) -> Query:
    norms = Norm.parse(document["norm_in"]), Norm.parse(document["norm_out"])
    if "ball" not in document:
        return Query(*norms, Everywhere())
    ball = document["ball"]
    box = None if ball["box"] is None else (_tensor(ball["box"][0]), _tensor(ball["box"][1]))
    return Query(
        *norms, Ball(_tensor(ball["center"]), float.fromhex(ball["radius"]), Norm.parse(ball["norm"]), box)
    )
