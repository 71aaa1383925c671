"""Small random ONNX models over all operators that are read, and a table of what they reached.

Every model holds one ordered pair of operators that was asked for; what stands around it is drawn. Operands are computed or
stored, scalars, vectors or whole tensors on either side; widths are 1 to 4, ranks 2 to 4 with the batch axis. Values are read
twice, at any depth, or not at all; outputs may be the input itself or stored tensors; many gains are zero and many numbers small
integers, so that ends of ranges meet and kinks are hit.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]
LARGEST = 40
"""Numbers in one value."""
OPSET, IR = 21, 10


@dataclass(frozen=True)
class Live:
    """A computed value: its shape with the batch axis of size 1 in front, the operator it comes from, how deep it stands."""

    name: str
    shape: Shape
    made: str
    depth: int

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


Build = Callable[["Models", Live], "list[Live] | Live | None"]
"""Adds an operator that reads a value; None where the shape does not fit."""


@dataclass(frozen=True)
class Kind:
    """An operator: how it is built, the ranks it reads, and those it gives for a rank."""

    name: str
    build: Build
    takes: frozenset[int]
    gives: Callable[[int], set[int]]


KINDS: dict[str, Kind] = {}
ANY = frozenset({2, 3, 4})


def kind(
    name: str, takes: Sequence[int] = (2, 3, 4), gives: Callable[[int], set[int]] | None = None
) -> Callable[[Build], Build]:
    def add(build: Build) -> Build:
        KINDS[name] = Kind(name, build, frozenset(takes), gives or (lambda rank: {rank}))
        return build

    return add


@cache
def pairs() -> tuple[tuple[str, str], ...]:
    """All ordered pairs of operators of which the second can read what the first gives."""
    return tuple(
        (a.name, b.name)
        for a, b in itertools.product(KINDS.values(), repeat=2)
        if any(a.gives(rank) & b.takes for rank in a.takes)
    )


@dataclass
class Reached:
    """Counts over many models. pairs: (operator, reader); operands: (operator, place, computed or stored)."""

    models: int = 0
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    operands: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    widths: Counter[int] = field(default_factory=Counter)
    ranks: Counter[int] = field(default_factory=Counter)
    habits: Counter[str] = field(default_factory=Counter)
    nodes: Counter[str] = field(default_factory=Counter)
    """Operators of the graphs as they were read."""

    def __add__(self, other: Reached) -> Reached:
        return Reached(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def to_json(self) -> dict[str, Any]:
        possible = set(pairs())
        missed = sorted(possible - set(self.pairs))
        operands: dict[str, dict[str, int]] = {}
        for (name, place, how), count in sorted(self.operands.items()):
            operands.setdefault(name, {})[f"{place} {how}"] = count
        return {
            "operators": len(KINDS),
            "ordered_pairs": {
                "possible": len(possible),
                "reached": len(possible) - len(missed),
                "missed_such_as": [" -> ".join(pair) for pair in missed[:: max(1, len(missed) // 12)][:12]],
            },
            "operands": operands,
            "widths": {str(k): v for k, v in sorted(self.widths.items())},
            "ranks_with_the_batch_axis": {str(k): v for k, v in sorted(self.ranks.items())},
            "habits": dict(self.habits.most_common()),
            "operators_of_graphs": dict(self.nodes.most_common()),
        }  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A file's bytes, the shape of one sample, and how many outputs it has."""

    proto: Any
    shape: Shape
    outputs: int
    main: int
    """The output that holds the pair."""
    pair: tuple[str, str]


class Models:
    """One model under construction."""

    def __init__(self, rng: np.random.Generator, reached: Reached) -> None:
        self.rng = rng
        self.reached = reached
        self.nodes: list[Any] = []
        self.stored: list[Any] = []
        self.live: list[Live] = []
        self.made: list[tuple[str, list[Live | str | None], list[Live]]] = []
        """What `emit` added: operator, operands, results."""
        self.habits: Counter[str] = Counter()
        self.count = 0

    # -- choices

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def integer(self, low: int, high: int) -> int:
        """low <= result <= high."""
        return int(self.rng.integers(low, high + 1))

    def choice(self, values: Sequence[Any]) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def shape(self, rank: int) -> Shape:
        """Of a value of this rank, widths 1 to 4."""
        while True:
            found = (1, *(self.integer(1, 4) for _ in range(rank - 1)))
            if math.prod(found) <= LARGEST // 2:
                return found

    # -- stored tensors

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def keep(self, array: Any) -> str:
        """Stores a tensor, as an initialiser or by a node."""
        name = self.name("c")
        proto = numpy_helper.from_array(np.asarray(array), name)
        if self.chance(0.15):
            self.nodes.append(helper.make_node("Constant", [], [name], value=proto))
            self.habits["stored by a node"] += 1
        else:
            self.stored.append(proto)
        return name

    def numbers(self, shape: Shape, scale: float = 1.0) -> Any:
        match self.integer(0, 11):
            case 0:
                self.habits["zero gains"] += 1
                found: Any = np.zeros(shape)
            case 1 | 2 | 3:
                found = self.rng.integers(-2, 3, shape)
            case 4:
                found = np.ones(shape)
            case _:
                found = self.rng.standard_normal(shape) * scale
        return np.asarray(found, np.float32)

    def positive(self, shape: Shape) -> Any:
        return np.asarray(np.abs(self.rng.standard_normal(shape)) + 0.25, np.float32)

    def ints(self, values: Sequence[int] | int) -> str:
        return self.keep(np.asarray(values, np.int64))

    def like(self, x: Live) -> Any:
        """A tensor that broadcasts with x: a scalar, a vector, with axes of size 1, or of higher rank."""
        tail = x.shape[1:]
        match self.integer(0, 6):
            case 0:
                self.habits["scalar stored"] += 1
                return self.numbers(())
            case 1:
                return self.numbers((1,))
            case 2:
                return self.numbers(tail[-1:])
            case 3:
                return self.numbers(tuple(n if self.chance(0.5) else 1 for n in tail))
            case 4:
                return self.numbers((1, *tail))
            case 5:  # x is broadcast to it
                wide = tuple(self.integer(1, 3) if n == 1 else n for n in tail)
                return self.numbers(wide if math.prod(wide) <= LARGEST else tail)
            case _:
                return self.numbers(tail)

    # -- computed values

    def emit(
        self,
        op: str,
        operands: Sequence[Live | str | None],
        shapes: Shape | Sequence[Shape],
        settings: Sequence[str] = (),
        made: str | None = None,
        **attributes: Any,
    ) -> list[Live]:
        """A node. operands: computed values, or names of stored tensors; settings: stored sizes, axes, ... behind them."""
        several = [shapes] if not shapes or isinstance(shapes[0], int) else list(shapes)
        names = [self.name("t") for _ in several]
        read = [x.name if isinstance(x, Live) else x or "" for x in operands]
        self.nodes.append(helper.make_node(op, [*read, *settings], names, **attributes))
        depth = 1 + max(x.depth for x in operands if isinstance(x, Live))
        results = [Live(n, tuple(s), made or op, depth) for n, s in zip(names, several, strict=True)]
        self.made.append((made or op, list(operands), results))
        self.live += results
        return results

    def tally(self, outputs: Sequence[str]) -> None:
        """Counts what the first output needs, and what nobody reads."""
        read = Counter(x.name for _, operands, _ in self.made for x in operands if isinstance(x, Live))
        habits, reached = self.habits, self.reached
        habits["read by nobody"] += sum(v.name not in read and v.name not in outputs for v in self.live)
        needed = {outputs[0]}
        for op, operands, results in reversed(self.made):
            if not any(x.name in needed for x in results):
                continue
            for place, x in enumerate(operands):
                if isinstance(x, Live):
                    needed.add(x.name)
                    reached.pairs[x.made, op] += 1
                    reached.operands[op, place, "computed"] += 1
                    if x.made == "input":
                        habits[f"input read at depth {min(results[0].depth, 6)}"] += 1
                elif x is not None:
                    reached.operands[op, place, "stored"] += 1
            for x in results:
                reached.ranks[x.rank] += 1
                reached.widths.update(n for n in x.shape[1:] if n <= 4)
        habits["read twice"] += sum(read[name] > 1 for name in needed)
        reached.habits.update(habits)
        reached.models += 1

    def some(self, fits: Callable[[Live], bool]) -> Live | None:
        """A value that fits, late ones more often."""
        found = [x for x in self.live if fits(x)]
        if not found:
            return None
        return found[max(self.integer(0, len(found) - 1), self.integer(0, len(found) - 1))]

    def partner(self, x: Live) -> Live:
        """A computed value that broadcasts with x: of the same shape, x itself, or with axes of size 1."""

        def fits(y: Live) -> bool:
            if y.rank > x.rank:
                return False
            tail = x.shape[x.rank - y.rank + 1 :]
            return all(a in (b, 1) for a, b in zip(y.shape[1:], tail, strict=True))

        found = x if self.chance(0.15) else self.some(fits) or x
        if self.chance(0.25) and fits(self.live[0]):
            found = self.live[0]
        elif self.chance(0.25):
            axes = list(range(1, x.rank)) if self.chance(0.5) else [self.integer(1, x.rank - 1)]
            shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
            ends = ([0] * len(axes), [1] * len(axes), axes)
            found = self.emit("Slice", [x], shape, [self.ints(e) for e in ends])[0]
        if found.shape != x.shape:
            self.habits["computed operand broadcast"] += 1
        return found

    def any_operand(self, x: Live) -> tuple[Live | str, Shape]:
        """A second operand for x, computed or stored, and the shape of both together."""
        if self.chance(0.5):
            other = self.partner(x)
            return other, tuple(np.broadcast_shapes(x.shape, other.shape))
        array = self.like(x)
        return self.keep(array), tuple(np.broadcast_shapes(x.shape, array.shape))

    def reshaped(self, x: Live, shape: Shape) -> Live:
        """x with another shape: a slice or copies of its entries where the size differs, then a reshape."""
        flat = x
        if x.rank > 2:
            target = self.ints([-1 if self.chance(0.3) else 1, x.size])
            flat = self.emit("Reshape", [x], (1, x.size), [target])[0]
        size = math.prod(shape)
        if size != x.size:
            index = self.rng.integers(0, x.size, size)
            flat = self.emit("Gather", [flat], (1, size), [self.ints(list(index))], axis=1)[0]
        if shape == flat.shape:
            return flat
        return self.emit("Reshape", [flat], shape, [self.ints([1, *shape[1:]])])[0]


def model(rng: np.random.Generator, reached: Reached, pair: tuple[str, str], layers: int = 5) -> Model:
    """A random model in which the second operator of the pair reads the first one."""
    m = Models(rng, reached)
    first, second = (KINDS[name] for name in pair)
    ranks = [r for r in sorted(first.takes) if first.gives(r) & second.takes]
    rank = m.choice(ranks if m.chance(0.6) else sorted(ANY))
    x = Live("x", m.shape(rank), "input", 0)
    m.live.append(x)
    for _ in range(m.integer(0, layers)):
        _drawn(m)
    found: list[Live] = []
    while not found:
        source = m.some(lambda v: v.rank in ranks and v.size <= LARGEST) if m.chance(0.7) else None
        source = source or m.reshaped(m.choice(m.live), m.shape(m.choice(ranks)))
        readable = [v for v in _built(m, first, source) if v.rank in second.takes]
        if readable and readable[0].size <= LARGEST:
            found = _built(m, second, m.choice(readable))
    for _ in range(m.integer(0, layers)):
        _drawn(m)
    last = m.choice(found)
    if last.name != m.live[-1].name and m.chance(0.7):  # and what came behind it
        parts = [m.reshaped(v, (1, v.size)) if v.rank != 2 else v for v in (last, m.live[-1])]
        last = m.emit("Concat", parts, (1, parts[0].size + parts[1].size), axis=1)[0]
    if m.chance(0.6):
        last = m.reshaped(last, (1, last.size)) if last.rank != 2 else last
        last = _built(m, KINDS["Gemm"], last)[0]
    batch: Any = "n" if m.chance(0.6) else 1
    outputs: list[tuple[str, list[Any]]] = [(last.name, [batch, *last.shape[1:]])]
    if m.chance(0.2):
        if m.chance(0.5):
            extra, habit = ("x", [batch, *x.shape[1:]]), "an output that is the input"
        else:
            extra, habit = (m.keep(m.numbers((1, 2))), [1, 2]), "an output that is stored"
        outputs.insert(m.integer(0, 1), extra)
        m.habits[habit] += 1
    m.tally([last.name, *(name for name, _ in outputs)])
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *x.shape[1:]])]
    wanted = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs]
    graph = helper.make_graph(m.nodes, "g", given, wanted, m.stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    return Model(proto, x.shape[1:], len(outputs), [name for name, _ in outputs].index(last.name), pair)


def _built(m: Models, one: Kind, source: Live) -> list[Live]:
    found = one.build(m, source)
    return [] if found is None else [found] if isinstance(found, Live) else found


OFTEN = (
    *("Gemm",) * 4, *("Concat",) * 3, "Relu", "Relu", "Abs", "Tanh", "LeakyRelu", "Clip", "Max", "Min", "Add", "Sub", "Sum",
    "Mul", "Where", "Gather", "Slice", "Split", "Pad", "MatMul", "Conv", "ReduceMean", "Reshape",
)  # fmt: skip
"""What joins, mixes and bends values stands around the pair more often than its share."""
SELDOM = ("Sqrt", "Reciprocal", "Exp", "Div")
"""What is often not bounded: where a pair asks for it, and nowhere else."""


def _drawn(m: Models) -> None:
    """One more operator on some value."""
    name = m.choice(OFTEN) if m.chance(0.7) else m.choice([name for name in KINDS if name not in SELDOM])
    one = KINDS[name]
    source = m.some(lambda v: v.rank in one.takes and v.size <= LARGEST)
    if source is not None:
        _built(m, one, source)


# -- scalar functions

_PLAIN = ("Relu", "Abs", "Sigmoid", "Tanh", "Softplus", "Softsign", "HardSwish", "Mish", "Erf", "Exp", "Sqrt", "Reciprocal",
          "Sin", "Cos", "Neg", "Identity", "Dropout")  # fmt: skip
_SHAPED: dict[str, Callable[[Models], dict[str, float]]] = {
    "LeakyRelu": lambda m: {"alpha": float(m.choice([0.1, -0.5, 2.0, 0.0, 1.0]))},
    "Elu": lambda m: {"alpha": float(m.choice([0.3, 1.0, 2.5]))},
    "Celu": lambda m: {"alpha": float(m.choice([0.3, 1.0, 2.5]))},
    "Selu": lambda m: {"alpha": 1.5, "gamma": float(m.choice([1.05, 0.5]))},
    "HardSigmoid": lambda m: {"alpha": float(m.choice([0.2, 1.0, -0.5])), "beta": 0.5},
    "Gelu": lambda m: {},
    "ThresholdedRelu": lambda m: {"alpha": 0.0},
    "Shrink": lambda m: {"bias": 0.5, "lambd": 0.5},
}


def _plain(name: str) -> None:
    @kind(name)
    def build(m: Models, x: Live) -> list[Live]:
        return m.emit(name, [x], x.shape)


def _with(name: str, settings: Callable[[Models], dict[str, float]]) -> None:
    @kind(name)
    def build(m: Models, x: Live) -> list[Live]:
        given: dict[str, Any] = settings(m)
        if name == "Gelu" and m.chance(0.5):
            given["approximate"] = "tanh"
        return m.emit(name, [x], x.shape, **given)


for _name in _PLAIN:
    _plain(_name)
for _name, _settings in _SHAPED.items():
    _with(_name, _settings)


@kind("PRelu")
def _prelu(m: Models, x: Live) -> list[Live]:
    tail = x.shape[1:]
    shape = m.choice([(), (1,), tail[-1:], tail, tuple(1 if m.chance(0.5) else n for n in tail)])
    return m.emit("PRelu", [x, m.keep(m.numbers(shape))], x.shape)


@kind("Clip")
def _clip(m: Models, x: Live) -> list[Live]:
    low, high = sorted((float(m.rng.normal()), float(m.rng.normal())))
    ends: list[str] = [m.keep(np.float32(low)), m.keep(np.float32(low if m.chance(0.1) else high))]
    if m.chance(0.2):
        ends[m.integer(0, 1)] = ""
    return m.emit("Clip", [x], x.shape, ends)


@kind("Pow")
def _pow(m: Models, x: Live) -> list[Live]:
    return m.emit("Pow", [x, m.keep(np.float32(m.choice([2.0, 3.0, 0.5, 1.0, 4.0])))], x.shape)


@kind("Cast")
def _cast(m: Models, x: Live) -> list[Live]:
    return m.emit("Cast", [x], x.shape, to=TensorProto.FLOAT)


# -- arithmetic, either operand stored


def _arithmetic(name: str) -> None:
    @kind(name)
    def build(m: Models, x: Live) -> list[Live] | None:
        other, shape = m.any_operand(x)
        if math.prod(shape) > LARGEST:
            return None
        operands: list[Live | str | None] = [x, other]
        if name == "Div" and isinstance(other, str):
            # Stored divisors are never zero; positive ones here.
            other = m.keep(m.positive(m.choice([(), (1,), x.shape[-1:], x.shape[1:]])))
            operands, shape = [x, other], x.shape
            if m.chance(0.3):
                operands.reverse()
        elif m.chance(0.5):
            operands.reverse()
        return m.emit(name, operands, shape)


def _many(name: str) -> None:
    @kind(name)
    def build(m: Models, x: Live) -> list[Live] | None:
        operands: list[Live | str | None] = [x]
        shape = x.shape
        for _ in range(m.integer(0, 3)):
            other, joint = m.any_operand(x)
            if all(
                1 in (a, b) or a == b for a, b in zip(shape, joint, strict=True)
            ):  # two may widen one axis differently
                operands.append(other)
                shape = tuple(np.broadcast_shapes(shape, joint))
        if math.prod(shape) > LARGEST:
            return None
        m.rng.shuffle(operands)  # type: ignore[arg-type]
        return m.emit(name, operands, shape)


for _name in ("Add", "Sub", "Mul", "Div"):
    _arithmetic(_name)
for _name in ("Max", "Min", "Sum", "Mean"):
    _many(_name)


@kind("Where")
def _where(m: Models, x: Live) -> list[Live] | None:
    other, shape = m.any_operand(x)
    if math.prod(shape) > LARGEST:
        return None
    mask = m.rng.random(m.choice([(), (1,), shape[-1:], shape[1:]])) < m.choice([0.5, 0.5, 0.0, 1.0])
    operands: list[Live | str | None] = [x, other]
    if m.chance(0.5):
        operands.reverse()
    return m.emit("Where", [m.keep(np.asarray(mask)), *operands], shape)


# -- linear maps


@kind("Gemm", (2,))
def _gemm(m: Models, x: Live) -> list[Live]:
    out, across = m.integer(1, 4), m.chance(0.5)
    weight = m.numbers((x.shape[1], out), x.shape[1] ** -0.5)
    operands: list[Live | str | None] = [x, m.keep(weight.T if across else weight)]
    attributes: dict[str, Any] = {"transB": 1} if across else {}
    if m.chance(0.6):
        computed = m.some(lambda v: v.shape in ((1, out), (1, 1))) if m.chance(0.4) else None
        operands.append(computed or m.keep(m.numbers(m.choice([(out,), (1, out), (1,), ()]))))
    if m.chance(0.2):
        attributes |= {"alpha": float(m.choice([0.5, -2.0, 0.0])), "beta": float(m.choice([1.0, 0.5, 0.0]))}
    return m.emit("Gemm", operands, (1, out), **attributes)


@kind("MatMul")
def _matmul(m: Models, x: Live) -> list[Live] | None:
    """With a stored matrix on either side, or with a computed one."""
    if x.rank > 2 and m.chance(0.35):
        rows = m.integer(1, 4)
        weight = m.keep(m.numbers((rows, x.shape[-2])))
        return m.emit("MatMul", [weight, x], (*x.shape[:-2], rows, x.shape[-1]))
    if x.rank > 2 and m.chance(0.4):
        other = m.some(
            lambda v: v.rank == x.rank and v.shape[:-2] == x.shape[:-2] and v.shape[-2] == x.shape[-1]
        )
        if other is not None and math.prod(x.shape[:-1]) * other.shape[-1] <= LARGEST:
            return m.emit("MatMul", [x, other], (*x.shape[:-1], other.shape[-1]))
    out = m.integer(1, 4)
    if math.prod(x.shape[:-1]) * out > LARGEST:
        return None
    return m.emit("MatMul", [x, m.keep(m.numbers((x.shape[-1], out)))], (*x.shape[:-1], out))


@kind("Einsum", (3,))
def _einsum(m: Models, x: Live) -> list[Live]:
    out = m.integer(1, 4)
    weight = m.keep(m.numbers((x.shape[2], out)))
    return m.emit("Einsum", [x, weight], (*x.shape[:2], out), equation="abc,cd->abd")


def _spatial(m: Models, x: Live, kernel: Shape, stride: Shape, pads: Sequence[int], dilation: Shape) -> Shape:
    rank = x.rank - 2
    return tuple(
        (x.shape[2 + a] + pads[a] + pads[rank + a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1
        for a in range(rank)
    )


@kind("Conv", (3, 4))
def _conv(m: Models, x: Live) -> list[Live] | None:
    rank, channels = x.rank - 2, x.shape[1]
    kernel = tuple(m.integer(1, min(3, n + 1)) for n in x.shape[2:])
    pads = [m.integer(0, 1) for _ in range(2 * rank)]
    stride, dilation = (tuple(m.integer(1, 2) if m.chance(0.3) else 1 for _ in range(rank)) for _ in range(2))
    sizes = _spatial(m, x, kernel, stride, pads, dilation)
    group = channels if channels > 1 and m.chance(0.3) else 1
    out = group * m.integer(1, 2)
    if any(n < 1 for n in sizes) or out * math.prod(sizes) > LARGEST:
        return None
    weight = m.keep(m.numbers((out, channels // group, *kernel)))
    bias = [m.keep(m.numbers((out,)))] if m.chance(0.5) else []
    return m.emit(
        "Conv",
        [x, weight, *bias],
        (1, out, *sizes),
        group=group,
        pads=pads,
        strides=stride,
        dilations=dilation,
    )


@kind("ConvTranspose", (3, 4))
def _conv_transpose(m: Models, x: Live) -> list[Live] | None:
    rank, out = x.rank - 2, m.integer(1, 3)
    kernel, stride = tuple(m.integer(1, 2) for _ in range(rank)), tuple(m.integer(1, 2) for _ in range(rank))
    sizes = tuple(s * (n - 1) + k for n, k, s in zip(x.shape[2:], kernel, stride, strict=True))
    if out * math.prod(sizes) > LARGEST:
        return None
    weight = m.keep(m.numbers((x.shape[1], out, *kernel)))
    bias = [m.keep(m.numbers((out,)))] if m.chance(0.5) else []
    return m.emit("ConvTranspose", [x, weight, *bias], (1, out, *sizes), strides=stride)


# -- pooling and reductions


def _pooled(name: str) -> None:
    @kind(name, (3, 4))
    def build(m: Models, x: Live) -> list[Live] | None:
        rank = x.rank - 2
        kernel = tuple(m.integer(1, 3) for _ in range(rank))
        pads = [m.integer(0, 1) if k > 1 else 0 for k in (*kernel, *kernel)]
        stride = tuple(m.integer(1, 2) for _ in range(rank))
        sizes = _spatial(m, x, kernel, stride, pads, (1,) * rank)
        if any(n < 1 for n in sizes):
            return None
        extra = {"count_include_pad": m.integer(0, 1)} if name == "AveragePool" else {}
        return m.emit(
            name, [x], (*x.shape[:2], *sizes), kernel_shape=kernel, pads=pads, strides=stride, **extra
        )


def _whole(name: str) -> None:
    @kind(name, (3, 4))
    def build(m: Models, x: Live) -> list[Live]:
        return m.emit(name, [x], (*x.shape[:2], *(1,) * (x.rank - 2)))


def _reduction(name: str) -> None:
    @kind(name, (2, 3, 4), lambda rank: set(range(2, rank + 1)))
    def build(m: Models, x: Live) -> list[Live]:
        axes = sorted(
            m.rng.choice(np.arange(1, x.rank), size=m.integer(1, x.rank - 1), replace=False).tolist()
        )
        keep = m.chance(0.5) or len(axes) == x.rank - 1
        kept = [(1 if a in axes else n) for a, n in enumerate(x.shape) if keep or a not in axes]
        return m.emit(
            name, [x], tuple(kept), [m.ints(axes)] if name != "ReduceSum" or axes else [], keepdims=int(keep)
        )


for _name in ("MaxPool", "AveragePool"):
    _pooled(_name)
for _name in ("GlobalAveragePool", "GlobalMaxPool"):
    _whole(_name)
for _name in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare"):
    _reduction(_name)


# -- normalisation


@kind("BatchNormalization")
def _batch_norm(m: Models, x: Live) -> list[Live]:
    size = (x.shape[1],)
    stored = [m.numbers(size), m.numbers(size), m.numbers(size), m.positive(size)]
    return m.emit("BatchNormalization", [x, *(m.keep(a) for a in stored)], x.shape)


@kind("LayerNormalization")
def _layer_norm(m: Models, x: Live) -> list[Live]:
    axis = m.integer(1, x.rank - 1)
    shape = x.shape[axis:]
    bias = [m.keep(m.numbers(shape))] if m.chance(0.5) else []
    operands = [x, m.keep(m.numbers(shape)), *bias]
    return m.emit("LayerNormalization", operands, x.shape, axis=axis, epsilon=float(m.choice([1e-5, 0.1])))


@kind("InstanceNormalization", (3, 4))
def _instance_norm(m: Models, x: Live) -> list[Live]:
    size = (x.shape[1],)
    return m.emit(
        "InstanceNormalization", [x, m.keep(m.numbers(size)), m.keep(m.numbers(size))], x.shape, epsilon=0.1
    )


@kind("GroupNormalization", (3, 4))
def _group_norm(m: Models, x: Live) -> list[Live]:
    groups = m.choice([g for g in range(1, x.shape[1] + 1) if x.shape[1] % g == 0])
    size = (x.shape[1],)
    operands = [x, m.keep(m.numbers(size)), m.keep(m.numbers(size))]
    return m.emit("GroupNormalization", operands, x.shape, num_groups=groups, epsilon=0.1)


def _along(name: str) -> None:
    @kind(name)
    def build(m: Models, x: Live) -> list[Live]:
        return m.emit(name, [x], x.shape, axis=m.integer(1, x.rank - 1))


for _name in ("Softmax", "LogSoftmax"):
    _along(_name)


# -- moving entries


@kind("Concat")
def _concat(m: Models, x: Live) -> list[Live] | None:
    """Up to three tensors, computed or stored, x among them at any place."""
    axis = m.integer(1, x.rank - 1)
    operands: list[Live | str | None] = [x]
    width = x.shape[axis]
    for _ in range(m.integer(0, 2)):

        def fits(y: Live) -> bool:
            return y.rank == x.rank and all(
                a == axis or p == q for a, (p, q) in enumerate(zip(x.shape, y.shape, strict=True))
            )

        other = (x if m.chance(0.2) else m.some(fits)) if m.chance(0.5) else None
        if other is None:
            shape = tuple(m.integer(1, 3) if a == axis else n for a, n in enumerate(x.shape))
            operands.append(m.keep(m.numbers(shape)))
            width += shape[axis]
        else:
            operands.append(other)
            width += other.shape[axis]
    m.rng.shuffle(operands)  # type: ignore[arg-type]
    shape = tuple(width if a == axis else n for a, n in enumerate(x.shape))
    return None if math.prod(shape) > LARGEST else m.emit("Concat", operands, shape, axis=axis)


@kind("Split")
def _split(m: Models, x: Live) -> list[Live] | None:
    axis = m.integer(1, x.rank - 1)
    if x.shape[axis] < 2:
        return None
    cut = m.integer(1, x.shape[axis] - 1)
    sizes = [cut, x.shape[axis] - cut]
    shapes = [tuple(s if a == axis else n for a, n in enumerate(x.shape)) for s in sizes]
    return m.emit("Split", [x], shapes, [m.ints(sizes)], axis=axis)


@kind("Slice")
def _slice(m: Models, x: Live) -> list[Live]:
    axis = m.integer(1, x.rank - 1)
    size = x.shape[axis]
    step = m.choice([1, 1, 2, -1])
    low = m.integer(0, size - 1)
    high = m.integer(low + 1, size)
    start, stop = (low, high) if step > 0 else (high - 1, low - 1 if low else -size - 1)
    count = len(range(low, high, abs(step)))
    shape = tuple(count if a == axis else n for a, n in enumerate(x.shape))
    return m.emit("Slice", [x], shape, [m.ints([start]), m.ints([stop]), m.ints([axis]), m.ints([step])])


@kind("Gather", (2, 3, 4), lambda rank: {rank, rank - 1, rank + 1} & {2, 3, 4})
def _gather(m: Models, x: Live) -> list[Live] | None:
    axis = m.integer(1, x.rank - 1)
    ranks = [r for r in (0, 1, 1, 2) if 2 <= x.rank + r - 1 <= 4]
    index = m.rng.integers(
        -x.shape[axis], x.shape[axis], tuple(m.integer(1, 3) for _ in range(m.choice(ranks)))
    )
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    if math.prod(shape) > LARGEST:
        return None
    return m.emit("Gather", [x], shape, [m.keep(np.asarray(index, np.int64))], axis=axis)


@kind("TopK")
def _top_k(m: Models, x: Live) -> list[Live]:
    axis = m.integer(1, x.rank - 1)
    count = m.integer(1, x.shape[axis])
    shape = tuple(count if a == axis else n for a, n in enumerate(x.shape))
    found = m.emit("TopK", [x], [shape, shape], [m.ints([count])], axis=axis, largest=m.integer(0, 1))
    m.live.remove(found[1])  # the positions jump
    return found[:1]


@kind("Trilu", (3, 4))
def _trilu(m: Models, x: Live) -> list[Live]:
    return m.emit("Trilu", [x], x.shape, upper=m.integer(0, 1))


@kind("Reshape", (2, 3, 4), lambda rank: {2, 3, 4})
def _reshape(m: Models, x: Live) -> list[Live]:
    rest = x.shape[1:]
    cuts = [
        rest,
        (math.prod(rest),),
        (1, math.prod(rest)),
        (math.prod(rest), 1),
        (1, *rest) if len(rest) < 3 else rest[::-1],
    ]
    shape = (1, *m.choice([c for c in cuts if len(c) < 4]))
    return m.emit("Reshape", [x], shape, [m.ints(list(shape))])


@kind("Flatten", (2, 3, 4), lambda rank: {2})
def _flatten(m: Models, x: Live) -> list[Live]:
    return m.emit("Flatten", [x], (1, x.size), axis=1)


@kind("Transpose")
def _transpose(m: Models, x: Live) -> list[Live]:
    order = [0, *(1 + m.rng.permutation(x.rank - 1)).tolist()]
    return m.emit("Transpose", [x], tuple(x.shape[a] for a in order), perm=order)


@kind("Squeeze", (3, 4), lambda rank: {rank - 1})
def _squeeze(m: Models, x: Live) -> list[Live] | None:
    ones = [a for a in range(1, x.rank) if x.shape[a] == 1]
    if not ones:
        return None
    axis = m.choice(ones)
    return m.emit("Squeeze", [x], (*x.shape[:axis], *x.shape[axis + 1 :]), [m.ints([axis])])


@kind("Unsqueeze", (2, 3), lambda rank: {rank + 1})
def _unsqueeze(m: Models, x: Live) -> list[Live]:
    axis = m.integer(1, x.rank)
    return m.emit("Unsqueeze", [x], (*x.shape[:axis], 1, *x.shape[axis:]), [m.ints([axis])])


@kind("Expand")
def _expand(m: Models, x: Live) -> list[Live] | None:
    shape = (1, *(m.integer(1, 3) if n == 1 else n for n in x.shape[1:]))
    return None if math.prod(shape) > LARGEST else m.emit("Expand", [x], shape, [m.ints(list(shape))])


@kind("Tile")
def _tile(m: Models, x: Live) -> list[Live] | None:
    repeats = [1, *(m.integer(1, 2) for _ in x.shape[1:])]
    shape = tuple(a * b for a, b in zip(x.shape, repeats, strict=True))
    return None if math.prod(shape) > LARGEST else m.emit("Tile", [x], shape, [m.ints(repeats)])


@kind("Pad")
def _pad(m: Models, x: Live) -> list[Live] | None:
    mode = m.choice(["constant", "constant", "edge", "reflect"])
    most = [0, *((1 if mode != "reflect" else min(1, n - 1)) for n in x.shape[1:])]
    pads = [m.integer(0, n) for n in (*most, *most)]
    shape = tuple(n + pads[a] + pads[x.rank + a] for a, n in enumerate(x.shape))
    if math.prod(shape) > LARGEST:
        return None
    settings = [m.ints(pads)]
    if mode == "constant" and m.chance(0.7):
        settings.append(m.keep(np.float32(m.choice([0.7, -1.0, 0.0]))))
        m.habits["pads with a value"] += 1
    return m.emit("Pad", [x], shape, settings, mode=mode)


@kind("DepthToSpace", (4,))
def _depth_to_space(m: Models, x: Live) -> list[Live] | None:
    _, channels, height, width = x.shape
    if channels != 4:
        return m.emit("DepthToSpace", [x], x.shape, blocksize=1)
    return m.emit(
        "DepthToSpace", [x], (1, 1, 2 * height, 2 * width), blocksize=2, mode=m.choice(["DCR", "CRD"])
    )


@kind("SpaceToDepth", (4,))
def _space_to_depth(m: Models, x: Live) -> list[Live]:
    _, channels, height, width = x.shape
    block = 2 if height % 2 == width % 2 == 0 else 1
    shape = (1, channels * block**2, height // block, width // block)
    return m.emit("SpaceToDepth", [x], shape, blocksize=block)


@kind("Resize", (4,))
def _resize(m: Models, x: Live) -> list[Live] | None:
    sizes = [*x.shape[:2], m.integer(1, 4), m.integer(1, 4)]
    if math.prod(sizes) > LARGEST:
        return None
    return m.emit(
        "Resize", [x], tuple(sizes), ["", "", m.ints(sizes)],
        mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
