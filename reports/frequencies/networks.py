"""Convolutional networks with random weights, as ONNX files: He initialisation, seed 0, normalisation as it starts.

python reports/frequencies/networks.py FOLDER     writes all of them
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Layers:
    """A model under construction: every call adds a layer and gives the name of its result and its shape."""

    def __init__(self, *image: int, seed: int = 0) -> None:
        self.rng, self.image = np.random.default_rng(seed), image
        self.nodes: list[Any] = []
        self.stored: list[Any] = []
        self.shapes: dict[str, tuple[int, ...]] = {"x": image}

    def put(
        self, op: str, inputs: list[str], shape: tuple[int, ...], *arrays: np.ndarray, **settings: Any
    ) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        names = [f"{name}.{k}" for k in range(len(arrays))]
        self.stored += [
            numpy_helper.from_array(a.astype(np.float32), n) for a, n in zip(arrays, names, strict=True)
        ]
        self.nodes.append(helper.make_node(op, [*inputs, *names], [name], name, **settings))
        self.shapes[name] = shape
        return name

    def conv(self, x: str, out: int, taps: int, stride: int = 1, padding: int | None = None) -> str:
        channels, *size = self.shapes[x]
        pad = taps // 2 if padding is None else padding
        after = tuple((n + 2 * pad - taps) // stride + 1 for n in size)
        weight = self.rng.standard_normal((out, channels, taps, taps)) * math.sqrt(
            2.0 / (channels * taps * taps)
        )
        return self.put("Conv", [x], (out, *after), weight, pads=[pad] * 4, strides=[stride] * 2)

    def normalised(self, x: str) -> str:
        """Batch normalisation as it is before training."""
        ones, zeros = np.ones(self.shapes[x][0]), np.zeros(self.shapes[x][0])
        return self.put("BatchNormalization", [x], self.shapes[x], ones, zeros, zeros, ones)

    def relu(self, x: str) -> str:
        return self.put("Relu", [x], self.shapes[x])

    def added(self, x: str, y: str) -> str:
        return self.put("Add", [x, y], self.shapes[x])

    def pooled(self, x: str, taps: int, stride: int, pad: int = 0) -> str:
        channels, *size = self.shapes[x]
        after = tuple((n + 2 * pad - taps) // stride + 1 for n in size)
        return self.put(
            "MaxPool", [x], (channels, *after), kernel_shape=[taps] * 2, strides=[stride] * 2, pads=[pad] * 4
        )

    def mean(self, x: str) -> str:
        """Global mean, flattened."""
        channels = self.shapes[x][0]
        return self.flat(self.put("GlobalAveragePool", [x], (channels, 1, 1)))

    def flat(self, x: str) -> str:
        return self.put("Flatten", [x], (math.prod(self.shapes[x]),))

    def dense(self, x: str, out: int) -> str:
        (inputs,) = self.shapes[x]
        weight = self.rng.standard_normal((out, inputs)) * math.sqrt(2.0 / inputs)
        return self.put("Gemm", [x], (out,), weight, np.zeros(out), transB=1)

    def save(self, y: str, path: Path) -> Path:
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *self.image])
        last = helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, *self.shapes[y]])
        graph = helper.make_graph(self.nodes, path.stem, [given], [last], self.stored)
        onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
        return path


def four(n: Layers, widths: tuple[int, int], hidden: int) -> str:
    """Four convolutions, the first and the third with stride 2, and two dense layers."""
    x = "x"
    for width in widths:
        x = n.relu(n.conv(n.relu(n.conv(x, width, 4, 2, 1)), width, 3))
    return n.dense(n.relu(n.dense(n.flat(x), hidden)), 10)


def sixteen(n: Layers) -> str:
    """Sixteen convolutions of 16 channels and a global mean."""
    x = "x"
    for _ in range(16):
        x = n.relu(n.conv(x, 16, 3))
    return n.dense(n.mean(x), 10)


def resnet18(n: Layers, large: bool) -> str:
    """ResNet-18; large: the stem for images of 224 pixels, else one convolution for 32."""
    x = n.relu(n.normalised(n.conv("x", 64, 7, 2) if large else n.conv("x", 64, 3)))
    x = n.pooled(x, 3, 2, 1) if large else x
    for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        y = n.normalised(n.conv(n.relu(n.normalised(n.conv(x, width, 3, stride))), width, 3))
        x = n.relu(n.added(y, x if stride == 1 else n.normalised(n.conv(x, width, 1, stride))))
    return n.dense(n.mean(x), 1000 if large else 10)


def vgg16(n: Layers) -> str:
    """VGG-16 with its three dense layers."""
    x = "x"
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            x = n.relu(n.conv(x, width, 3))
        x = n.pooled(x, 2, 2)
    return n.dense(n.relu(n.dense(n.relu(n.dense(n.flat(x), 4096)), 4096)), 1000)


NETWORKS: dict[str, tuple[tuple[int, ...], Callable[[Layers], str]]] = {
    "four-8-16": ((3, 32, 32), lambda n: four(n, (8, 16), 64)),
    "four-16-16": ((3, 32, 32), lambda n: four(n, (16, 16), 100)),
    "four-16-32": ((3, 32, 32), lambda n: four(n, (16, 32), 100)),
    "sixteen": ((1, 28, 28), sixteen),
    "resnet18-32": ((3, 32, 32), lambda n: resnet18(n, False)),
    "resnet18-224": ((3, 224, 224), lambda n: resnet18(n, True)),
    "vgg16-224": ((3, 224, 224), vgg16),
}


def written(name: str, folder: Path) -> Path:
    """The file of a network, made where it is not there."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        image, make = NETWORKS[name]
        layers = Layers(*image)
        layers.save(make(layers), path)
    return path


if __name__ == "__main__":
    for each in NETWORKS:
        print(written(each, Path(sys.argv[1])))
