"""How steep a network is at points, and along which direction: norms of Jacobians from below, nothing proved.

Legend: J the Jacobian [outputs, inputs] at a point, v an input direction of norm 1, u an output functional, p and q the norms at
the input and at the output, p* and q* their duals.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lipverify.ir.norm import Norm

ROWS = 64
"""Up to so many outputs all rows of the Jacobian are computed; beyond, the power method sees it through products alone."""
STEPS = 6
"""Of the power method."""
Function = Callable[[Tensor], Tensor]
"""Points [n, *shape] to outputs [n, outputs], differentiable."""


def lengths(rows: Tensor, norm: Norm) -> Tensor:
    """Norms along the last axis; squares of tiny and of huge entries are not lost."""
    size = rows.abs().amax(-1, keepdim=True).clamp_min(tiny(rows))
    found: Tensor = torch.linalg.vector_norm(rows / size, ord=norm.order, dim=-1) * size[..., 0]
    return found


def maximiser(z: Tensor, norm: Norm) -> Tensor:
    """The vector of unit norm whose inner product with z is largest, along the last axis; 0 at 0 in l2."""
    if norm is Norm.L2:
        z = z / z.abs().amax(-1, keepdim=True).clamp_min(tiny(z))
        length: Tensor = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        return z / length.clamp_min(tiny(z))
    if norm is Norm.LINF:
        return torch.where(z >= 0, 1.0, -1.0).to(z)
    top = z.abs().argmax(dim=-1, keepdim=True)
    return torch.zeros_like(z).scatter(-1, top, torch.where(z.gather(-1, top) >= 0, 1.0, -1.0).to(z))


def tiny(z: Tensor) -> float:
    """The smallest number that may divide."""
    return math.ulp(0.0) if z.dtype is torch.float64 else torch.finfo(z.dtype).tiny


def steepest(
    function: Function, x: Tensor, v: Tensor, norms: tuple[Norm, Norm], steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """|J| from below and a direction that attains it: x, v [n, *shape] -> ([n], [n, *shape]).

    steps: of the power method, where the Jacobian has many rows.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        y = function(x)
        if not y.requires_grad:
            return torch.zeros(len(x), dtype=x.dtype, device=x.device), v
        if y.shape[1] <= ROWS:
            slope, direction = _of_matrix(_jacobian(x, y), v.flatten(1), norms)
        else:
            slope, direction = _by_products(x, y, v, norms, steps)
    return torch.nan_to_num(slope, nan=0.0, posinf=0.0), torch.nan_to_num(direction).reshape(v.shape)


def _jacobian(x: Tensor, y: Tensor) -> Tensor:
    """[n, outputs, inputs]"""
    count = y.shape[1]
    rows = [
        torch.autograd.grad(y[:, j].sum(), x, retain_graph=j < count - 1, materialize_grads=True)[0].flatten(
            1
        )
        for j in range(count)
    ]
    return torch.nan_to_num(torch.stack(rows, 1), nan=0.0, posinf=0.0, neginf=0.0)


def _of_matrix(jacobian: Tensor, v: Tensor, norms: tuple[Norm, Norm]) -> tuple[Tensor, Tensor]:
    """Norms of matrices [n, m, k] and directions [n, k]: exact where the norm is, else by the power method from every row."""
    p, q = norms
    if p is Norm.L1:
        slope, top = lengths(jacobian.mT, q).max(1)
        return slope, torch.zeros_like(v).scatter(1, top[:, None], 1.0)
    rows = maximiser(jacobian, p)
    if q is Norm.LINF:
        slope, top = lengths(jacobian, p.dual).max(1)
        return slope, rows[torch.arange(len(rows), device=rows.device), top]
    if p is q is Norm.L2:
        return _spectral(jacobian, v)
    # Every row's own maximiser, and the direction known so far: the best of them is where the power method begins.
    starts = torch.cat([rows, maximiser(v, p)[:, None]], 1)
    reached = lengths((jacobian @ starts.mT).mT, q)
    direction = starts[torch.arange(len(starts), device=v.device), reached.argmax(1)]
    for _ in range(STEPS):
        functional = maximiser((jacobian @ direction[..., None])[..., 0], q.dual)
        direction = maximiser((functional[:, None] @ jacobian)[:, 0], p)
    return lengths((jacobian @ direction[..., None])[..., 0], q), direction


def _spectral(jacobian: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The power method on J J', squared eight times over: no eigenvalue problem, which may fail to converge."""
    size = jacobian.abs().amax((1, 2), keepdim=True).clamp_min(tiny(jacobian))
    scaled = jacobian / size
    power = scaled @ scaled.mT
    for _ in range(8):
        power = power / power.diagonal(dim1=1, dim2=2).sum(1).clamp_min(tiny(power))[:, None, None]
        power = power @ power
    # The longest column of J J' to the power 256 is nearly its first eigenvector.
    functional = power.gather(
        2, power.square().sum(1).argmax(1)[:, None, None].expand(-1, power.shape[1], 1)
    )[..., 0]
    direction = maximiser((functional[:, None] @ scaled)[:, 0], Norm.L2)
    slope = lengths((jacobian @ direction[..., None])[..., 0], Norm.L2)
    return slope, torch.where(slope[:, None] > 0, direction, v)


def _by_products(
    x: Tensor, y: Tensor, v: Tensor, norms: tuple[Norm, Norm], steps: int
) -> tuple[Tensor, Tensor]:
    """Power method for the p -> q norm (Boyd 1974; Higham 2002, section 15.2), one Jacobian for each row of x."""
    p, q = norms
    probe = torch.zeros_like(y, requires_grad=True)
    # The vector-Jacobian product is linear in its probe: its own derivative along v is the Jacobian-vector product.
    (pulled,) = torch.autograd.grad(y, x, probe, create_graph=True, materialize_grads=True)
    if not pulled.requires_grad:
        return torch.zeros(len(x), dtype=x.dtype, device=x.device), v.flatten(1)
    slope = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    direction = maximiser(v.flatten(1), p)
    for _ in range(steps):
        (pushed,) = torch.autograd.grad(
            pulled, probe, direction.reshape(x.shape), retain_graph=True, materialize_grads=True
        )
        functional = maximiser(pushed.detach(), q.dual)
        (back,) = torch.autograd.grad(y, x, functional, retain_graph=True, materialize_grads=True)
        slope = lengths(back.flatten(1), p.dual)
        direction = maximiser(back.flatten(1), p)
    return slope.detach(), direction.detach()
