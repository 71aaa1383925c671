"""digits-relu-mlp with the smaller two thirds of its hidden weights set to zero, matrix by matrix."""

from torch import nn

from lipverify import zoo
from lipverify.zoo.network import run_file

build = run_file(zoo.root() / "digits-relu-mlp" / "model.py").build
KEPT = 1 / 3


def derive() -> nn.Module:
    network, _ = zoo.load_module("digits-relu-mlp")
    *hidden, _ = (layer for layer in network if isinstance(layer, nn.Linear))
    for layer in hidden:
        weight = layer.weight.data
        smallest = weight.abs().flatten().sort().values[int((1 - KEPT) * weight.numel())]
        weight[weight.abs() < smallest] = 0
    return network
