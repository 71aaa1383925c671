"""Affine forms of values and of derivatives with shared symbols: ranges, margins and Jacobians of networks with products,
softmax and normalisation."""

from lipverify.propagation.forms.bounds import (
    FormBounds,
    affordable,
    form_bounds,
    joined,
    mixes,
    refuses_forms,
)

__all__ = ["FormBounds", "affordable", "form_bounds", "joined", "mixes", "refuses_forms"]
