"""From a path to what is in it, by its bytes: arrays, tables, images."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lipverify.errors import InvalidFile, UsageError
from lipverify.loading.data import arrays, images, tables
from lipverify.loading.data.fitting import Points, fit
from lipverify.loading.data.settings import Raw, Settings
from lipverify.loading.files import FileBytes, Path, read_regular
from lipverify.loading.formats import Format, is_text, require_format
from lipverify.loading.names import sentence
from lipverify.loading.numpy_archive import parse_npy, parse_npz, require_finite

WHAT = "a file of points (.npz, .npy, .csv, .pt, .safetensors, .parquet or a folder of images)"
_TORCH = {Format.TORCH_ZIP, Format.TORCH_LEGACY}
_KNOWN = {Format.NPZ, Format.NPY, Format.TEXT, Format.SAFETENSORS, Format.PARQUET, *_TORCH}


def read(path: Path, settings: Settings | None = None, shape: tuple[int, ...] | None = None) -> Raw:
    """What --data names, before it is fitted to a model. shape: of the model's input, which tells a label column.

    Raises:
        InvalidFile: missing, damaged, without points, or with something that is no finite number. UnsafeInput: an archive built
            as an attack, a pickle. UsageError: a name that is not there, a package that is missing.
    """
    settings = settings or Settings()
    if os.path.isdir(path):
        return images.read_folder(path, settings, _channels(shape))
    file = read_regular(path)
    inputs = None if shape is None else int(np.prod(shape))
    if is_text(file.data):
        try:
            return tables.read_csv(file, settings, inputs)
        except InvalidFile:
            # Few tables are also pickles of the oldest kind; reading one as a table runs nothing.
            require_format(file, _KNOWN, WHAT)
            raise
    found = require_format(file, _KNOWN, WHAT)
    if found is Format.PARQUET:
        return tables.points_of(_parquet(file), settings, inputs, file.sha256)
    return _from_arrays(_arrays(file, found, settings), file, settings)


def read_points(
    path: Path,
    settings: Settings | None = None,
    shape: tuple[int, ...] | None = None,
    classes: int | None = None,
) -> Points:
    """The points that --data names, of a model's shape where it is known. Raises as `read` and `fit`."""
    return fit(read(path, settings, shape), settings, shape, classes)


def _channels(shape: tuple[int, ...] | None) -> int | None:
    """Of a model of images: 1 or 3 where it is one of them for sure."""
    if shape is None:
        return None
    if len(shape) == 3:
        return next((size for size in (shape[0], shape[-1]) if size in (1, 3)), None)
    return 1 if len(shape) == 2 else None


def _from_arrays(
    found: tuple[NDArray[np.generic], NDArray[np.generic] | None, tuple[str, ...]],
    file: FileBytes,
    settings: Settings,
) -> Raw:
    x, y, notes = found
    if x.dtype.kind not in "fiub":
        raise InvalidFile(sentence(file.path, f"x has dtype {x.dtype}, not plain numbers", "save numbers"))
    if x.ndim == 0 or x.size == 0:
        raise InvalidFile(sentence(file.path, f"x has shape {list(x.shape)}, which holds no points"))
    require_finite(x, "x", file.path)
    return Raw(x, y, file.path, file.sha256, notes=notes)


def _arrays(
    file: FileBytes, found: Format, settings: Settings
) -> tuple[NDArray[np.generic], NDArray[np.generic] | None, tuple[str, ...]]:
    if found is Format.NPY:
        return parse_npy(file.data, "x", file.path, copy=False), None, ()
    if found is Format.NPZ:
        from lipverify.loading.zip_archive import members

        names = [name.removesuffix(".npy") for name in members(file.data, file.path)]
        x, y, notes = arrays.choose(names, settings, file.path)
        # `fit` copies the points that are kept, often few of them.
        held = parse_npz(file.data, file.path, only=(x,), copy=False)
        labels = None if y is None else parse_npz(file.data, file.path, only=(y,))[y]
        return held[x], labels, notes
    tensors = _tensors(file, found)
    x, y, notes = arrays.choose(tensors, settings, file.path)
    return tensors[x], None if y is None else tensors[y], notes


def _tensors(file: FileBytes, found: Format) -> Mapping[str, NDArray[np.generic]]:
    """Tensors of a torch file or of .safetensors as arrays, by name."""
    import torch

    if found is Format.SAFETENSORS:
        from lipverify.loading.safetensors import parse_tensors

        tensors = parse_tensors(file.data, file.path)[0]
    else:
        from lipverify.loading.state_dict import read_leaves

        leaves = dict(read_leaves(file, found)[0])
        tensors = {name: leaves[key] for name, key in arrays.of_leaves(leaves, file.path).items()}
    half = (torch.bfloat16,)
    return {name: (t.float() if t.dtype in half else t).numpy() for name, t in tensors.items()}


def _parquet(file: FileBytes) -> tables.Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        remedy = 'pip install "lipverify[data]", or save it as CSV or .npz'
        raise UsageError(sentence(file.path, "is Parquet, which needs pyarrow", remedy)) from None
    try:
        held = parquet.read_table(pyarrow.BufferReader(file.data))
        columns = [column.to_pylist() for column in held.columns]
    except Exception as problem:  # pyarrow has many errors of its own
        raise InvalidFile(sentence(file.path, f"is damaged Parquet ({type(problem).__name__})")) from None
    return tables.of_columns(tuple(map(str, held.column_names)), columns, file.path)
