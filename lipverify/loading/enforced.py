"""A description (JSON) of what weights of a transformer with enforced constants do not say, and the weights by their roles."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from lipverify.errors import UsageError
from lipverify.loading.files import Path, read_regular
from lipverify.loading.names import display, sentence

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 1 << 20
MAX_BLOCKS = 1024
BLOCK = ("q", "k", "v", "w", "mlp_in", "mlp_out")
"""The matrices of a block, in the order of lists."""
_KEYS = {
    "kind": 'the word "enforced"',
    "blocks": "a whole number",
    "heads": "a whole number",
    "softmax_scale": "a positive number: scores are softmax_scale q'k / width of a head",
    "residual_scale": "a number from 0 to twice the blocks: a sum is (1 - a) x + a f(x) with a = residual_scale / (2 blocks)",
    "final_scale": "a number: tokens are multiplied by it before `out`",
    "gelu": '"erf" or "tanh"',
    "rotary": "false, or the base of the angles of rotary places (halves of a head are turned against each other)",
    "causal": "true or false",
    "order": "null where names end in the roles, or a list of the roles of numbered arrays",
}


@dataclass(frozen=True)
class Enforced:
    """The fields of the description, as documented in docs/transformers.md."""

    blocks: int
    heads: int
    softmax_scale: float
    residual_scale: float
    final_scale: float
    gelu: str
    rotary: float | None
    causal: bool
    order: tuple[str, ...] | None
    path: str

    @property
    def share(self) -> float:
        """a of the convex sums (1 - a) x + a f(x)."""
        return self.residual_scale / (2 * self.blocks)


def read_enforced(path: Path) -> Enforced:
    """Reads a description; every key is given, and no other one.

    Raises:
        UsageError: no JSON, a key that is missing, unknown or twice there, a value of another kind. InvalidFile: as read_regular.
    """
    file = read_regular(path, MAX_BYTES)

    def fail(what: str, remedy: str) -> NoReturn:
        raise UsageError(sentence(path, what, remedy))

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            fail("names something twice", "name every key once")
        return table

    try:
        found = json.loads(file.data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        fail("is not JSON in UTF-8", "describe the weights as docs/transformers.md says")
    if not isinstance(found, dict):
        fail("holds no object", "describe the weights as docs/transformers.md says")
    for key in _KEYS:
        if key not in found:
            fail(f"does not say {key}", f"add {key}: {_KEYS[key]}")
    for key in found:
        if key not in _KEYS:
            fail(f'has an unknown key "{display(key, 40)}"', f"the keys are {', '.join(_KEYS)}")

    def bad(key: str) -> NoReturn:
        fail(f"says {key}: {display(json.dumps(found[key]), 60)}", f"give {_KEYS[key]}")

    def whole(key: str, most: int) -> int:
        value = found[key]
        return value if type(value) is int and 1 <= value <= most else bad(key)

    def real(key: str, low: float, high: float) -> float:
        value = found[key]
        inside = type(value) in (int, float) and math.isfinite(value) and low <= value <= high
        return float(value) if inside else bad(key)

    def flag(key: str) -> bool:
        value: Any = found[key]
        return bool(value) if type(value) is bool else bad(key)

    if found["kind"] != "enforced":
        bad("kind")
    if found["gelu"] not in ("erf", "tanh"):
        bad("gelu")
    blocks, order = whole("blocks", MAX_BLOCKS), found["order"]
    if order is not None:
        known = {*BLOCK, "embed", "out"}
        if not isinstance(order, list) or not all(isinstance(role, str) and role in known for role in order):
            bad("order")
        order = tuple(order)
    return Enforced(
        blocks=blocks,
        heads=whole("heads", 1 << 16),
        softmax_scale=real("softmax_scale", 2.0**-60, 2.0**60),
        residual_scale=real("residual_scale", 0.0, 2.0 * blocks),
        final_scale=real("final_scale", -(2.0**60), 2.0**60),
        gelu=found["gelu"],
        rotary=None if found["rotary"] is False else real("rotary", 1.0, 2.0**60),
        causal=flag("causal"),
        order=order,
        path=str(path),
    )


@dataclass(frozen=True)
class Roles:
    """blocks: for each one its matrices by role; embed [letters, width] and out [outputs, width] where the file has them."""

    blocks: tuple[dict[str, Tensor], ...]
    embed: Tensor | None
    out: Tensor | None


def roles(described: Enforced, tensors: Mapping[str, Tensor]) -> Roles:
    """Arrays by role: matrices [out, in], those of queries, keys and values also [heads, size, width].

    Raises:
        UsageError: names that say no role, roles that are missing, left over or twice there, shapes that do not fit together.
    """
    named = _numbered(described, tensors) if described.order is not None else _named(described, tensors)
    blocks = []
    for index in range(described.blocks):
        missing = [role for role in BLOCK if (index, role) not in named]
        if missing:
            raise UsageError(
                sentence(described.path, f"block {index} has no {', '.join(missing)}", "give all blocks")
            )
        blocks.append({role: named.pop((index, role)) for role in BLOCK})
    embed, out = named.pop((None, "embed"), None), named.pop((None, "out"), None)
    if named:
        block, role = next(iter(named))
        what = f"says {described.blocks} blocks, and the file has {role} of block {block}"
        raise UsageError(sentence(described.path, what, "count the blocks"))
    _fitting(described, blocks, embed, out)
    return Roles(tuple(blocks), embed, out)


def _numbered(described: Enforced, tensors: Mapping[str, Tensor]) -> dict[tuple[int | None, str], Tensor]:
    """Arrays arr_0, arr_1, ... in the order of their numbers."""
    assert described.order is not None
    by_number = {}
    for name in tensors:
        match = re.search(r"\d+$", name)
        if match is None or int(match[0]) in by_number:
            what = f'lists an order, and "{display(name, 40)}" has no number of its own'
            raise UsageError(sentence(described.path, what, 'number the arrays, or say "order": null'))
        by_number[int(match[0])] = name
    if len(by_number) != len(described.order):
        what = f"lists {len(described.order)} roles for {len(by_number)} arrays"
        raise UsageError(sentence(described.path, what, "list one role for each array"))
    found: dict[tuple[int | None, str], Tensor] = {}
    count = dict.fromkeys(BLOCK, 0)
    for role, number in zip(described.order, sorted(by_number), strict=True):
        key = (count[role], role) if role in count else (None, role)
        if key in found:
            raise UsageError(sentence(described.path, f"lists {role} twice", "list it once"))
        if role in count:
            count[role] += 1
        found[key] = tensors[by_number[number]]
    return found


def _named(described: Enforced, tensors: Mapping[str, Tensor]) -> dict[tuple[int | None, str], Tensor]:
    """Names such as blocks.3.q, blocks/3/mlp_in and out: the last part is the role, one part the number of the block."""
    found: dict[tuple[int | None, str], Tensor] = {}
    for name, tensor in tensors.items():
        parts = re.split(r"[./]", name.removesuffix(".weight"))
        numbers = [int(match[0]) for part in parts[:-1] if (match := re.search(r"\d{1,6}$", part))]
        role = parts[-1]
        fits = len(numbers) == 1 if role in BLOCK else role in ("embed", "out") and not numbers
        key = (numbers[0] if numbers else None, role)
        if not fits or key in found:
            what = f'"{display(name, 60)}" says no role of its own'
            remedy = f'name arrays blocks.0.q with the roles {", ".join(BLOCK)}, embed and out, or number them and list "order"'
            raise UsageError(sentence(described.path, what, remedy))
        found[key] = tensor
    return found


def _fitting(
    described: Enforced, blocks: list[dict[str, Tensor]], embed: Tensor | None, out: Tensor | None
) -> None:
    heads, width = described.heads, blocks[0]["mlp_in"].shape[-1]
    hidden, inner = blocks[0]["mlp_in"].shape[0], blocks[0]["q"].numel() // max(width, 1)

    def need(tensor: Tensor | None, what: str, *shapes: tuple[int, ...]) -> None:
        if tensor is not None and tuple(tensor.shape) not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise UsageError(
                sentence(
                    described.path, f"{what} is {list(tensor.shape)}, expected {wanted}", "see its sizes"
                )
            )

    size = inner // heads
    turned = described.rotary is not None and size % 2
    if not inner or inner % heads or turned:
        what = f"{heads} heads of queries {list(blocks[0]['q'].shape)}"
        raise UsageError(sentence(described.path, what, "rotary places need an even width of a head"))
    for index, block in enumerate(blocks):
        for role in ("q", "k", "v"):
            need(block[role], f"{role} of block {index}", (inner, width), (heads, size, width))
        need(block["w"], f"w of block {index}", (width, inner))
        need(block["mlp_in"], f"mlp_in of block {index}", (hidden, width))
        need(block["mlp_out"], f"mlp_out of block {index}", (width, hidden))
    for name, tensor in (("embed", embed), ("out", out)):
        if tensor is not None:
            need(tensor, name, (tensor.shape[0], width))
