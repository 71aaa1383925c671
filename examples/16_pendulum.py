"""Does a learned policy hold a pendulum upright? The plant is not linear: what a linear one leaves of it is a number, too."""

import math

import torch
from scipy.linalg import solve_discrete_are
from torch import nn

import lipverify as lv
from lipverify import derived
from lipverify.errors import Undecided

# angle'' = 9.81 sin(angle) + u, in steps of .05 s; the gain is optimal for the linear plant with angle in place of its sine.
STEP, GRAVITY, RADIUS = 0.05, 9.81, 0.2
a = torch.tensor([[1.0, STEP], [STEP * GRAVITY, 1.0]], dtype=torch.float64)
b = torch.tensor([[0.0], [STEP]], dtype=torch.float64)
cost = torch.from_numpy(solve_discrete_are(a.numpy(), b.numpy(), torch.eye(2).numpy(), torch.eye(1).numpy()))
gain = -torch.linalg.solve(torch.eye(1, dtype=torch.float64) + b.T @ cost @ b, b.T @ cost @ a)

# A policy without biases, which gives 0 at 0, learned from the gain near the top.
torch.manual_seed(0)
policy = nn.Sequential(nn.Linear(2, 24, bias=False), nn.Tanh(), nn.Linear(24, 1, bias=False)).double()
optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
for _ in range(1500):
    x = (RADIUS * (2 * torch.rand(64, 2, dtype=torch.float64) - 1)).requires_grad_()
    y = policy(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    loss = ((y - x @ gain.T) ** 2).mean() + ((slope - gain) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# |sin t - t| <= t^2 / 6 |t|: over a step the linear plant is wrong by at most this much, in the speed alone.
remainder = STEP * GRAVITY * RADIUS**2 / 6
graph = lv.extract(policy.eval(), torch.zeros(2, 2, dtype=torch.float64))
found = lv.closed_loop(graph, a, b, gain, radius=RADIUS, remainder=remainder, direction=[[0.0], [1.0]])
print(f"{found.rigour}: {found.statement[:140]}...")
constant, allowed = found.details["constant"], found.details["allowed"]
print(f"policy less gain {constant:.4f}, allowed {allowed:.4f}, factor a step {found.upper:.4f}")
assert found.upper < 1.0
assert derived.verify_derived(found).value == found.upper

# The ellipsoid that is proved, and a run of the pendulum itself from its edge.
shape, level = torch.tensor(found.details["shape"], dtype=torch.float64), found.details["level"]
x = torch.tensor([1.0, -1.0], dtype=torch.float64)
x = x * math.sqrt(level / float(x @ shape @ x)) * 0.999
print(f"runs from x'Px <= {level:.4g} stay within {RADIUS} and come to rest; one begins at {x.tolist()}")
for _ in range(200):
    before = float(x @ shape @ x)
    with torch.no_grad():
        u = float(policy(x))
    x = torch.stack([x[0] + STEP * x[1], x[1] + STEP * (GRAVITY * torch.sin(x[0]) + u)])
    assert float(x @ shape @ x) <= found.upper**2 * before + 1e-30
print(f"after ten seconds: {x.abs().max():.1e}")

# Farther from the top the sine bends more, and nothing is shown.
try:
    lv.closed_loop(graph, a, b, gain, radius=1.0, remainder=STEP * GRAVITY / 6, direction=[[0.0], [1.0]])
except Undecided as why:
    print("within 1 radian:", why)
