"""Block systems for the solver tests, with dense references that share no code with the solver."""

import itertools
import math

import numpy as np
import torch

from lipverify.analyzers.lipsdp.system import BlockSystem


def chain(weights):
    """A feed-forward network with a slope-[0, 1] activation between consecutive matrices."""
    last = len(weights) - 2
    return BlockSystem(
        inputs=weights[0].shape[1],
        outputs=weights[-1].shape[0],
        sizes=tuple(w.shape[0] for w in weights[:-1]),
        U={0: weights[0]},
        C={(k, k - 1): weights[k] for k in range(1, last + 1)},
        V={last: weights[-1]},
        V0=None,
        names=tuple(f"relu{k}" for k in range(last + 1)),
    )


def he_chain(inputs, width, depth, outputs):
    """The network he-inputs-width x depth-outputs of the measurements: N(0, 2 / fan-in), one generator with seed 0."""
    generator = np.random.default_rng(0)
    widths = [inputs, *[width] * depth, outputs]
    pairs = itertools.pairwise(widths)
    return chain([torch.from_numpy(generator.standard_normal((o, i)) * math.sqrt(2 / i)) for i, o in pairs])


def residual_example():
    """8 - 10 relu - block(10, 7, 9; matrix shortcut) relu - block(9, 7, 9; identity) relu - 4."""
    generator = torch.Generator().manual_seed(0)

    def matrix(rows, columns, scale=1.0):
        entries = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        return entries * scale * math.sqrt(2 / columns)

    first = matrix(10, 8)
    couplings = {
        (1, 0): matrix(7, 10),
        (2, 1): matrix(9, 7),
        (2, 0): matrix(9, 10, 0.7),
        (3, 2): matrix(7, 9),
    }
    couplings[4, 3], couplings[4, 2] = matrix(9, 7), torch.eye(9, dtype=torch.float64)
    names = ("h", "k", "t", "k2", "t2")
    return BlockSystem(8, 4, (10, 7, 9, 7, 9), {0: first}, couplings, {4: matrix(4, 9)}, None, names)


def random_system(seed):
    """Up to five blocks with random fan-out, skips, concatenated outputs, direct part and dead neurons."""
    generator = np.random.default_rng(seed)
    inputs, outputs, count = (int(n) for n in generator.integers(1, (7, 7, 6)))
    sizes = tuple(int(n) for n in generator.integers(1, 8, count))

    def matrix(rows, columns):
        entries = generator.standard_normal((rows, columns)) * math.sqrt(2 / columns)
        if generator.random() < 0.3:
            entries[generator.integers(rows)] = 0.0
        if generator.random() < 0.3:
            entries[:, generator.integers(columns)] = 0.0
        return torch.from_numpy(entries)

    u = {k: matrix(sizes[k], inputs) for k in range(count) if k == 0 or generator.random() < 0.3}
    v = {k: matrix(outputs, sizes[k]) for k in range(count) if k == count - 1 or generator.random() < 0.3}
    c = {
        (k, j): matrix(sizes[k], sizes[j])
        for k in range(count)
        for j in range(k)
        if j == k - 1 or generator.random() < 0.4
    }
    direct = matrix(outputs, inputs) if generator.random() < 0.5 else None
    return BlockSystem(inputs, outputs, sizes, u, c, v, direct, tuple(f"n{k}" for k in range(count)))


def dense(system):
    """(C, U, V, V0) as full matrices."""
    ends = np.cumsum((0, *system.sizes))
    part = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
    total = system.neurons
    c = torch.zeros(total, total, dtype=torch.float64)
    u = torch.zeros(total, system.inputs, dtype=torch.float64)
    v = torch.zeros(system.outputs, total, dtype=torch.float64)
    direct = torch.zeros(system.outputs, system.inputs, dtype=torch.float64)
    for (k, j), matrix in system.C.items():
        c[part[k], part[j]] = matrix
    for k, matrix in system.U.items():
        u[part[k]] = matrix
    for k, matrix in system.V.items():
        v[:, part[k]] = matrix
    return c, u, v, direct if system.V0 is None else system.V0


def bordered(system, d, rho):
    """[[A, -B], [-B', rho I - V0 V0']]: positive semidefinite exactly when D proves rho."""
    c, u, v, direct = dense(system)
    a = 2 * torch.diag(d) - d[:, None] * c.T - c * d - u @ u.T
    b = d[:, None] * v.T + u @ direct.T
    corner = rho * torch.eye(len(v), dtype=torch.float64) - direct @ direct.T
    return torch.cat([torch.cat([a, -b], 1), torch.cat([-b.T, corner], 1)])


def semidefinite(matrix):
    """Smallest eigenvalue, after scaling the diagonal to one, not below rounding."""
    diagonal = matrix.diagonal()
    if not bool((diagonal > 0).all()):
        return False
    root = diagonal.rsqrt()
    return bool(torch.linalg.eigvalsh(root[:, None] * matrix * root)[0] > 0)


def sampled_norm(system, count, seed):
    """The largest Jacobian norm over random slopes, corners and interior of the cube."""
    c, u, v, direct = dense(system)
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.rand(count, system.neurons, generator=generator, dtype=torch.float64)
    slopes[::2] = slopes[::2].round()
    identity = torch.eye(system.neurons, dtype=torch.float64)
    inner = torch.linalg.solve(identity - c * slopes[:, None, :], u.expand(count, -1, -1))
    jacobian = direct + v @ (slopes[:, :, None] * inner)
    return float(torch.linalg.matrix_norm(jacobian, 2).amax())
