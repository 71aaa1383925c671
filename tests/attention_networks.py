"""Random networks with attention, gates and normalisation, small enough for thousands of checks."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lipverify import ops
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Constant, Input, Op


class Writer:
    """Appends nodes; shapes are told by the caller."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.nodes = rng, list[Node]()

    def add(self, op: Op, inputs: tuple[str, ...], shape: tuple[int, ...]) -> str:
        name = f"{op.kind().lower()}{len(self.nodes)}"
        self.nodes.append(Node(name, op, inputs, shape))
        return name

    def tensor(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.tensor(self.rng.normal(size=shape) * scale)

    def linear(self, x: str, lead: tuple[int, ...], size: int, out: int, scale: float = 1.0) -> str:
        weight = self.tensor(out, size, scale=scale / math.sqrt(size))
        return self.add(ops.Linear(weight, self.tensor(out, scale=0.3)), (x,), (*lead, out))


def attention(
    w: Writer, x: str, n: int, d: int, heads: int, scale: float, causal: bool, axis_first: bool, rotary: bool
) -> str:
    """Multi-head self-attention on [n, d]; the softmax along the last axis, or along the first of transposed logits.

    rotary: queries and keys are turned pair by pair by angles that grow with the place.
    """
    size = d // heads

    def turned(part: str) -> str:
        pairs = torch.arange(size) ^ 1
        angle = torch.arange(n, dtype=torch.float64)[:, None] * (1.0 + torch.arange(size) // 2)
        sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(size // 2)
        own = w.add(ops.Scale(angle.cos()[:, None], None), (part,), (n, heads, size))
        other = w.add(ops.Gather(2, pairs), (part,), (n, heads, size))
        other = w.add(ops.Scale((angle.sin() * sign)[:, None], None), (other,), (n, heads, size))
        return w.add(ops.Add(), (own, other), (n, heads, size))

    def head(order: tuple[int, ...], shape: tuple[int, ...], turn: bool = False) -> str:
        part = w.linear(x, (n,), d, d, scale)
        part = w.add(ops.Reshape((n, heads, size)), (part,), (n, heads, size))
        part = turned(part) if turn else part
        return w.add(ops.Transpose(order), (part,), shape)

    q = head((1, 0, 2), (heads, n, size), rotary)
    k = head((1, 2, 0), (heads, size, n), rotary)
    v = head((1, 0, 2), (heads, n, size))
    logits = w.add(ops.MatMul(), (q, k), (heads, n, n))
    mask, kept = None, None
    if causal and scale == 1.0 and not axis_first:
        kept = torch.ones(n, n, dtype=torch.bool).tril()
    elif causal:
        mask = torch.full((n, n), -30.0, dtype=torch.float64).triu(1)
    factor = torch.tensor(1.0 / math.sqrt(size), dtype=torch.float64)
    logits = w.add(ops.Scale(factor, mask), (logits,), (heads, n, n))
    if axis_first:
        turned = w.add(ops.Transpose((0, 2, 1)), (logits,), (heads, n, n))
        p = w.add(ops.Softmax(1), (turned,), (heads, n, n))
        p = w.add(ops.Transpose((0, 2, 1)), (p,), (heads, n, n))
    else:
        row = ops.Softmax(2) if kept is None else ops.MaskedSoftmax(2, kept.expand(heads, n, n))
        p = w.add(row, (logits,), (heads, n, n))
    y = w.add(ops.MatMul(), (p, v), (heads, n, size))
    y = w.add(ops.Transpose((1, 0, 2)), (y,), (n, heads, size))
    y = w.add(ops.Reshape((n, d)), (y,), (n, d))
    return w.linear(y, (n,), d, d, scale)


def normalisation(w: Writer, x: str, n: int, d: int, kind: str) -> str:
    """LayerNorm or RMSNorm over the last axis, or nothing."""
    weight = w.tensor(d, scale=0.5) + 1.0
    if kind == "layer":
        return w.add(ops.LayerNorm((d,), weight, w.tensor(d, scale=0.2), 1e-5), (x,), (n, d))
    return w.add(ops.RMSNorm((d,), weight, 1e-5), (x,), (n, d)) if kind == "rms" else x


def mlp(w: Writer, x: str, n: int, d: int, kind: str, scale: float) -> str:
    """Two layers with an activation, or with a gate: act(a) b."""
    hidden = 2 * d
    activations = {
        "relu": ops.ReLU,
        "gelu": ops.GELU,
        "swiglu": ops.SiLU,
        "geglu": ops.GELU,
        "tanh": ops.Tanh,
    }
    h = w.linear(x, (n,), d, hidden, scale)
    h = w.add(activations[kind](), (h,), (n, hidden))
    if kind.endswith("glu"):
        h = w.add(ops.Mul(), (h, w.linear(x, (n,), d, hidden, scale)), (n, hidden))
    return w.linear(h, (n,), hidden, d, scale)


def random_transformer(seed: int) -> tuple[Graph, Tensor]:
    """A transformer on [tokens, d] with every option drawn, and a centre [1, tokens, d]."""
    rng = np.random.default_rng(seed)
    w = Writer(rng)
    tokens, heads, size = int(rng.integers(2, 5)), int(rng.integers(1, 4)), int(rng.integers(1, 4))
    d, depth = heads * size, int(rng.integers(1, 3))
    norm = ["none", "layer", "rms"][int(rng.integers(3))] if d > 2 else "none"
    kind = ["relu", "gelu", "swiglu", "geglu", "tanh"][int(rng.integers(5))]
    scale = float(rng.choice([0.7, 1.0, 2.0]))
    pre, causal, first, token = (bool(rng.integers(2)) for _ in range(4))
    rotary = seed % 3 == 0 and seed % 5 != 0 and size % 2 == 0
    w.nodes.append(Node("input", Input(), (), (tokens, d)))
    x, n = "input", tokens
    if token:
        start = w.add(Constant(w.tensor(1, d)), (), (1, d))
        n = tokens + 1
        x = w.add(ops.Concat(0), (start, x), (n, d))
    for _ in range(depth):
        for part in range(2):
            y = normalisation(w, x, n, d, norm) if pre else x
            y = (
                attention(w, y, n, d, heads, scale, causal, first, rotary)
                if part == 0
                else mlp(w, y, n, d, kind, scale)
            )
            x = w.add(ops.Add(), (x, y), (n, d))
            x = x if pre else normalisation(w, x, n, d, norm)
    x = w.add(ops.ReduceMean((0,), False), (x,), (d,))
    w.linear(x, (), d, 3)
    graph = Graph(tuple(w.nodes), (w.nodes[-1].name,))
    return graph, torch.tensor(rng.normal(size=(1, tokens, d)))


def prenorm_patches(
    seed: int, depth: int = 3, d: int = 16, tokens: int = 4, kind: str = "layer"
) -> tuple[Graph, Tensor]:
    """Pre-norm blocks with eps 1e-6 on embedded patches, and a centre [1, tokens, 4] with constant patches among its own.

    Only a place tells the embeddings of equal patches apart; in every second network one token starts as a constant, where a
    normalisation's slope is 1/sqrt eps.
    """
    rng = np.random.default_rng((seed, 1))
    w = Writer(rng)
    w.nodes.append(Node("input", Input(), (), (tokens, 4)))
    places = w.tensor(tokens, d, scale=0.3)
    embedding, x = 0.3 * w.tensor(d, 4), torch.tensor(rng.uniform(size=(1, tokens, 4)))
    x[0, : tokens // 2] = 0.0
    x[0, tokens // 2] = 0.7
    if seed % 2:
        places[0] = 0.25
    y = w.add(ops.Linear(embedding, None), ("input",), (tokens, d))
    y = w.add(ops.Scale(torch.ones((), dtype=torch.float64), places), (y,), (tokens, d))
    normal = ops.LayerNorm if kind == "layer" else ops.RMSNorm
    for _ in range(depth):
        for part in range(2):
            weight = 1.0 + w.tensor(d, scale=0.2)
            op = normal((d,), weight, eps=1e-6) if kind == "rms" else normal((d,), weight, None, 1e-6)
            z = w.add(op, (y,), (tokens, d))
            z = (
                attention(w, z, tokens, d, 2, 0.7, False, False, False)
                if part == 0
                else mlp(w, z, tokens, d, "gelu", 0.7)
            )
            y = w.add(ops.Add(), (y, z), (tokens, d))
    y = w.add(ops.ReduceMean((0,), False), (y,), (d,))
    w.linear(y, (), d, 3)
    return Graph(tuple(w.nodes), (w.nodes[-1].name,)), x
