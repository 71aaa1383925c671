"""Operators of the domain ai.onnx.ml, as converters of pipelines write them: scalers, linear models, features side by side.

Trees, encoders and support vector machines are refused: trees and encoders jump.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Operand, Value
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.registry import lower
from lipverify.loading.names import display

_DOMAIN = "ai.onnx.ml::"


def _numbers(c: Call, name: str) -> Tensor | None:
    found = c.attribute(name)
    if found is None:
        return None
    numbers = torch.tensor(found, dtype=torch.float32)
    if not bool(numbers.isfinite().all()):
        raise c.invalid(f"its {name} are not finite")
    return numbers


@lower.register(_DOMAIN + "Scaler")
def _scaler(c: Call) -> Value:
    """(x - offset) * scale, in this order."""
    x, b = c.value(), c.build
    width = x.source_shape[-1]
    for name, combine in (("offset", b.minus), ("scale", b.times)):
        numbers = _numbers(c, name)
        if numbers is None:
            continue
        if numbers.numel() not in (1, width):
            raise c.invalid(f"{numbers.numel()} numbers of {name} for {width} features")
        x = combine(x, numbers.reshape(()) if numbers.numel() == 1 else numbers)
    return x


@lower.register(_DOMAIN + "Normalizer")
def _normalizer(c: Call) -> Value:
    """Every row over its norm; it jumps at 0, so it has a bound away from 0 only."""
    x, b = c.value(), c.build
    kind = c.choice("norm", "MAX", "MAX", "L1", "L2")
    x = b.free(x, x.rank - 1)
    axis = b.axis(x, x.rank - 1)
    if kind == "MAX":
        raise c.refuse(
            "divides by the largest entry, which readers take with or without its sign", "use L1 or L2"
        )
    return b.add(ops.Normalize((axis,), 1 if kind == "L1" else 2), (x,), x.batch)


def _scores(c: Call, rows: int | None) -> Value:
    """x coefficients' + intercepts."""
    x, coefficients = c.value(), _numbers(c, "coefficients")
    if coefficients is None:
        raise c.invalid("it has no coefficients")
    width = x.source_shape[-1]
    count = coefficients.numel() // max(width, 1)
    if count < 1 or count * width != coefficients.numel() or (rows is not None and rows != count):
        raise c.invalid(f"{coefficients.numel()} coefficients for {width} features")
    intercepts = _numbers(c, "intercepts")
    if intercepts is not None and intercepts.numel() != count:
        raise c.invalid(f"{intercepts.numel()} intercepts for {count} rows of coefficients")
    return c.build.linear(x, coefficients.reshape(count, width), intercepts)


def _transformed(c: Call, scores: Value) -> Value:
    b = c.build
    kind = c.choice("post_transform", "NONE", "NONE", "SOFTMAX", "LOGISTIC")
    if kind == "SOFTMAX":
        return b.along(ops.Softmax, scores, scores.rank - 1)
    return b.elementwise(ops.Sigmoid(), scores) if kind == "LOGISTIC" else scores


@lower.register(_DOMAIN + "LinearRegressor")
def _linear_regressor(c: Call) -> Value:
    return _transformed(c, _scores(c, c.attribute("targets", 1)))


@lower.register(_DOMAIN + "LinearClassifier")
def _linear_classifier(c: Call) -> list[Value | None]:
    if c.used[0]:
        raise c.refuse(
            "its first output is the label, which jumps", "choose the scores: --output probabilities"
        )
    scores = _scores(c, None)
    labels = c.attribute("classlabels_ints") or c.attribute("classlabels_strings") or []
    if len(labels) == 2 and scores.source_shape[-1] == 1:
        raise c.refuse(
            "has two classes and one row of coefficients, which readers complete differently",
            "export two rows",
        )
    return [None, _transformed(c, scores)]


@lower.register(_DOMAIN + "ArrayFeatureExtractor")
def _array_feature_extractor(c: Call) -> Value:
    if isinstance(c.raw(1), Value):
        raise c.refuse("chooses entries by computed numbers, which jumps", "use stored indices")
    x, indices = c.value(), c.array(1, "index list").reshape(-1)
    if indices.dtype.kind not in "iu":
        raise c.invalid(f"indices of type {indices.dtype}")
    taken = c.build.gather(x, x.rank - 1, torch.from_numpy(indices.astype(np.int64)))
    return taken if x.rank > 1 else c.build.unsqueeze(taken, [0])


@lower.register(_DOMAIN + "FeatureVectorizer")
def _feature_vectorizer(c: Call) -> Value:
    operands: list[Operand] = c.operands()
    widths = c.attribute("inputdimensions") or []
    found = [x.source_shape[-1] if isinstance(x, Value) else x.shape[-1] for x in operands]
    if widths and list(widths) != found:
        raise c.invalid(f"inputdimensions {list(widths)[:8]} for inputs of widths {found[:8]}")
    ranks = {x.rank if isinstance(x, Value) else x.ndim for x in operands}
    if ranks != {2}:
        raise c.refuse("joins tensors that are no rows of features", "use Concat")
    return c.build.concat(operands, 1)


@lower.register(_DOMAIN + "Imputer")
def _imputer(c: Call) -> Value:
    """Real numbers are never NaN: what replaces NaN takes no part."""
    missing = c.attribute("replaced_value_float", 0.0)
    if not math.isnan(missing):
        raise c.refuse(f"replaces the number {missing:g}, which jumps there", "replace NaN alone")
    return c.value()


_REASONS = {
    **dict.fromkeys(
        ["TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"],
        ("is an ensemble of trees, piecewise constant: it jumps at every split", "use a model without trees"),
    ),
    **dict.fromkeys(
        ["Binarizer", "LabelEncoder", "OneHotEncoder", "CategoryMapper", "DictVectorizer"],
        ("maps numbers to categories, which jumps", "leave it out of the exported model"),
    ),
    **dict.fromkeys(
        ["SVMClassifier", "SVMRegressor"],
        ("support vector machines are not covered", "use a linear model or a network"),
    ),
}
REFUSED = tuple(_DOMAIN + name for name in _REASONS)
"""All operators that are refused here."""


def _register(name: str, reason: str, remedy: str) -> None:
    @lower.register(_DOMAIN + name)
    def translate(c: Call) -> NoReturn:
        raise c.refuse(reason, remedy)


for _name, (_reason, _remedy) in _REASONS.items():
    _register(_name, _reason, _remedy)


def without_maps(model: Any) -> tuple[str, ...]:
    """Outputs that are lists of dictionaries become the tensors of scores inside, in place; remarks about it.

    A ZipMap at the end of a classifier names its columns; the numbers are those of its input.
    """
    graph, remarks = model.graph, []
    writers = {name: node for node in graph.node for name in node.output if name}
    for value in graph.output:
        node = writers.get(value.name)
        if node is None or (node.domain, node.op_type) != ("ai.onnx.ml", "ZipMap"):
            continue
        node.op_type, node.domain = "Identity", ""
        del node.attribute[:]
        value.type.Clear()
        value.type.tensor_type.elem_type = 1
        shown = display(value.name, 40)
        remarks.append(
            f'output "{shown}" is a list of dictionaries (ZipMap); its scores are taken as one tensor'
        )
    return tuple(remarks)
