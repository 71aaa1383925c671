"""A network on 8x8 digits that carries torch's weight normalisation into deployment.

The stored tensors are directions and lengths of the rows; the effective weight, length * direction / |direction|, is a
constant that an importer folds. Normalised rows say nothing about the spectral norm.
"""

from torch import nn
from torch.nn.utils.parametrizations import weight_norm


def build() -> nn.Module:
    return nn.Sequential(
        weight_norm(nn.Linear(64, 64)),
        nn.ReLU(),
        weight_norm(nn.Linear(64, 64)),
        nn.ReLU(),
        weight_norm(nn.Linear(64, 10)),
    ).eval()
