"""Random networks of attention, a graph for every seed: all that people change about a transformer, drawn apart from each other.

Legend: n tokens of width d, h heads of size s. The graph is written node by node, as importers leave it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipverify import ops
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Constant, Input
from tests.attention_networks import Writer

MASKS = ("none", "causal", "window", "seen", "numbers", "hidden by -30", "slopes")
ROTATIONS = ("none", "none", "halves", "pairs", "some")
NORMS = ("layer", "rms", "none")
PLACES = ("pre", "post", "both")
INNER = (
    "none",
    "none",
    "none",
    "rms of q, k",
    "layer of q, k",
    "rms of q, k, v",
    "length of q, k",
    "length of q, k, v",
)
LAYERS = ("relu", "gelu", "gelu tanh", "gelu quick", "swiglu", "geglu", "reglu", "tanh", "leaky", "none")
SUMS = ("plain", "plain", "convex", "per channel", "none")
WEIGHTS = ("normal", "one head", "one direction", "large scores", "tiny", "equal queries and keys")
ENDS = ("tokens", "mean", "first", "all", "logits of tokens")
STARTS = ("tokens", "class token", "places", "class token and places", "patches")


@dataclass(frozen=True)
class Kind:
    """What a network is made of; every field is drawn by itself."""

    mask: str
    rotation: str
    norm: str
    place: str
    inner: str
    layers: str
    sums: str
    weights: str
    end: str
    start: str
    shared: bool
    """Two heads share keys and values."""
    capped: bool
    """Scores c tanh(score / c)."""
    turned: bool
    """The softmax along the first of the axes of transposed scores."""
    eps: float

    def words(self) -> list[str]:
        """Every choice, for counts of what was reached."""
        return [f"{f.name}: {getattr(self, f.name)}" for f in fields(self)]


def drawn(rng: np.random.Generator) -> Kind:
    def one(choices: tuple[Any, ...]) -> Any:
        return choices[int(rng.integers(len(choices)))]

    return Kind(
        mask=one(MASKS),
        rotation=one(ROTATIONS),
        norm=one(NORMS),
        place=one(PLACES),
        inner=one(INNER),
        layers=one(LAYERS),
        sums=one(SUMS),
        weights=one(WEIGHTS),
        end=one(ENDS),
        start=one(STARTS),
        shared=bool(rng.random() < 0.25),
        capped=bool(rng.random() < 0.15),
        turned=bool(rng.random() < 0.15),
        eps=float(one((1e-5, 1e-5, 1e-2, 1.0))),
    )


def network(seed: int) -> tuple[Graph, Kind]:
    """The network of a seed: [n, d] (or a flat image) -> tokens, a vector or logits."""
    rng = np.random.default_rng((seed, 16))
    kind = drawn(rng)
    return _Made(Writer(rng), kind).graph(), kind


class _Made:
    def __init__(self, w: Writer, kind: Kind) -> None:
        self.w, self.rng, self.kind = w, w.rng, kind
        self.n, self.heads, self.size = (int(self.rng.integers(1, top)) for top in (5, 4, 4))
        if kind.shared:
            self.heads = 2
        if kind.rotation != "none":
            self.size = 2 if self.size < 3 else 4
        self.d = self.heads * self.size

    def graph(self) -> Graph:
        w, kind = self.w, self.kind
        x = self.start()
        for _ in range(1 + int(self.rng.random() < 0.3)):
            x = self.block(x, self.attention)
            if kind.layers != "none":
                x = self.block(x, self.layers)
        x = self.end(x)
        return Graph(tuple(w.nodes), (x,))

    def start(self) -> str:
        w, kind, n, d = self.w, self.kind, self.n, self.d
        if kind.start == "patches":
            patch = int(self.rng.integers(1, 4))
            w.nodes.append(Node("input", Input(), (), (n * patch,)))
            x = w.add(ops.Reshape((n, patch)), ("input",), (n, patch))
            x = w.linear(x, (n,), patch, d)
        else:
            w.nodes.append(Node("input", Input(), (), (n, d)))
            x = "input"
        if "class token" in kind.start:
            token = w.add(Constant(w.tensor(1, d)), (), (1, d))
            x = w.add(ops.Concat(0), (token, x), (n + 1, d))
            self.n += 1
        if "places" in kind.start:
            places = Constant(w.tensor(self.n, d, scale=0.5))
            x = w.add(ops.Add(), (x, w.add(places, (), (self.n, d))), (self.n, d))
        return x

    def end(self, x: str) -> str:
        w, n, d = self.w, self.n, self.d
        end = self.kind.end
        if end == "tokens":
            return x
        if end == "logits of tokens":
            return w.linear(x, (n,), d, 3)
        if end == "all":
            return w.linear(w.add(ops.Reshape((n * d,)), (x,), (n * d,)), (), n * d, 3)
        if end == "mean":
            x = w.add(ops.ReduceMean((0,), False), (x,), (d,))
        else:
            x = w.add(ops.Slice(0, 0, 1), (x,), (1, d))
            x = w.add(ops.Reshape((d,)), (x,), (d,))
        return w.linear(x, (), d, 3)

    def block(self, x: str, inner: Any) -> str:
        w, kind, shape = self.w, self.kind, (self.n, self.d)
        y = self.norm(x) if kind.place in ("pre", "both") else x
        y = inner(y)
        y = self.norm(y) if kind.place == "both" else y
        one = torch.tensor(1.0, dtype=torch.float64)
        if kind.sums == "convex":
            share = float(self.rng.uniform(0.1, 0.9))
            x = w.add(ops.Scale(one * (1 - share), None), (x,), shape)
            y = w.add(ops.Scale(one * share, None), (y,), shape)
        elif kind.sums == "per channel":
            y = w.add(ops.Scale(w.tensor(self.d, scale=0.5), None), (y,), shape)
        if kind.sums != "none":
            y = w.add(ops.Add(), (x, y), shape)
        return self.norm(y) if kind.place == "post" else y

    def norm(self, x: str) -> str:
        """LayerNorm or RMSNorm with a weight, or nothing."""
        w, d = self.w, self.d
        if self.kind.norm == "none":
            return x
        weight = w.tensor(d, scale=0.5) + 1.0
        if self.kind.norm == "layer":
            return w.add(
                ops.LayerNorm((d,), weight, w.tensor(d, scale=0.3), self.kind.eps), (x,), (self.n, d)
            )
        return w.add(ops.RMSNorm((d,), weight, self.kind.eps), (x,), (self.n, d))

    def layers(self, x: str) -> str:
        w, n, d, kind = self.w, self.n, self.d, self.kind.layers
        hidden = int(self.rng.integers(1, 7))
        scale = {"large scores": 3.0, "tiny": 1e-3}.get(self.kind.weights, 1.0)
        acts: dict[str, Any] = {
            "relu": ops.ReLU(),
            "gelu": ops.GELU(),
            "gelu tanh": ops.GELU(tanh=True),
            "gelu quick": ops.SiLU(1.702),
            "swiglu": ops.SiLU(),
            "geglu": ops.GELU(),
            "reglu": ops.ReLU(),
            "tanh": ops.Tanh(),
            "leaky": ops.LeakyReLU(0.2),
        }
        h = w.add(acts[kind], (w.linear(x, (n,), d, hidden, scale),), (n, hidden))
        if kind.endswith("glu"):
            h = w.add(ops.Mul(), (h, w.linear(x, (n,), d, hidden, scale)), (n, hidden))
        return w.linear(h, (n,), hidden, d, scale)

    # -- attention

    def weight(self, out: int, role: str) -> Tensor:
        """[out, d] for queries, keys, values or the output map, some of them at the edge of what bounds are made of."""
        w, d, s = self.w, self.d, self.size
        found: Tensor = w.tensor(out, d, scale=1 / math.sqrt(d))
        match self.kind.weights:
            case "one head" if role != "output":
                found[s:] = 0.0
            case "one head":
                found[:, s:] = 0.0
            case "one direction":
                found = 2.0 * w.tensor(out, 1) * w.tensor(1, d) / d
            case "large scores" if role in ("queries", "keys"):
                found = found * 4.0
            case "tiny":
                found = found * 1e-3
        return found

    def attention(self, x: str) -> str:
        w, n, d, h, s, kind = self.w, self.n, self.d, self.heads, self.size, self.kind
        own = 1 if kind.shared else h
        queries = self.weight(d, "queries")
        keys = queries if kind.weights.startswith("equal") and own == h else self.weight(own * s, "keys")

        def head(role: str, weight: Tensor, count: int) -> str:
            bias = w.tensor(count * s, scale=0.3) if self.rng.random() < 0.7 else None
            part = w.add(ops.Linear(weight, bias), (x,), (n, count * s))
            part = w.add(ops.Reshape((n, count, s)), (part,), (n, count, s))
            if (role != "values" and "q, k" in kind.inner) or (role == "values" and "v" in kind.inner):
                part = self.inner(part, count)
            if role != "values":
                part = self.rotated(part, count)
            part = w.add(ops.Transpose((1, 0, 2)), (part,), (count, n, s))
            if count < h:
                index = torch.zeros(h, dtype=torch.int64)
                part = w.add(ops.Gather(0, index), (part,), (h, n, s))
            return part

        q, k = head("queries", queries, h), head("keys", keys, own)
        v = head("values", self.weight(own * s, "values"), own)
        k = w.add(ops.Transpose((0, 2, 1)), (k,), (h, s, n))
        z = w.add(ops.MatMul(), (q, k), (h, n, n))
        p = self.softmax(self.scored(z))
        y = w.add(ops.MatMul(), (p, v), (h, n, s))
        y = w.add(ops.Transpose((1, 0, 2)), (y,), (n, h, s))
        y = w.add(ops.Reshape((n, d)), (y,), (n, d))
        return w.add(ops.Linear(self.weight(d, "output"), w.tensor(d, scale=0.3)), (y,), (n, d))

    def inner(self, x: str, count: int) -> str:
        s, w = self.size, self.w
        if "length" in self.kind.inner:
            length = w.add(ops.ReduceNorm((2,), True), (x,), (self.n, count, 1))
            length = w.add(ops.Clip(self.kind.eps**0.5, math.inf), (length,), (self.n, count, 1))
            return w.add(ops.Div(), (x, length), (self.n, count, s))
        weight = w.tensor(s, scale=0.5) + 1.0
        if "layer" in self.kind.inner:
            return w.add(ops.LayerNorm((s,), weight, None, self.kind.eps), (x,), (self.n, count, s))
        return w.add(ops.RMSNorm((s,), weight, self.kind.eps), (x,), (self.n, count, s))

    def rotated(self, x: str, count: int) -> str:
        """Queries or keys [n, count, s] turned pair by pair by angles that grow with the place."""
        kind, n, s, w = self.kind.rotation, self.n, self.size, self.w
        if kind == "none":
            return x
        half = s // 2 if kind != "some" else max(s // 4, 1)
        i = torch.arange(half)
        first, second = (2 * i, 2 * i + 1) if kind == "pairs" else (i, i + half)
        angle = torch.arange(n, dtype=torch.float64)[:, None] * 3.0 ** (-i / half)
        own, other = torch.ones(n, 1, s, dtype=torch.float64), torch.zeros(n, 1, s, dtype=torch.float64)
        own[:, 0, first], own[:, 0, second] = angle.cos(), angle.cos()
        other[:, 0, first], other[:, 0, second] = -angle.sin(), angle.sin()
        partner = torch.arange(s)
        partner[first], partner[second] = second, first
        shape = (n, count, s)
        turned = w.add(ops.Gather(2, partner), (x,), shape)
        turned = w.add(ops.Scale(other, None), (turned,), shape)
        return w.add(ops.Add(), (w.add(ops.Scale(own, None), (x,), shape), turned), shape)

    def scored(self, z: str) -> str:
        """Scores times a factor, capped, plus what a mask adds."""
        w, kind, n, h = self.w, self.kind, self.n, self.heads
        shape = (h, n, n)
        factor = torch.tensor(
            float(self.rng.choice([self.size**-0.5, 1.0, 1 / self.size])), dtype=torch.float64
        )
        place = torch.arange(n)
        numbers: Tensor | None = None
        if kind.mask == "numbers":
            numbers = w.tensor(h, n, n)
        elif kind.mask == "hidden by -30":
            numbers = torch.full((n, n), -30.0, dtype=torch.float64).triu(1)
        elif kind.mask == "slopes":
            ahead = (place[None] - place[:, None]).to(torch.float64).clamp(max=0.0)
            numbers = 2.0 ** -torch.arange(h, dtype=torch.float64)[:, None, None] * ahead
        if kind.capped:
            cap = torch.tensor(float(self.rng.choice([1.0, 5.0])), dtype=torch.float64)
            z = w.add(ops.Scale(factor / cap, None), (z,), shape)
            return w.add(ops.Scale(cap, numbers), (w.add(ops.Tanh(), (z,), shape),), shape)
        return w.add(ops.Scale(factor, numbers), (z,), shape)

    def softmax(self, z: str) -> str:
        w, kind, n, h = self.w, self.kind, self.n, self.heads
        shape, kept = (h, n, n), torch.ones(n, n, dtype=torch.bool)
        if kind.mask == "causal":
            kept = kept.tril()
        elif kind.mask == "window":
            kept = kept.tril() & kept.triu(-1)
        elif kind.mask == "seen":
            kept = torch.tensor(self.rng.random((n, n)) < 0.5)
            kept[torch.arange(n), torch.tensor(self.rng.integers(n, size=n))] = True
        if kind.turned:
            z = w.add(ops.Transpose((0, 2, 1)), (z,), shape)
            kept = kept.mT.contiguous()
        axis = 1 if kind.turned else 2
        whole = bool(kept.all())
        row = ops.Softmax(axis) if whole else ops.MaskedSoftmax(axis, kept.expand(shape))
        p = w.add(row, (z,), shape)
        return w.add(ops.Transpose((0, 2, 1)), (p,), shape) if kind.turned else p
