"""Constants in circulation that are wrong or needlessly large, in a few lines of our own each, on networks that show it.

Each function returns the value such a method gives, and the network it speaks of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Mistake:
    """A method, the value it gives, and the network on which a certified bound and a witness say otherwise.

    wrong: the value is no upper bound. Otherwise it is one, and much larger than it need be. norm: at the input and at the
    output; within: the largest token of the inputs that the value is about. start: a point [1, *input_shape] where a search
    begins.
    """

    title: str
    method: str
    source: str
    why: str
    value: float
    network: nn.Module
    input_shape: tuple[int, ...]
    analyzer: str
    wrong: bool = True
    norm: str = "l2"
    within: float | None = None
    start: Tensor | None = None


def power_iteration() -> Mistake:
    """One step of power iteration for each training step is a fine regulariser; its value is a lower bound."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    weight = layer.weight.detach().double()
    v = torch.randn(64, dtype=torch.float64)
    for _ in range(10):
        u = nn.functional.normalize(weight @ v, dim=0)
        v = nn.functional.normalize(weight.T @ u, dim=0)
    return Mistake(
        "Power iteration read as an upper bound",
        "10 steps of power iteration on a 64 x 64 matrix",
        "Miyato, Kataoka, Koyama, Yoshida, Spectral normalization for GANs, ICLR 2018 (a regulariser there)",
        "Every Rayleigh quotient lies below the largest singular value; the iteration approaches it from below.",
        float(u @ weight @ v),
        layer,
        (64,),
        "product",
    )


def reshaped_kernel() -> Mistake:
    """The norm of the kernel as a matrix [out, in * k * k] is not the norm of the convolution."""
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    return Mistake(
        "The norm of the reshaped kernel",
        "spectral norm of the kernel reshaped to [out, in * 3 * 3], for a 3 x 3 convolution of ones on 8 x 8 pixels",
        "Miyato et al., ICLR 2018, and torch.nn.utils.spectral_norm, whose value is meant for the reshaped matrix",
        "A pixel enters nine windows. The norm of the map can be 3 times (the root of the 9 positions) that of the matrix.",
        float(torch.linalg.matrix_norm(layer.weight.detach().double().flatten(1), ord=2)),
        layer,
        (1, 8, 8),
        "product",
    )


def circular_fft() -> Mistake:
    """The n-point Fourier values are the singular values of the circular convolution, not of the zero-padded one."""
    layer = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    layer.weight.data = torch.tensor([[[1.0, 0.0, -1.0]]])
    symbol = np.fft.fft(np.array([1.0, 0.0, -1.0, 0.0, 0.0, 0.0]))
    return Mistake(
        "Circular Fourier values for zero padding",
        "largest n-point Fourier value of the kernel [1, 0, -1] on n = 6 entries",
        "Sedghi, Gupta, Long, The singular values of convolutional layers, ICLR 2019 (for circular padding, where it is exact)",
        "Zero padding is a piece of the convolution on a longer circle; frequencies between the n grid points count. "
        "The exact value is 2 cos(pi / 7) = 1.801938.",
        float(np.abs(symbol).max()),
        layer,
        (1, 6),
        "product",
    )


def lipsdp_network() -> Mistake:
    """Couplings lambda_ij (e_i - e_j)(e_i - e_j)' between different neurons are not satisfied by ReLU."""
    first = np.array([[-0.659, -0.2286], [-0.6558, -0.2414]], dtype=np.float32).astype(np.float64)
    last = np.array([[0.976, -1.2771]], dtype=np.float32).astype(np.float64)
    alone, together = cp.Variable(2, nonneg=True), cp.Variable(nonneg=True)
    rho = cp.Variable()
    multiplier = cp.diag(alone) + together * np.array([[1.0, -1.0], [-1.0, 1.0]])
    matrix = cp.bmat(
        [[-rho * np.eye(2), first.T @ multiplier], [multiplier @ first, -2 * multiplier + last.T @ last]]
    )
    cp.Problem(cp.Minimize(rho), [(matrix + matrix.T) / 2 << 0]).solve(solver=cp.CLARABEL)
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    network[0].weight.data, network[2].weight.data = torch.tensor(first).float(), torch.tensor(last).float()
    return Mistake(
        "LipSDP with couplings between neurons",
        "LipSDP-Network: semidefinite programme with multipliers of pairs of neurons, two ReLUs",
        "Fazlyab, Robey, Hassani, Morari, Pappas, NeurIPS 2019; the correction is usually attributed to Pauli et al., "
        "arXiv 2005.02929",
        "The quadratic constraint of a pair is false: inputs (1, -2) to (2, 0) move by (1, 2), the outputs by (1, 0), and "
        "(dy1 - dy2)((dx1 - dx2) - (dy1 - dy2)) = -2 < 0. Multipliers of single neurons are valid.",
        math.sqrt(float(rho.value)),
        network,
        (2,),
        "lipsdp",
    )


def gelu_slope_one() -> Mistake:
    """GELU is not 1-Lipschitz: its slope reaches 1.1289 at x = sqrt 2."""
    network = nn.Sequential(nn.Linear(1, 1), nn.GELU(), nn.Linear(1, 1), nn.GELU())
    for layer in (network[0], network[2]):
        nn.init.ones_(layer.weight)
    # Both activations work near their steepest point, x = sqrt 2, for inputs near sqrt 2.
    network[0].bias.data = torch.zeros(1)
    network[2].bias.data = 2**0.5 - nn.functional.gelu(torch.tensor([2**0.5]))
    return Mistake(
        "Slope 1 for GELU",
        "product of layer norms with the activation's constant taken as 1, or LipSDP with slopes in [0, 1], for two GELUs",
        "tables that list activations as 1-Lipschitz; exact: Phi(sqrt 2) + sqrt 2 phi(sqrt 2) = 1.128904",
        "GELU and SiLU are not monotone and overshoot: slopes lie in [-0.129, 1.129] and [-0.0999, 1.0999].",
        1.0,
        network.double(),
        (1,),
        "product",
    )


def truncated_exponential() -> Mistake:
    """The exponential of a skew matrix is orthogonal; six terms of its series are not."""
    torch.manual_seed(1)
    raw = torch.randn(16, 16, dtype=torch.float64)
    skew = raw - raw.T
    skew = 4.38 * skew / torch.linalg.matrix_norm(skew, ord=2)
    total, term = torch.eye(16, dtype=torch.float64), torch.eye(16, dtype=torch.float64)
    for k in range(1, 7):
        term = term @ skew / k
        total = total + term
    layer = nn.Linear(16, 16, bias=False).double()
    layer.weight.data = total
    return Mistake(
        "A truncated exponential taken as orthogonal",
        "1 by construction: a Taylor series of exp(S) with terms up to S^6, S skew-symmetric of norm 4.38",
        "Singla, Feizi, Skew orthogonal convolutions, ICML 2021 (with a bound of the remainder, small for small |S|)",
        "The remainder is at most |S|^7 e^|S| / 7!, which says something only while |S| is small. Whoever trains S must "
        "bound it, or compute the norm of the truncated map.",
        1.0,
        layer,
        (16,),
        "product",
    )


def clipped_orthogonal() -> Mistake:
    """Orthogonal weights, then negative entries set to 0: what makes a network convex in its input undoes its constant."""
    weight = np.maximum(np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0], 0.0)
    layer = nn.Linear(64, 64, bias=False).double()
    layer.weight.data = torch.tensor(weight)
    return Mistake(
        "Orthogonal weights clipped at 0",
        "1 by construction: a 64 x 64 matrix is orthogonalised, then its negative entries are set to 0",
        "killingbear999/ICLRNN (code of input convex Lipschitz recurrent networks): kernels are divided by a power iteration, "
        "orthogonalised by Bjorck's iteration and clipped in this order",
        "The positive part of an orthogonal n x n matrix has a norm of about 0.4 sqrt n: 1.65, 3.13, 6.42 for n = 16, 64, 256. "
        "Scaling has to come last, by a certified norm.",
        1.0,
        layer,
        (64,),
        "product",
    )


class _States(nn.Module):
    """All states of one recurrent unit with weights 1 over 20 steps, from a zero state."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.RNN(1, 1, nonlinearity="relu", bias=False, batch_first=True)
        for weight in self.unit.parameters():
            nn.init.ones_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(x)[0][..., 0]


def recurrent_weights() -> Mistake:
    """Matrices of norm 1 in every step add up over the steps."""
    return Mistake(
        "Weights of norm 1 in a recurrent network",
        "1 by construction: input and recurrent weights of norm 1, slopes of at most 1; here one unit, 20 steps, all states",
        "papers and code on Lipschitz recurrent networks, among them killingbear999/ICLRNN; the constant of one step is not "
        "that of the sequence",
        "An input reaches every later state. From the sequence to all states the constant is 1 / (2 sin(pi / (4 T + 2))), "
        "13.0539 for T = 20, and to the last state sqrt T.",
        1.0,
        _States().double(),
        (20, 1),
        "lipsdp",
    )


def average_overlap() -> Mistake:
    """A convolution scaled by the average number of windows a pixel is in; the steepest direction sits where there are more."""
    size, taps = 16, 3
    reach = (taps - 1) // 2
    average = size * size / (taps * size - reach * (reach + 1)) ** 2
    layer = nn.Conv2d(1, 1, taps, padding=1, bias=False).double()
    # Ones: the reshaped kernel has norm 3, so that divided by 3 it has norm 1.
    layer.weight.data = torch.full((1, 1, taps, taps), math.sqrt(average) / taps, dtype=torch.float64)
    return Mistake(
        "A convolution scaled by its average overlap",
        "1 by construction: kernel divided by its reshaped norm, times sqrt(h w / ((k h - a (a + 1)) (k w - a (a + 1)))), "
        "a = (k - 1) / 2; 3 x 3 ones on 16 x 16 pixels",
        "deel-lip (RKO convolutions) and lip-dp, where the error goes into the noise and so into epsilon of private training",
        "That is the average number of windows around a pixel, and pixels away from the border are in more. 1 / k is safe, or a "
        "certified norm of the convolution.",
        1.0,
        layer,
        (1, size, size),
        "product",
    )


class _Rewritten(nn.Module):
    """MaxMin of the pairs (a, b) = (x_i, x_{i+n}): max = b + relu(a - b), min = b - relu(b - a)."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat((b + torch.relu(a - b), b - torch.relu(b - a)), dim=1)


def _independent_multipliers(weights: list[Tensor]) -> float:
    """LipSDP of the rewritten network, one multiplier for each ReLU, over v = (x, outputs of the ReLUs of every layer)."""
    width = len(weights[0])
    eye, zero = np.eye(width // 2), np.zeros((width // 2, width // 2))
    into = np.block([[eye, -eye], [-eye, eye]])  # (a - b, b - a)
    past = np.block([[zero, eye], [zero, eye]])  # (b, b)
    signs = np.block([[eye, zero], [zero, -eye]])
    size = width * (len(weights) + 1)
    value = np.eye(width, size)
    total, rho = 0, cp.Variable()
    for k, weight in enumerate(weights, start=1):
        before = weight.numpy() @ value
        after = np.eye(width, size, k=k * width)
        scaled = after.T @ cp.diag(cp.Variable(width, nonneg=True)) @ (into @ before - after)
        total = total + scaled + scaled.T
        value = past @ before + signs @ after
    inputs = np.eye(width, size)
    condition = total + value.T @ value - rho * (inputs.T @ inputs) << 0
    cp.Problem(cp.Minimize(rho), [condition]).solve(solver=cp.CLARABEL)
    return math.sqrt(float(rho.value))


def residual_maxmin() -> Mistake:
    """MaxMin written with two ReLUs a pair: LipSDP forgets that the two belong together."""
    torch.manual_seed(2)
    weights = [torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0] for _ in range(2)]
    layers: list[nn.Module] = []
    for weight in weights:
        layer = nn.Linear(8, 8, bias=False).double()
        layer.weight.data = weight
        layers += [layer, _Rewritten()]
    return Mistake(
        "MaxMin rewritten with two ReLUs a pair",
        "LipSDP on the residual network that MaxMin becomes, two orthogonal layers of width 8",
        "the rewriting discussed in Pauli et al., Novel quadratic constraints for extending LipSDP, ICLR 2024",
        "Valid and loose: the two ReLUs get independent slopes, so each layer costs a factor sqrt 2. "
        "lipverify recognises the sorting in these operations and reaches 1 on the same network.",
        _independent_multipliers(weights),
        nn.Sequential(*layers),
        (8,),
        "product",
        wrong=False,
    )


class _Attention(nn.Module):
    """x [batch, tokens, heads] -> attention / 3 with heads of one entry, and q, k, v, w [heads, heads]."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> None:
        super().__init__()
        self.q, self.k, self.v, self.w = (nn.Parameter(m) for m in (q, k, v, w))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = ((x @ m.mT).mT.unsqueeze(-1) for m in (self.q, self.k, self.v))
        found: Tensor = ((q @ k.mT).softmax(-1) @ v).squeeze(-1).mT @ self.w.mT / 3
        return found


def concatenated_heads() -> Mistake:
    """The norm of all heads side by side, where every head needs its own."""
    heads = 8
    e = torch.eye(heads, dtype=torch.float64)

    def first(row: Tensor) -> Tensor:
        return torch.cat([row[None], torch.zeros(heads - 1, heads, dtype=torch.float64)])

    q, k, v, w = first(e[1]), first(e[0]), first(e[0]), e
    # Factors of root mean squares: as many entries go in as come out of all heads together, so these are spectral norms.
    n_q, n_k, n_v, n_w = (float(torch.linalg.matrix_norm(m, ord=2)) for m in (q, k, v, w))
    start = torch.zeros(1, 2, heads, dtype=torch.float64)
    start[0, :, 0] = torch.tensor([1.0, -1.0], dtype=torch.float64) * math.sqrt(heads)
    return Mistake(
        "Heads of attention bounded together",
        "released constant of attention / 3 with softmax scale 1 on tokens of RMS at most 1, in token-rms: "
        "|w| |v| (1 + 2 |q| |k|) / 3 with the norms of all 8 heads side by side",
        "code released with Newhouse, Hess, Cesista et al., Training transformers with enforced Lipschitz constants, 2025",
        "In root mean squares a head of one entry may have a norm sqrt(8) times that of all heads together. With q = e_2 and "
        "k = v = e_1 in the first head alone, two opposite tokens move by 8 / 3 where the formula says 1.",
        n_w * n_v * (1 + 2 * n_q * n_k) / 3,
        _Attention(q, k, v, w),
        (2, heads),
        "tokens",
        norm="token-rms",
        within=1.0,
        start=start,
    )


MISTAKES = (
    concatenated_heads,
    power_iteration,
    reshaped_kernel,
    circular_fft,
    lipsdp_network,
    gelu_slope_one,
    truncated_exponential,
    clipped_orthogonal,
    recurrent_weights,
    average_overlap,
    residual_maxmin,
)
