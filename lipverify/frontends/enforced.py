"""Transformers with enforced constants from their weights and a description, as a torch module that is then traced."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipverify.loading.enforced import BLOCK, Enforced, Roles


class EnforcedTransformer(nn.Module):
    """x [batch, tokens, width] from the embeddings on -> tokens, or logits of each where there is an output map.

    Blocks: (1 - a) x + a attention(x) / 3, then (1 - a) x + a mlp(x) / 1.1289, with a = residual_scale / (2 blocks).
    Source: Newhouse, Hess, Cesista et al. 2025 (arXiv 2507.13338).
    """

    def __init__(self, described: Enforced, weights: Roles, tokens: int) -> None:
        super().__init__()
        self.described = described
        self.blocks = nn.ModuleList(
            nn.ParameterDict(
                {
                    role: nn.Parameter(matrix.reshape(-1, matrix.shape[-1]), requires_grad=False)
                    for role, matrix in matrices.items()
                }
            )
            for matrices in weights.blocks
        )
        out = weights.out
        self.out = None if out is None else nn.Parameter(out, requires_grad=False)
        first = weights.blocks[0]["q"]
        size = first.numel() // first.shape[-1] // described.heads
        self.size = size
        self.cos: Tensor
        self.sin: Tensor
        if described.rotary is not None:
            exponent = torch.arange(size // 2, dtype=torch.float64) / (size // 2)
            angle = torch.arange(tokens, dtype=torch.float64)[:, None] * described.rotary ** (-exponent)
            self.register_buffer("cos", angle.cos().to(first.dtype))
            self.register_buffer("sin", angle.sin().to(first.dtype))

    def _heads(self, x: Tensor, matrix: Tensor) -> Tensor:
        """[batch, heads, tokens, size]"""
        found = F.linear(x, matrix).reshape(x.shape[0], x.shape[1], self.described.heads, self.size)
        return found.transpose(1, 2)

    def _turned(self, x: Tensor) -> Tensor:
        if self.described.rotary is None:
            return x
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, a * self.sin + b * self.cos], -1)

    def forward(self, x: Tensor) -> Tensor:
        d = self.described
        for block in self.blocks:
            assert isinstance(block, nn.ParameterDict)
            b = {role: block[role] for role in BLOCK}
            q, k, v = (self._heads(x, b[role]) for role in ("q", "k", "v"))
            y = F.scaled_dot_product_attention(
                self._turned(q), self._turned(k), v, is_causal=d.causal, scale=d.softmax_scale / self.size
            )
            y = F.linear(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1), b["w"]) / 3
            x = (1 - d.share) * x + d.share * y
            y = F.gelu(F.linear(x, b["mlp_in"]), approximate="tanh" if d.gelu == "tanh" else "none")
            x = (1 - d.share) * x + d.share * (F.linear(y, b["mlp_out"]) / 1.1289)
        x = d.final_scale * x if d.final_scale != 1.0 else x
        return x if self.out is None else F.linear(x, self.out)


def largest_row(embed: Tensor) -> float:
    """The largest root mean square of a row [letters, width], rounded up: the `--within` that covers every letter."""
    rows = embed.to(torch.float64)
    found = float(torch.linalg.vector_norm(rows, dim=1).max()) / math.sqrt(max(rows.shape[1], 1))
    return found * (1.0 + 2.0**-40 + rows.shape[1] * 2.0**-50)
