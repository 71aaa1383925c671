"""digits-relu-mlp with weights rounded to eight bits: whole multiples, -127 to 127, of one step for each row."""

from torch import nn

from lipverify import zoo
from lipverify.zoo.network import run_file

build = run_file(zoo.root() / "digits-relu-mlp" / "model.py").build


def derive() -> nn.Module:
    network, _ = zoo.load_module("digits-relu-mlp")
    for layer in network:
        if isinstance(layer, nn.Linear):
            weight = layer.weight.data
            step = weight.abs().amax(dim=1, keepdim=True) / 127
            weight.copy_((weight / step).round() * step)
    return network
