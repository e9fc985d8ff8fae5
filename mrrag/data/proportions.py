"""Pixels that are not square → right proportions, so that nothing is shown squeezed.

A DICOM header says how high and wide a pixel is in one of four attributes. What cannot be true
is left out with a note. This module does not know what the pixels show.
"""

from __future__ import annotations

from math import isfinite, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
from pydicom.dataset import Dataset

from mrrag.data.attributes import numbers_of
from mrrag.data.limits import MAX_PIXELS

__all__ = ["SPACINGS", "make_square", "pixel_ratio", "square_shape"]

Array = npt.NDArray[Any]

# In the order in which they count (PS3.3 10.7.1.1, C.8.11.4, C.8.6.2 and C.7.6.3.1.7). Each is
# a pixel's height, then its width.
SPACINGS = (
    "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio",
)  # fmt: skip
MAX_RATIO = 20.0  # no detector has pixels so long; 1:10 does occur
SAME = 0.01  # a difference that no eye sees, and that rounding explains


def pixel_ratio(dataset: Dataset) -> tuple[float, str, list[str]]:
    """Return a pixel's height divided by its width, from the first attribute that can be true.

    Returns
    -------
    tuple
        The ratio (1.0 where none is given), the attribute that says so with its values, and a
        note for each attribute that was left out.
    """
    notes: list[str] = []
    for keyword in SPACINGS:
        pair = numbers_of(dataset, keyword)
        if not pair:
            continue
        said = f"{keyword} ({' x '.join(f'{number:.4g}' for number in pair[:2])})"
        if len(pair) == 2 and all(isfinite(number) and number > 0 for number in pair):
            ratio = pair[0] / pair[1]
            if 1 / MAX_RATIO <= ratio <= MAX_RATIO:
                return ratio, said, notes
        notes.append(f"The header's {said} cannot be true and was left out.")
    return 1.0, "", notes


def square_shape(rows: int, columns: int, ratio: float) -> tuple[int, int]:
    """Return the rows and columns that make pixels square.

    The longer side of a pixel is divided, so that no detail is lost, unless the picture would
    have more than ``MAX_PIXELS``: then both sides are scaled to fit.
    """
    if abs(ratio - 1) <= SAME:
        return rows, columns
    high, wide = rows * max(ratio, 1.0), columns * max(1 / ratio, 1.0)
    fit = min(1.0, sqrt(MAX_PIXELS / (high * wide)))
    shape = (int(high * fit), int(wide * fit)) if fit < 1 else (round(high), round(wide))
    return max(shape[0], 1), max(shape[1], 1)


def make_square(
    pixels: Array, shape: tuple[int, int], padding: npt.NDArray[np.bool_] | None = None
) -> tuple[Array, npt.NDArray[np.bool_] | None]:
    """Resample pixels linearly, and padding to the nearest pixel.

    Parameters
    ----------
    pixels
        uint8 RGB [rows, columns, 3], or [rows, columns] of any numbers. Whole numbers stay
        whole. They are computed in float32, so that only 32-bit numbers are rounded.
    shape
        Rows and columns of the result.
    padding
        [rows, columns]. Padding does not count in the pixels beside it.

    Returns
    -------
    tuple
        The pixels, of the same type, and the padding.
    """
    size = shape[::-1]
    linear, nearest = PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.NEAREST
    if pixels.ndim == 3:
        return np.array(PIL.Image.fromarray(pixels).resize(size, linear)), None

    def resize(values: Array) -> Array:
        return np.array(PIL.Image.fromarray(values.astype(np.float32)).resize(size, linear))

    outside: npt.NDArray[np.bool_] | None = None
    if padding is None:
        resized = resize(pixels)
    else:
        outside = np.array(PIL.Image.fromarray(padding).resize(size, nearest))
        resized = resize(np.where(padding, 0, pixels))
        resized /= np.maximum(resize(~padding), 1e-6)
        resized[outside] = pixels[padding][0] if padding.any() else 0
    if pixels.dtype.kind in "iu":
        limits = np.iinfo(pixels.dtype)
        if pixels.itemsize > 2:  # float32 rounds the largest of them up
            resized = resized.astype(np.float64)
        resized = np.clip(np.rint(resized, out=resized), limits.min, limits.max, out=resized)
    return resized.astype(pixels.dtype), outside
