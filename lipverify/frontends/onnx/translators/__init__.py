"""Translators of ONNX operators, by family. Importing this package registers all of them."""

from lipverify.frontends.onnx.translators import activations as _activations
from lipverify.frontends.onnx.translators import arithmetic as _arithmetic
from lipverify.frontends.onnx.translators import classical as _classical
from lipverify.frontends.onnx.translators import fused as _fused
from lipverify.frontends.onnx.translators import indexing as _indexing
from lipverify.frontends.onnx.translators import linear_maps as _linear_maps
from lipverify.frontends.onnx.translators import normalization as _normalization
from lipverify.frontends.onnx.translators import placing as _placing
from lipverify.frontends.onnx.translators import pooling as _pooling
from lipverify.frontends.onnx.translators import quantized as _quantized
from lipverify.frontends.onnx.translators import recurrent as _recurrent
from lipverify.frontends.onnx.translators import refused as _refused
from lipverify.frontends.onnx.translators import resizing as _resizing
from lipverify.frontends.onnx.translators import shapes as _shapes

del (
    _activations,
    _arithmetic,
    _classical,
    _fused,
    _indexing,
    _linear_maps,
    _normalization,
    _placing,
    _pooling,
    _quantized,
    _recurrent,
    _refused,
    _resizing,
    _shapes,
)
