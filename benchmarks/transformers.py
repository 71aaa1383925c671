"""Seeded vision transformers of the 8x8 digits, in the ways that people write them; trained for seconds.

| name | patches | blocks | norm | attention | layers behind it | read from |
|---|---|---|---|---|---|---|
| encoder-pre | 4 of 4x4, class token | 2 | LayerNorm ahead | torch.nn.TransformerEncoderLayer | GELU | class token |
| encoder-post | the same | 2 | LayerNorm behind | torch.nn.TransformerEncoderLayer | ReLU | class token |
| joint | the same | 3 | LayerNorm ahead | one matrix, scaled_dot_product_attention (as timm) | GELU | class token |
| spelled | the same | 2 | BatchNorm ahead | two products and a softmax (as ViT of VNN-COMP 2023) | ReLU | mean |
| bare | without class token | 1 | none | torch.nn.MultiheadAttention | ReLU | mean |
| rotary | without class token | 2 | RMSNorm ahead | queries and keys turned by place | SwiGLU | mean |
"""

from __future__ import annotations

import torch
from digit_networks import digits
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, HIDDEN, PATCH = 24, 3, 48, 4
SIZE, PLACES = WIDTH // HEADS, (8 // PATCH) ** 2
NAMES = ("encoder-pre", "encoder-post", "joint", "spelled", "bare", "rotary")
STEPS, BATCH, RATE, NOISE = 250, 64, 5e-3, 0.05


class Tokens(nn.Module):
    """[batch, 64] -> patches [batch, tokens, WIDTH] with learned places, behind a class token where there is one."""

    def __init__(self, token: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.2) if token else None
        self.places = nn.Parameter(torch.randn(1, PLACES + token, WIDTH) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.patches(x.reshape(-1, 1, 8, 8)).flatten(2).transpose(1, 2)
        if self.token is not None:
            found = torch.cat([self.token.expand(x.shape[0], -1, -1), found], 1)
        return found + self.places


class Attention(nn.Module):
    """Self-attention on [batch, tokens, WIDTH], `fused` or spelled out, with places turned into queries and keys or not."""

    def __init__(self, fused: bool, rotary: bool = False) -> None:
        super().__init__()
        self.parts, self.out, self.fused = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), fused
        self.rotary = rotary
        angles = torch.arange(PLACES)[:, None] * 1e4 ** (-torch.arange(0, SIZE, 2) / SIZE)
        self.register_buffer("cos", angles.repeat(1, 2).cos())
        self.register_buffer("sin", angles.repeat(1, 2).sin())

    def turned(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[0], x.shape[1], 3, HEADS, SIZE
        q, k, v = self.parts(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        if self.rotary:
            q, k = self.turned(q), self.turned(k)
        y = (
            F.scaled_dot_product_attention(q, k, v)
            if self.fused
            else (q @ k.transpose(-1, -2) * SIZE ** (-0.5)).softmax(-1) @ v
        )
        return self.out(y.transpose(1, 2).reshape(x.shape))


class Heads(nn.Module):
    """torch.nn.MultiheadAttention of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return found


class Gated(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value, self.out = (
            nn.Linear(WIDTH, HIDDEN),
            nn.Linear(WIDTH, HIDDEN),
            nn.Linear(HIDDEN, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(F.silu(self.gate(x)) * self.value(x))
        return found


class OfChannels(nn.Module):
    """Batch normalisation of every feature of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return found


class Block(nn.Module):
    """x + attention(norm(x)), then x + layers(norm(x))."""

    def __init__(self, attention: nn.Module, layers: nn.Module, norms: tuple[nn.Module, nn.Module]) -> None:
        super().__init__()
        self.attention, self.layers, (self.first, self.second) = attention, layers, norms

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        found: Tensor = x + self.layers(self.second(x))
        return found


class Mean(nn.Module):
    """Over tokens, or their first one."""

    def __init__(self, token: bool) -> None:
        super().__init__()
        self.token = token

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.token else x.mean(1)


def layers(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), activation, nn.Linear(HIDDEN, WIDTH))


def untrained(name: str) -> nn.Module:
    """A network by name, [batch, 64] -> [batch, 10]."""

    def encoder(ahead: bool) -> nn.Module:
        word = "gelu" if ahead else "relu"
        return nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, 0.0, word, batch_first=True, norm_first=ahead)

    def norms() -> tuple[nn.Module, nn.Module]:
        return nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    blocks: list[nn.Module]
    last: nn.Module = nn.LayerNorm(WIDTH)
    if name == "encoder-pre":
        blocks = [encoder(True) for _ in range(2)]
    elif name == "encoder-post":
        blocks, last = [encoder(False) for _ in range(2)], nn.Identity()
    elif name == "joint":
        blocks = [Block(Attention(True), layers(nn.GELU()), norms()) for _ in range(3)]
    elif name == "spelled":
        blocks = [Block(Attention(False), layers(nn.ReLU()), (OfChannels(), OfChannels())) for _ in range(2)]
        last = OfChannels()
    elif name == "bare":
        blocks, last = [Block(Heads(), layers(nn.ReLU()), (nn.Identity(), nn.Identity()))], nn.Identity()
    else:
        blocks = [
            Block(Attention(True, True), Gated(), (nn.RMSNorm(WIDTH, 1e-5), nn.RMSNorm(WIDTH, 1e-5)))
            for _ in range(2)
        ]
        last = nn.RMSNorm(WIDTH, 1e-5)
    token = name not in ("bare", "rotary")
    pooled = token and name != "spelled"
    return nn.Sequential(Tokens(token), *blocks, last, Mean(pooled), nn.Linear(WIDTH, 10))


def trained(name: str) -> tuple[nn.Module, Tensor, float]:
    """The network, test images [n, 64] and the share of them that it gets right."""
    x, y, test, answers = digits()
    torch.manual_seed(0)
    network = untrained(name)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        some = torch.randint(len(x), (BATCH,), generator=generator)
        seen = x[some] + NOISE * torch.randn(BATCH, x.shape[1], generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(network(seen), y[some]).backward()
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        right = network(test).argmax(1) == answers
    return network, test[right], float(right.float().mean())
