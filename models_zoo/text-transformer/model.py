"""A causal transformer of two blocks on letters, with enforced constants: singular values of every head are clipped."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS, WIDTH, HEADS, HIDDEN, BLOCKS, SCALE = 24, 32, 4, 128, 2, 4.0
SIZE, SHARE = WIDTH // HEADS, 1 / (2 * BLOCKS)
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))


def codes() -> Tensor:
    """A vector of signs for every letter, so of root mean square 1: [letters, WIDTH], all different."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 2, (len(ALPHABET), WIDTH), generator=generator) * 2.0 - 1.0


class Block(nn.Module):
    """Convex sums of x [batch, tokens, WIDTH] with attention / 3, then with layers / 1.1289."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "w": (WIDTH, WIDTH)}
        for name, (out, inner) in {**sizes, "up": (HIDDEN, WIDTH), "down": (WIDTH, HIDDEN)}.items():
            setattr(self, name, nn.Parameter(torch.randn(out, inner) / math.sqrt(inner)))
        angle = torch.arange(TOKENS)[:, None] * 100.0 ** (-torch.arange(SIZE // 2) / (SIZE // 2))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self.register_buffer("later", torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1), persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, a * self.sin + b * self.cos], -1)

    def forward(self, x: Tensor) -> Tensor:
        split = (x.shape[0], TOKENS, HEADS, SIZE)
        q, k, v = (F.linear(x, m).reshape(split).transpose(1, 2) for m in (self.q, self.k, self.v))
        scores = self.turned(q) @ self.turned(k).transpose(-1, -2) * (SCALE / SIZE)
        mixed = scores.masked_fill(self.later, -torch.inf).softmax(-1) @ v
        x = (1 - SHARE) * x + SHARE / 3 * F.linear(mixed.transpose(1, 2).reshape(x.shape), self.w)
        inner = F.linear(F.gelu(F.linear(x, self.up), approximate="tanh"), self.down)
        return (1 - SHARE) * x + SHARE / 1.1289 * inner


def clip(matrix: Tensor) -> None:
    """Makes the largest factor of root mean squares of [..., out, in] at most 1, by its singular values."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    most = math.sqrt(matrix.shape[-2] / matrix.shape[-1])
    matrix.copy_((u * s.clamp(max=most).unsqueeze(-2)) @ v)


class TextTransformer(nn.Module):
    """Letters as signs, x [batch, TOKENS, WIDTH] -> logits of the letter behind them [batch, letters]."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.letters = nn.Parameter(torch.randn(len(ALPHABET), WIDTH) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.blocks(x)[:, -1], self.letters)

    def loss(self, x: Tensor, y: Tensor, temperature: float) -> Tensor:
        """Cross-entropy of every letter behind those ahead of it, not of the last one alone."""
        known = (x[:, 1:] @ codes().T).argmax(-1)
        logits = F.linear(self.blocks(x), self.letters)
        return F.cross_entropy(
            temperature * logits.flatten(0, 1), torch.cat([known, y[:, None]], 1).flatten()
        )

    @torch.no_grad()
    def enforce(self) -> None:
        """After every step."""
        for block in self.blocks:
            for heads in (block.q, block.k, block.v):
                clip(heads.view(HEADS, SIZE, WIDTH))
            for matrix in (block.w, block.up, block.down):
                clip(matrix)
        clip(self.letters)


def build() -> nn.Module:
    return TextTransformer().eval()
