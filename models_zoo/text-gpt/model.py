"""A block of GPT-2's kind on letters: learned places, norms in front, causal attention, tanh GELU, a last norm."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS, WIDTH, HEADS, HIDDEN, LETTERS = 24, 32, 4, 128, 96
SIZE = WIDTH // HEADS


def codes() -> Tensor:
    """The vector of signs of every letter, as `text-transformer` has them: [LETTERS, WIDTH]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 2, (LETTERS, WIDTH), generator=generator) * 2.0 - 1.0


class TextGPT(nn.Module):
    """Letters as signs, x [batch, TOKENS, WIDTH] -> logits of the letter behind them [batch, LETTERS]."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(TOKENS, WIDTH) * 0.1)
        self.first, self.second, self.last = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.parts, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.letters = nn.Linear(WIDTH, LETTERS, bias=False)
        self.register_buffer("codes", codes(), persistent=False)

    def attention(self, x: Tensor) -> Tensor:
        parts = self.parts(x).reshape(x.shape[0], TOKENS, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        return self.out(y.transpose(1, 2).reshape(x.shape))

    def block(self, x: Tensor) -> Tensor:
        x = x + self.places
        x = x + self.attention(self.first(x))
        return x + self.down(F.gelu(self.up(self.second(x)), approximate="tanh"))

    def forward(self, x: Tensor) -> Tensor:
        return self.letters(self.last(self.block(x)[:, -1]))

    def loss(self, x: Tensor, y: Tensor, temperature: float) -> Tensor:
        """Cross-entropy of every letter behind those ahead of it, not of the last one alone."""
        known = torch.matmul(x[:, 1:], self.codes.T).argmax(-1)
        logits = self.letters(self.last(self.block(x)))
        return F.cross_entropy(
            temperature * logits.flatten(0, 1), torch.cat([known, y[:, None]], 1).flatten()
        )


def build() -> nn.Module:
    return TextGPT().eval()
