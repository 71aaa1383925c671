"""Transformers for norms of tokens: enforced constants, norms in front and behind, what is Lipschitz and what only looks so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def rotation(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions: [tokens, width / 2]."""
    half = width // 2
    angle = torch.arange(tokens)[:, None] * 100.0 ** (-torch.arange(half) / half)
    return angle.cos(), angle.sin()


def rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * turn[0] - b * turn[1], a * turn[1] + b * turn[0]], -1)


@dataclass(frozen=True)
class Shape:
    """Sizes of an enforced transformer, and what is switched on."""

    width: int = 8
    heads: int = 2
    blocks: int = 1
    hidden: int = 12
    tokens: int = 3
    outputs: int = 5
    scale: float = 2.0
    rotary: bool = False
    causal: bool = False


class Enforced(nn.Module):
    """x [batch, tokens, width]: convex sums with attention / 3 and MLP / 1.1289, then an output map."""

    def __init__(self, shape: Shape, gain: float = 1.0) -> None:
        super().__init__()
        self.shape = shape
        d, h = shape.width, shape.hidden

        def free(*sizes: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*sizes) * gain / math.sqrt(sizes[-1]))

        self.blocks = nn.ModuleList()
        for _ in range(shape.blocks):
            block = nn.Module()
            block.q, block.k, block.v, block.w = (free(d, d) for _ in range(4))
            block.up, block.down = free(h, d), free(d, h)
            self.blocks.append(block)
        self.out = free(shape.outputs, d)
        self.turn = rotation(shape.tokens, d // shape.heads)

    def forward(self, x: Tensor) -> Tensor:
        shape, part = self.shape, 1 / (2 * self.shape.blocks)
        split = (-1, shape.tokens, shape.heads, shape.width // shape.heads)
        for b in self.blocks:
            q, k, v = (F.linear(x, w).reshape(split).transpose(1, 2) for w in (b.q, b.k, b.v))
            if shape.rotary:
                turn = tuple(t.to(x) for t in self.turn)
                q, k = rotated(q, turn), rotated(k, turn)
            scale = shape.scale / split[-1]
            y = F.scaled_dot_product_attention(q, k, v, is_causal=shape.causal, scale=scale)
            y = y.transpose(1, 2).reshape(-1, shape.tokens, shape.width)
            x = (1 - part) * x + part * (F.linear(y, b.w) / 3)
            x = (1 - part) * x + part * (
                F.linear(F.gelu(F.linear(x, b.up), approximate="tanh"), b.down) / 1.1289
            )
        return F.linear(x, self.out)


def uniform(blocks: int, size: float, scale: float, width: int = 8) -> Enforced:
    """One head, every matrix `size` times the identity."""
    shape = Shape(width=width, heads=1, blocks=blocks, hidden=width, outputs=width, scale=scale)
    net = Enforced(shape).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.eye(width) * size)
    return net


class Attention(nn.Module):
    """One head on n(x), values m(x), what `scores` makes of q k'; then the sum with x where it is residual."""

    def __init__(
        self,
        width: int,
        keys: Callable[[Tensor], Tensor],
        values: Callable[[Tensor], Tensor],
        scores: Callable[[Tensor], Tensor] = lambda s: s.softmax(-1),
    ) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.keys, self.values, self.scores = keys, values, scores

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.keys(self.q(x)), self.keys(self.k(x)), self.values(self.v(x))
        return self.scores(q @ k.mT) @ v


class Block(nn.Module):
    """GPT-2's block with the norms in front, or behind; initialised as in the note of its figures."""

    def __init__(self, width: int, heads: int, eps: float = 1e-5, behind: bool = False) -> None:
        super().__init__()
        self.heads, self.behind = heads, behind
        self.n1, self.n2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        sizes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
        self.q, self.k, self.v, self.o, self.up, self.down = (nn.Linear(*s) for s in sizes)
        for layer in (self.q, self.k, self.v, self.o, self.up, self.down):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.weight.shape[1]))
            nn.init.zeros_(layer.bias)

    def attention(self, x: Tensor) -> Tensor:
        split = (x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads)
        q, k, v = (layer(x).reshape(split).transpose(1, 2) for layer in (self.q, self.k, self.v))
        p = (q @ k.mT / math.sqrt(split[-1])).softmax(-1)
        return self.o((p @ v).transpose(1, 2).reshape(x.shape))

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        if self.behind:
            x = self.n1(x + self.attention(x))
            return self.n2(x + self.mlp(x))
        x = x + self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))
