"""A network whose l2 Lipschitz constant is 1 by construction: orthogonal matrices and MaxMin.

Trained through torch's orthogonal parametrisation, deployed with plain weights: `deploy` takes the nearest
matrix with orthonormal rows in float64 and shrinks it so far that rounding to float32 cannot lift a singular
value above 1.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

# A weight rounded to float32 moves by at most 2^-24 of itself. The spectral norm of that error is at most
# its Frobenius norm, 2^-24 sqrt(64) for 64 orthonormal rows, far more than what happens: `deploy` measures.
SHRINK = 1 - 2e-7


class MaxMin(nn.Module):
    """Sorts neighbouring pairs; all maxima first, then all minima."""

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.view(x.shape[0], -1, 2)
        return torch.cat((pairs.max(dim=2).values, pairs.min(dim=2).values), dim=1)


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), MaxMin(), nn.Linear(64, 64), MaxMin(), nn.Linear(64, 10)).eval()


def trainable() -> nn.Module:
    network = build()
    for layer in network:
        if isinstance(layer, nn.Linear):
            # matrix_exp and cayley draw their start from LAPACK; householder keeps to plain products.
            orthogonal(layer, orthogonal_map="householder", use_trivialization=False)
    return network


def deploy(trained: nn.Module) -> nn.Module:
    network = build()
    for source, target in zip(trained, network, strict=True):
        if isinstance(source, nn.Linear):
            left, _, right = torch.linalg.svd(source.weight.detach().double(), full_matrices=False)
            weight = (SHRINK * (left @ right)).float()
            excess = torch.linalg.matrix_norm(weight.double(), ord=2) - 1
            if excess > -1e-8:
                raise ArithmeticError(f"a deployed weight has norm 1 + {float(excess):.1e}")
            target.weight.data.copy_(weight)
            target.bias.data.copy_(source.bias.detach())
    return network
