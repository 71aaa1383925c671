"""Does learning in a game come to rest? Curvatures and couplings of the gradients are certified, everywhere, not sampled."""

import torch

import lipverify as lv
from lipverify import derived, ops
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input

# Player i has three variables and the cost |x_i|^2 / 2 + x_1' B_i x_2 + v_i' softplus(W_i x + b_i): the gradient is a network.
torch.manual_seed(0)
own = [slice(0, 3), slice(3, 6)]
weights = [torch.randn(24, 6, dtype=torch.float64) / 6**0.5 for _ in own]
biases = torch.randn(48, dtype=torch.float64)
outer = torch.zeros(6, 48, dtype=torch.float64)
plain = torch.eye(6, dtype=torch.float64)
for i, (part, w) in enumerate(zip(own, weights, strict=True)):
    outer[part, 24 * i : 24 * i + 24] = w[:, part].T * (torch.randn(24, dtype=torch.float64) * 0.05)
    plain[part, own[1 - i]] = torch.randn(3, 3, dtype=torch.float64) * (0.3, 0.1)[i]
gradient = Graph(
    (
        Node("x", Input(), (), (6,)),
        Node("hidden", ops.Linear(torch.cat(weights), biases), ("x",), (48,)),
        Node("sigmoid", ops.Sigmoid(), ("hidden",), (48,)),
        Node("curved", ops.Linear(outer), ("sigmoid",), (6,)),
        Node("plain", ops.Linear(plain), ("x",), (6,)),
        Node("gradient", ops.Add(), ("curved", "plain"), (6,)),
    ),
    ("gradient",),
)

curvature, couplings = derived.pseudo_gradient(gradient, [3, 3])
margin = lv.game(curvature, couplings)
print(f"curvatures {margin.details['curvature']}, couplings {margin.details['couplings']}")
print(f"margin at least {margin.lower:.4f} ({margin.rigour}) with the weights {margin.details['weights']}")
print("proved again:", derived.verify_derived(margin).claim[:90], "...")
assert margin.lower > 0.0
