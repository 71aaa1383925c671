"""Small programs by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lipverify.checkers.kernel.elementary import Largest
from lipverify.checkers.kernel.program import (
    Affine,
    Constant,
    Implicit,
    Input,
    Lattice,
    Normalise,
    Order,
    Product,
    Program,
    Reflect,
    Scalar,
    Softmax,
    Step,
    View,
    checked,
)
from lipverify.checkers.kernel.ranges import Region

Array = np.ndarray[Any, np.dtype[Any]]


class Writing:
    """Steps so far; each reads the whole result of the one before, unless it is told otherwise."""

    def __init__(self, inputs: int) -> None:
        self.steps: list[Step] = []
        self.put(Input(View((), np.empty(0, dtype=np.int64)), inputs))

    def put(self, step: Step) -> int:
        self.steps.append(checked(step, self.steps))
        return len(self.steps) - 1

    def view(self, *sources: int) -> View:
        found = sources or (len(self.steps) - 1,)
        return View(found, np.arange(sum(self.steps[s].size for s in found)))

    def dense(self, weight: Array, bias: Array | None = None, *sources: int) -> int:
        view, n = self.view(*sources), weight.shape[1]
        return self.put(Affine(view, len(weight), weight[None], np.arange(n)[None, None], bias))

    def conv(
        self,
        weight: Array,
        image: tuple[int, int, int],
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
        source: int | None = None,
    ) -> int:
        """A convolution of an image with weight [groups, out, in, taps, taps]."""
        groups, out, inner, *taps = weight.shape
        places = np.pad(np.arange(np.prod(image)).reshape(image), ((0, 0), *padding), constant_values=-1)
        reads = []
        for a in (0, 1):
            count = (places.shape[1 + a] - dilation[a] * (taps[a] - 1) - 1) // stride[a] + 1
            reads.append(np.arange(count)[:, None] * stride[a] + dilation[a] * np.arange(taps[a]))
        index = places[:, reads[0][:, None, :, None], reads[1][None, :, None, :]]
        index = (
            index.reshape(groups, inner, -1, taps[0] * taps[1])
            .swapaxes(1, 2)
            .reshape(groups, -1, inner * taps[0] * taps[1])
        )
        lattice = Lattice(weight, image, stride, dilation, padding, False)
        size = groups * out * index.shape[1]
        view = self.view(*([] if source is None else [source]))
        return self.put(Affine(view, size, weight.reshape(groups, out, -1), index, None, 0, lattice))

    def scalar(self, law: str, *sources: int, slopes: Array | None = None, **settings: float) -> int:
        view = self.view(*sources)
        return self.put(Scalar(view, len(view.places), law, tuple(settings.items()), slopes))

    def sum(self, first: int, second: int) -> int:
        n = self.steps[first].size
        places = np.arange(2 * n).reshape(1, 2, n).swapaxes(1, 2)
        return self.put(Affine(self.view(first, second), n, np.ones((1, 1, 2)), places))

    def product(self, first: int, second: int) -> int:
        return self.put(Product(self.view(first), self.steps[first].size, self.view(second)))

    def sort(self, group: int, whole: bool = True) -> int:
        view = self.view()
        groups = np.arange(len(view.places)).reshape(-1, group)
        return self.put(Order(view, groups.size if whole else len(groups), groups, whole))

    def reflect(self, vectors: Array) -> int:
        view, vectors = self.view(), np.ldexp(vectors, -np.frexp(np.abs(vectors).max(1, keepdims=True))[1])
        groups = np.arange(len(view.places)).reshape(-1, *vectors.shape)
        return self.put(Reflect(view, groups.size, groups, vectors))

    def implicit(self, recurrent: Array, inputs: Array, bias: Array | None = None, law: str = "Relu") -> int:
        return self.put(Implicit(self.view(), len(recurrent), recurrent, inputs, bias, law))

    def softmax(self, count: int) -> int:
        view = self.view()
        return self.put(Softmax(view, len(view.places), np.arange(len(view.places)).reshape(-1, count)))

    def normalise(
        self, count: int, weight: Array, bias: Array, epsilon: float = 1e-2, centred: bool = True
    ) -> int:
        view = self.view()
        groups = np.arange(len(view.places)).reshape(-1, count)
        tiled = (np.broadcast_to(v, groups.shape).copy() for v in (weight, bias))
        return self.put(Normalise(view, groups.size, groups, *tiled, epsilon, centred))

    def program(self) -> Program:
        return Program(tuple(self.steps))


def mlp(rng: np.random.Generator, widths: Sequence[int], law: str = "Relu", **settings: float) -> Program:
    w = Writing(widths[0])
    for k, (n, m) in enumerate(itertools.pairwise(widths)):
        w.dense(rng.standard_normal((m, n)) / np.sqrt(n), 0.3 * rng.standard_normal(m))
        if k < len(widths) - 2:
            w.scalar(law, **settings)
    return w.program()


def pooled(rng: np.random.Generator, widths: Sequence[int], group: int, relu: bool = True) -> Program:
    """Dense layers with maxima of `group` neighbours behind them, and a ReLU behind these."""
    w = Writing(widths[0])
    for k, (n, m) in enumerate(itertools.pairwise(widths)):
        n = n if k == 0 else n // group
        w.dense(rng.standard_normal((m, n)) / np.sqrt(n), 0.3 * rng.standard_normal(m))
        if k < len(widths) - 2:
            w.sort(group, whole=False)
            if relu:
                w.scalar("Relu")
    return w.program()


def ball(centre: Array, radius: float, norm: str = "linf") -> Region:
    low, high = np.nextafter(centre - radius, -np.inf), np.nextafter(centre + radius, np.inf)
    return Region(centre, radius, norm, low, high)


LAWS = {
    "Relu": lambda x: np.maximum(x, 0),
    "Abs": np.abs,
    "LeakyRelu": lambda x, alpha=0.01: np.where(x < 0, alpha * x, x),
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Silu": lambda x, beta=1.0: x / (1 + np.exp(-beta * x)),
    "Sin": np.sin,
    "Clip": lambda x, min=-np.inf, max=np.inf: np.clip(x, min, max),
    "HardSwish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "Exp": np.exp,
    "Square": np.square,
    "Sqrt": np.sqrt,
    "Log": np.log,
    "Reciprocal": lambda x: 1 / x,
    "Power": lambda x, exponent=1.0: x**exponent,
}


def evaluate(steps: Sequence[Step], x: Array) -> Array:
    """The last step at x [points, inputs]."""
    return results(steps, x)[-1]


def shown(view: View, found: Sequence[Array]) -> Array:
    """What a view shows of results [points, size]."""
    zeros = np.zeros((len(found[0]), 1))
    return np.concatenate([*(found[s] for s in view.sources), zeros], 1)[:, view.places]


def results(steps: Sequence[Step], x: Array) -> list[Array]:
    """All steps at x [points, inputs]: straight from the definitions."""
    found: list[Array] = []

    def seen(view: View) -> Array:
        return shown(view, found) if found else np.zeros((len(x), 0))

    for step in steps:
        v = np.append(seen(step.view), np.zeros((len(x), 1)), 1)
        if isinstance(step, Input):
            y = x
        elif isinstance(step, Constant):
            y = np.broadcast_to(step.values, (len(x), step.size))
        elif isinstance(step, Affine):
            y = np.einsum("got,ngpt->ngop", step.kernel, v[:, step.index]).reshape(len(x), -1)
            y = y + (0 if step.offset is None else step.offset)
        elif isinstance(step, Scalar) and step.law == "PRelu":
            y = np.where(v[:, :-1] < 0, step.slopes * v[:, :-1], v[:, :-1])
        elif isinstance(step, Scalar) and step.law == "Round":
            ends = dict(step.settings)
            y = step.slopes * np.clip(np.rint(v[:, :-1] / step.slopes), ends["min"], ends["max"])
        elif isinstance(step, Scalar):
            y = LAWS[step.law](v[:, :-1], **dict(step.settings))
        elif isinstance(step, Order):
            groups = np.where(step.groups >= 0, v[:, step.groups], -np.inf)
            y = np.sort(groups, -1).reshape(len(x), -1) if step.whole else groups.max(-1)
        elif isinstance(step, Reflect):
            u, w = v[:, step.groups], step.vectors
            scale = 2 * np.maximum(-(u * w).sum(-1, keepdims=True), 0) / (w * w).sum(-1, keepdims=True)
            y = np.empty((len(x), step.size))
            y[:, step.groups] = u + scale * w
        elif isinstance(step, Product):
            y = v[:, :-1] * seen(step.other)
        elif isinstance(step, Softmax):
            e = np.exp(v[:, step.groups])
            y = (e / e.sum(-1, keepdims=True)).reshape(len(x), -1)
        elif isinstance(step, Normalise):
            u = v[:, step.groups]
            u = u - (u.mean(-1, keepdims=True) if step.centred else 0)
            u = u / np.sqrt((u * u).mean(-1, keepdims=True) + step.epsilon)
            y = (step.weight * u + step.bias).reshape(len(x), -1)
        elif isinstance(step, Largest):
            y = v[:, :-1].reshape(len(x), -1, step.size).max(1)
        elif isinstance(step, Implicit):
            y = np.zeros((len(x), step.size))
            for _ in range(200):
                drive = y @ step.recurrent.T + v[:, :-1] @ step.inputs.T
                y = LAWS[step.law](drive + (0 if step.bias is None else step.bias), **dict(step.settings))
        else:
            raise TypeError(type(step))
        found.append(y)
    return found


def jacobians(steps: Sequence[Step], x: Array, h: float = 1e-6) -> Array:
    """Difference quotients [points, outputs, inputs] in the middle of the points."""
    columns = [
        (evaluate(steps, x + h * e) - evaluate(steps, x - h * e)) / (2 * h) for e in np.eye(x.shape[1])
    ]
    return np.stack(columns, -1)


def points(rng: np.random.Generator, region: Region, count: int) -> Array:
    """Points of a region, at its edge as well."""
    n = len(region.centre)
    step = rng.uniform(-1, 1, (count, n)) * rng.choice([0.3, 1.0, 3.0], (count, 1))
    step = np.clip(step, -1, 1)
    if region.norm == "l2":
        step = step / np.maximum(1, np.linalg.norm(step, axis=1, keepdims=True))
    return np.clip(region.centre + region.radius * step, region.low, region.high)


def pictures(rng: np.random.Generator) -> dict[str, Program]:
    """A small program for every kind of step, with layers before and behind it."""

    def begun(inputs: int = 3, width: int = 6) -> Writing:
        w = Writing(inputs)
        w.dense(rng.standard_normal((width, inputs)) / 2, 0.3 * rng.standard_normal(width))
        return w

    def ended(w: Writing, outputs: int = 2) -> Program:
        width = w.steps[-1].size
        w.dense(rng.standard_normal((4, width)) / 2, 0.3 * rng.standard_normal(4))
        w.scalar("Relu")
        w.dense(rng.standard_normal((outputs, 4)) / 2, 0.3 * rng.standard_normal(outputs))
        return w.program()

    found = {}
    for law, settings in (("Relu", {}), ("Abs", {}), ("LeakyRelu", {"alpha": -0.5}), ("LeakyRelu", {"alpha": 1.7}), ("Tanh", {}),
                          ("Silu", {"beta": 1.7}), ("Sin", {}), ("Clip", {"min": -0.5, "max": 0.6}), ("HardSwish", {}),
                          ("Exp", {}), ("Square", {})):  # fmt: skip
        w = begun()
        w.scalar(law, **settings)
        found[f"{law} {settings}"] = ended(w)
    for law in ("Sqrt", "Log", "Reciprocal", "Power"):
        w = begun()
        w.scalar("Exp")
        w.scalar(law, **({"exponent": -0.5} if law == "Power" else {}))
        found[law] = ended(w)
    w = begun()
    w.scalar("PRelu", slopes=rng.uniform(-0.5, 2, 6))
    found["PRelu"] = ended(w)
    for group, whole in ((2, True), (3, True), (6, False), (3, False)):
        w = begun()
        w.sort(group, whole)
        found[f"order {group} {whole}"] = ended(w)
    w = begun()
    w.reflect(rng.standard_normal((2, 3)))
    found["reflect"] = ended(w)
    w = begun()
    gate = w.scalar("Sigmoid")
    other = w.scalar("Relu", 1)
    w.product(gate, other)
    found["product"] = ended(w)
    w = begun()
    w.product(1, 1)
    found["square by product"] = ended(w)
    for count in (6, 3, 2):
        w = begun()
        w.softmax(count)
        found[f"softmax {count}"] = ended(w)
    for centred in (True, False):
        w = begun()
        w.normalise(3, rng.standard_normal(3), rng.standard_normal(3), centred=centred)
        found[f"normalise {centred}"] = ended(w)
    w = begun()
    constant = w.put(Constant(View((), np.empty(0, dtype=np.int64)), 6, rng.standard_normal(6)))
    w.sum(1, constant)
    w.scalar("Tanh")
    skip = w.sum(1, len(w.steps) - 1)
    w.product(skip, constant)
    found["constant"] = ended(w)
    w = begun()
    w.implicit(0.1 * rng.standard_normal((4, 4)), rng.standard_normal((4, 6)), rng.standard_normal(4))
    found["implicit"] = ended(w)
    return found
