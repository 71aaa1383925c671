"""A copy of digits-sll that is wrong on purpose: the sign of the step is flipped.

x + 2 W T^-1 relu(W'x + b), in the habit of residual networks, instead of x - 2 W T^-1 relu(W'x + b). The network trains and
classifies as well, and its card claims the constant 1 of the original; the claim is false.
"""

from torch import Tensor, nn

from lipverify.zoo import root
from lipverify.zoo.network import run_file

honest = run_file(root() / "digits-sll" / "model.py")
build = honest.build


class FlippedSLL(honest.TrainableSLL):  # type: ignore[misc, name-defined]
    """The trainable layer with the wrong sign."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - super().forward(x)


def trainable() -> nn.Module:
    return nn.Sequential(FlippedSLL(64), FlippedSLL(64), FlippedSLL(64), honest.Rows(64, 10))


def deploy(trained: nn.Module) -> nn.Module:
    network = honest.deploy(trained)
    for layer in network[:-1]:
        layer.outer.weight.data.neg_()
    return network
