"""A folder of images, the folders in it being classes; read with Pillow."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path as Folder
from typing import Any

import numpy as np

from lipverify.errors import InvalidFile, UsageError
from lipverify.loading.data.settings import NO_LABELS, Raw, Settings
from lipverify.loading.files import Path, read_regular
from lipverify.loading.names import display, sentence

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm")
MAX_PIXELS = 1 << 26
MAX_IMAGE_BYTES = 1 << 28
MAX_IMAGES = 1_000_000
_FORMATS = ("PNG", "JPEG", "BMP", "PPM")


def read_folder(path: Path, settings: Settings, channels: int | None) -> Raw:
    """Pixels [images, height, width] or [images, height, width, 3], 0 to 255. channels: of the model; 1 reads grey values.

    Raises:
        UsageError: Pillow is not installed. InvalidFile: no images, images of several sizes, a file that is none.
    """
    try:
        from PIL import Image
    except ImportError:
        what = "is a folder; reading its images needs Pillow"
        raise UsageError(
            sentence(path, what, 'pip install "lipverify[data]", or save the pixels as .npz')
        ) from None
    if settings.x:
        raise UsageError("--data-x names an array or columns; a folder of images has neither")
    top = Folder(os.fspath(path))
    files = sorted(file for file in top.rglob("*") if file.suffix.lower() in ENDINGS)
    if not files:
        remedy = f"images end in {', '.join(ENDINGS)}"
        raise InvalidFile(sentence(path, "is a folder without images", remedy))
    if len(files) > MAX_IMAGES:
        raise InvalidFile(sentence(path, f"holds {len(files)} images, more than {MAX_IMAGES}"))
    places = [file.relative_to(top).parts[:-1] for file in files]
    classes: tuple[str, ...] = ()
    if settings.y not in (None, NO_LABELS):
        raise UsageError("labels of a folder of images are the folders in it; --data-y takes none here")
    if settings.y is None and all(places):
        classes = tuple(sorted({place[0] for place in places}))
    some = _even(files, places, settings.limit)
    digest = hashlib.sha256()
    pixels = []
    for file in some:
        read = read_regular(file, MAX_IMAGE_BYTES)
        digest.update(os.fsencode(file.relative_to(top)) + b"\0" + bytes.fromhex(read.sha256))
        pixels.append(_pixels(Image, read.data, file, channels))
        if pixels[-1].shape != pixels[0].shape:
            sizes = " and ".join(str(list(p.shape)) for p in (pixels[0], pixels[-1]))
            raise InvalidFile(sentence(file, f"images have several sizes ({sizes})", "make them one size"))
    y = [classes.index(file.relative_to(top).parts[0]) for file in some] if classes else None
    return Raw(
        np.stack(pixels),
        None if y is None else np.array(y, np.int64),
        str(path),
        digest.hexdigest(),
        classes=classes,
    )


def _even(files: list[Folder], places: list[tuple[str, ...]], limit: int | None) -> list[Folder]:
    """The first files, taken from the classes in turn: the first N would all be of one."""
    if limit is None or limit >= len(files):
        return files
    seen: dict[tuple[str, ...], int] = {}
    turns = []
    for file, place in zip(files, places, strict=True):
        seen[place[:1]] = turn = seen.get(place[:1], -1) + 1
        turns.append((turn, file))
    return [file for _, file in sorted(turns)[:limit]]


def _pixels(
    images: Any, data: bytes, file: Folder, channels: int | None
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        with images.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InvalidFile(sentence(file, f"has more than {MAX_PIXELS} pixels"))
            if image.mode not in ("1", "L", "P", "RGB"):
                what = f"has pixels of the kind {display(image.mode, 10)}, not grey or RGB"
                raise InvalidFile(sentence(file, what, "convert it to 8-bit grey or RGB"))
            grey = channels == 1 or (channels is None and image.mode in ("1", "L"))
            return np.array(image.convert("L" if grey else "RGB"), dtype=np.uint8)
    except InvalidFile:
        raise
    except Exception as problem:  # Pillow raises almost anything on damaged files
        raise InvalidFile(
            sentence(file, f"is no image that can be read ({type(problem).__name__})")
        ) from None
