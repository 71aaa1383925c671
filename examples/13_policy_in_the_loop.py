"""Is the loop of a learned policy stable? The policy's own constant proves nothing; that of policy less gain, near 0, does."""

import torch
from scipy.linalg import solve_discrete_are
from torch import nn

import lipverify as lv
from lipverify.errors import Undecided

# A double integrator, and the gain that is optimal for it.
a = torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=torch.float64)
b = torch.tensor([[0.005], [0.1]], dtype=torch.float64)
cost = torch.from_numpy(solve_discrete_are(a.numpy(), b.numpy(), torch.eye(2).numpy(), torch.eye(1).numpy()))
gain = -torch.linalg.solve(torch.eye(1, dtype=torch.float64) + b.T @ cost @ b, b.T @ cost @ a)


class Odd(nn.Module):
    """Tanh layers without biases: 0 at 0, as a policy that is to hold the loop at rest has to be."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 32, bias=False), nn.Tanh(), nn.Linear(32, 32, bias=False), nn.Tanh(),
                                    nn.Linear(32, 1, bias=False))  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


torch.manual_seed(0)
policy = Odd().double()
optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
for _ in range(400):
    x = (2 * torch.rand(128, 2, dtype=torch.float64) - 1).requires_grad_()
    y = policy(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    loss = ((y - x @ gain.T) ** 2).mean() + ((slope - gain) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

graph = lv.extract(policy.eval(), torch.zeros(2, 2, dtype=torch.float64))
try:
    lv.closed_loop(graph, a, b, analyzers=["product"])
except Undecided as why:
    print("without the gain:", why)
near = lv.closed_loop(graph, a, b, gain, radius=0.05)
print(f"near 0, {near.rigour}: {near.statement[:150]}...")
print(
    f"policy less gain: {near.details['constant']:.4f}, allowed {near.details['allowed']:.4f}, factor a step {near.upper:.4f}"
)
assert near.upper < 1.0
