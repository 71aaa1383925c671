"""The card of a zoo network: a TOML file read into frozen records, everything checked, nothing defaulted."""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from lipverify.errors import InvalidFile
from lipverify.loading.names import display, sentence

CARD = "card.toml"
MEASURED = "[measured]"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NORMS = ("l1", "l2", "linf", "token-rms", "token-l2")

Record = TypeVar("Record")


@dataclass(frozen=True)
class InputBox:
    """The range of every input coordinate: one number for all of them, or one per coordinate."""

    lower: tuple[float, ...]
    upper: tuple[float, ...]


@dataclass(frozen=True)
class Claim:
    """A global Lipschitz constant the network is said to have; a claim, never used as a bound.

    `within`: the claim is about tokens of at most this size alone. `analyzer` is a method that should prove it; `holds` is
    false where the claim is wrong on purpose and an audit must find that out.
    """

    constant: float
    norm: str
    within: float | None
    reason: str
    analyzer: str
    holds: bool


@dataclass(frozen=True)
class Training:
    """How models_zoo/training.py trains the network."""

    data: str
    seed: int
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    temperature: float


@dataclass(frozen=True)
class Measured:
    """What `lipverify zoo build` measured on the stored weights; accuracies are quotients of counts."""

    torch: str
    sha256: str
    parameters: int
    train_samples: int
    train_accuracy: float
    test_samples: int
    test_accuracy: float


@dataclass(frozen=True)
class Card:
    """What the zoo says about one network; shapes without the batch axis, box in units of the raw input."""

    name: str
    description: str
    architecture: str
    data: str
    preprocessing: str
    licence: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    convex: bool
    """Whether every output is said to be convex in the input; like the constant a claim, which tests let the checker prove."""
    input_box: InputBox
    claim: Claim | None
    training: Training
    measured: Measured


def read_card(folder: Path) -> Card:
    """The card of a zoo folder; raises InvalidFile naming the field that is missing, unknown or wrong."""
    path = folder / CARD
    table = _table(path)
    table = {"claim": None, "convex": False, **table}
    if isinstance(table["claim"], dict):
        table = {**table, "claim": {"within": None, **table["claim"]}}
    known = _record(Card, table, path, "")
    _check(known, folder.name, path)
    return known


def read_recipe(folder: Path) -> tuple[Training, tuple[int, ...]]:
    """How a network is trained and its input shape, from a card that need not have been measured yet."""
    path = folder / CARD
    table = _table(path)
    training = _typed(Training, table.get("training"), path, "training")
    return training, _typed(tuple[int, ...], table.get("input_shape"), path, "input_shape")


def with_measured(text: str, measured: Measured) -> str:
    """The text of a card up to its measured part, which stands last, and that part written anew."""
    static = text.partition(f"\n{MEASURED}\n")[0].rstrip("\n")
    # Versions and digests need no escapes, and Python's shortest decimal numbers are TOML.
    rows = [f"{field.name} = {_toml(getattr(measured, field.name))}" for field in fields(measured)]
    return "\n".join([static, "", MEASURED, "# Written by `lipverify zoo build`.", *rows, ""])


def _toml(value: str | int | float) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise InvalidFile(sentence(path, f"is not a readable card ({display(str(problem))})")) from None


def _record(kind: type[Record], table: dict[str, Any], path: Path, where: str) -> Record:
    """A dataclass from a table that has exactly its fields."""
    hints = get_type_hints(kind)
    prefix = f"{where}." if where else ""
    odd = sorted(hints.keys() ^ table.keys())
    if odd:
        problem = "missing" if odd[0] in hints else "unknown"
        raise InvalidFile(sentence(path, f"{prefix}{display(odd[0])} is {problem}"))
    return kind(**{key: _typed(hint, table[key], path, f"{prefix}{key}") for key, hint in hints.items()})


def _typed(hint: Any, value: Any, path: Path, where: str) -> Any:
    """`value` if it is what the annotation says; TOML lists become tuples and tables become records."""
    if isinstance(hint, UnionType):
        return None if value is None else _typed(get_args(hint)[0], value, path, where)
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _record(hint, value, path, where)
    items = get_args(hint)
    if items and isinstance(value, list) and value:
        return tuple(_typed(items[0], item, path, where) for item in value)
    # An exact type: TOML tells true from 1 and 1 from 1.0, and so does a card.
    if not items and type(value) is hint and not (isinstance(value, float) and not math.isfinite(value)):
        return value
    expected = getattr(hint, "__name__", str(hint)) if not items else f"a list of {items[0].__name__}"
    raise InvalidFile(sentence(path, f"{where} must be {expected}, found {display(repr(value))}"))


def _check(known: Card, folder_name: str, path: Path) -> None:
    """What types cannot say."""
    box, size = known.input_box, math.prod(known.input_shape)
    measured, claim, training = known.measured, known.claim, known.training
    rules = {
        f"name must be the folder's, {folder_name}": known.name == folder_name,
        "shapes must be positive": min(known.input_shape + known.output_shape) > 0,
        f"input_box must have 1 or {size} bounds on each side": len(box.lower) == len(box.upper)
        and len(box.lower) in (1, size),
        "input_box.lower must lie below input_box.upper": all(map(float.__lt__, box.lower, box.upper)),
        f"claim.norm must be one of {', '.join(_NORMS)}": claim is None or claim.norm in _NORMS,
        "claim.constant must be positive": claim is None or claim.constant > 0,
        "claim.within must be positive, and belongs to a norm of tokens": claim is None
        or claim.within is None
        or (claim.within > 0 and claim.norm.startswith("token")),
        "training must have a seed >= 0 and positive epochs, batch, learning_rate, temperature and a "
        "weight_decay >= 0": min(training.seed, training.weight_decay) >= 0
        and min(training.epochs, training.batch, training.learning_rate, training.temperature) > 0,
        "measured.sha256 must be 64 hexadecimal digits": bool(_SHA256.fullmatch(measured.sha256)),
        "measured counts must be positive": min(
            measured.parameters, measured.train_samples, measured.test_samples
        )
        > 0,
        "accuracies must lie in [0, 1]": min(measured.train_accuracy, measured.test_accuracy) >= 0
        and max(measured.train_accuracy, measured.test_accuracy) <= 1,
    }
    for rule, holds in rules.items():
        if not holds:
            raise InvalidFile(sentence(path, rule))
