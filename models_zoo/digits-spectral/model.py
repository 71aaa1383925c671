"""A network on 8x8 digits that carries torch's spectral normalisation into deployment.

The stored tensors are the raw weights and the two vectors of the power iteration; in eval mode the effective
weight is raw / (u . raw v), a constant that an importer folds.
"""

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


def build() -> nn.Module:
    return nn.Sequential(
        spectral_norm(nn.Linear(64, 64)),
        nn.LeakyReLU(0.1),
        spectral_norm(nn.Linear(64, 64)),
        nn.LeakyReLU(0.1),
        spectral_norm(nn.Linear(64, 10)),
    ).eval()
