"""Training with noise and without clipping: layers of norm 1 bound how far any one sample can move the gradient."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

import lipverify as lv
from lipverify import derived

data = load_digits()
x = torch.tensor(data.data, dtype=torch.float32)
x = x / x.norm(dim=1, keepdim=True)
y = torch.tensor(data.target)
rest = torch.arange(len(x)) % 4 == 0

torch.manual_seed(0)
layers = [nn.Linear(64, 64, bias=False), nn.Linear(64, 10, bias=False)]
net = nn.Sequential(orthogonal(layers[0]), nn.ReLU(), orthogonal(layers[1]))
graph = lv.extract(net.eval(), torch.zeros(2, 64))
found = lv.sensitivity(graph, reach=1.0)
print(f"one sample moves the gradient by at most {found.upper:.4f} ({found.total.rigour})")

# Every step takes all samples, adds noise in proportion, and goes back to layers of norm 1.
steps, multiplier, temperature = 60, 6.0, 20.0
noise = found.noise(multiplier)
weights = [layer.parametrizations.weight.original for layer in layers]
inputs, labels = x[~rest], y[~rest]
for _ in range(steps):
    plain = [layer.weight.detach().requires_grad_() for layer in layers]
    logits = torch.relu(inputs @ plain[0].T) @ plain[1].T
    loss = nn.functional.cross_entropy(temperature * logits, labels, reduction="sum") / temperature
    slopes = torch.autograd.grad(loss, plain)
    with torch.no_grad():
        for layer, slope in zip(layers, slopes, strict=True):
            layer.weight = layer.weight - 0.001 * (slope + noise * torch.randn_like(slope))
right = (net(x[rest]).argmax(1) == y[rest]).double().mean()
spent = derived.epsilon(multiplier, steps, 1e-5)
print(f"accuracy {right:.3f} at epsilon {spent:.2f}, delta 1e-5")
