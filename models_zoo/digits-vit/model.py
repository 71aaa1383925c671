"""A small vision transformer on 8x8 digits: patches, a class token, two blocks with the norms in front."""

import torch
from torch import Tensor, nn

WIDTH, HEADS, HIDDEN, BLOCKS, PATCH = 24, 3, 48, 2, 4


class DigitsViT(nn.Module):
    """x [batch, 64] -> logits [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.2)
        self.places = nn.Parameter(torch.randn(1, 5, WIDTH) * 0.2)
        block = nn.TransformerEncoderLayer(
            WIDTH, HEADS, HIDDEN, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, BLOCKS, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x.reshape(-1, 1, 8, 8)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.places
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def build() -> nn.Module:
    return DigitsViT().eval()
