"""How each operator of torch is lowered, one file for each family. Importing this package registers all of them."""

from lipverify.frontends.torch_export.translators import (
    activations,
    arithmetic,
    choices,
    indexing,
    linear_maps,
    normalization,
    pooling,
    recurrent,
    reductions,
    refused,
    shapes,
    sorting,
)

__all__ = [
    "activations",
    "arithmetic",
    "choices",
    "indexing",
    "linear_maps",
    "normalization",
    "pooling",
    "recurrent",
    "reductions",
    "refused",
    "shapes",
    "sorting",
]
