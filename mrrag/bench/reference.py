"""The picture that a DICOM file must give, by pydicom's functions and from decoded pixels.

It shares no step with :mod:`mrrag.data.dicom`, but two definitions that the Standard leaves to
the reader: when a display leaves nothing to see, and what is then shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi,
    apply_windowing,
    convert_color_space,
)

from mrrag.data.grey import fit_window, leaves_nothing, window_grey

__all__ = ["colours", "grey_display", "grey_values", "padding_of", "pixel_height", "stretch"]

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

WINDOWS = ("WindowCenter", "WindowWidth", "VOILUTFunction")


def padding_of(dataset: Dataset, pixels: Array) -> Mask:
    """Return which stored pixels are padding (PS3.3 C.7.5.1.1.2), bool [rows, columns].

    They are compared modulo the type's range, since some headers state a signed value as
    unsigned.
    """
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(pixels.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit", value)
    size = 2 ** (8 * pixels.itemsize)
    sign = size // 2 if pixels.dtype.kind == "i" else 0
    low, high = sorted((int(end) + sign) % size - sign for end in (value, limit))
    return np.asarray((pixels >= low) & (pixels <= high))


def grey_values(dataset: Dataset, pixels: Array) -> Array:
    """Return modality values [rows, columns] (PS3.3 C.11.1); an absent half of a rescale is 1 or 0.

    Raises
    ------
    Exception
        Of any kind, if pydicom cannot read the attributes.
    """
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if dataset.get("ModalityLUTSequence") or (slope is None and intercept is None) or slope == 0:
        return apply_modality_lut(pixels, dataset) if "ModalityLUTSequence" in dataset else pixels
    dataset.RescaleSlope = 1 if slope is None else slope
    dataset.RescaleIntercept = 0 if intercept is None else intercept
    return apply_modality_lut(pixels, dataset)


def grey_display(
    values: Array, shown: Mask, dataset: Dataset, photometric: str, function: str
) -> Array:
    """Return grey levels of 0 to 255, not rounded, of modality values [rows, columns].

    The first of the header's VOI LUTs and windows that leaves something to see, else the full
    range, else the automatic window, meant by ``function`` (PS3.3 C.11.2). Padding is black.
    """
    levels = next(
        (
            found
            for found in _header_displays(values, shown, dataset)
            if not leaves_nothing(np.clip(np.rint(found), 0, 255).astype(np.uint8), values, shown)
        ),
        None,
    )
    if levels is None:
        window = fit_window(values, shown, function)
        levels = np.zeros(values.shape)
        if window is not None:
            levels = window_grey(values, window, function).astype(np.float64)
    levels = 255 - levels if photometric == "MONOCHROME1" else levels
    return np.where(shown, levels, 0)


def _header_displays(values: Array, shown: Mask, dataset: Dataset) -> Iterator[Array]:
    """Yield the display by each VOI LUT, and by each window or, without one, the full range."""
    yield from _voi_displays(values, dataset)
    # Without the rescale, whose sign pydicom 3.0 takes no heed of.
    plain = Dataset()
    for keyword in ("PhotometricInterpretation", "BitsStored", "PixelRepresentation", *WINDOWS):
        if keyword in dataset:
            setattr(plain, keyword, dataset[keyword].value)
    centers = plain.get("WindowCenter")
    count = 0 if centers is None else 1 if isinstance(centers, float) else len(centers)
    found = False
    for i in range(count):
        try:
            low, high = apply_windowing(np.array([-1e30, 1e30]), plain, i)
            levels = apply_windowing(values, plain, i)
        except Exception:  # an impossible window
            continue
        found = True
        yield (levels - low) * (255 / max(high - low, 1e-9))
    inside = values[shown]
    if inside.size and not found:
        low, high = float(inside.min()), float(inside.max())
        yield (values - low) * (255 / max(high - low, 1e-9))


def _voi_displays(values: Array, dataset: Dataset) -> Iterator[Array]:
    """Yield the display by each VOI LUT that pydicom can use, and that keeps to its bits."""
    for item in dataset.get("VOILUTSequence") or []:
        try:
            count, first, bits = (int(number) for number in item.LUTDescriptor)
            last = first + (count or 2**16) - 1
            # pydicom 3.0 wraps the index of 8-bit tables, and cuts off fractions.
            wide = Dataset()
            wide.file_meta = dataset.file_meta
            wide.VOILUTSequence = [deepcopy(item)]
            wide.VOILUTSequence[0].LUTDescriptor = [count, first, max(bits, 10)]
            highest = apply_voi(np.arange(first, last + 1), wide).max()
            levels = apply_voi(np.clip(np.rint(values), first, last).astype(np.int64), wide)
        except Exception:  # pydicom cannot use this table
            continue
        if highest < 2**bits:
            yield levels * (255 / (2.0**bits - 1))


def colours(dataset: Dataset, pixels: Array, photometric: str) -> Array:
    """Return RGB levels of 0 to 255, not rounded (PS3.3 C.7.6.3 and C.7.9)."""
    bits = int(dataset.BitsStored)
    if photometric == "PALETTE COLOR":
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        pixels = _palette(dataset, pixels)
    elif photometric.startswith("YBR_FULL"):
        pixels = convert_color_space(pixels, photometric, "RGB")
    levels: Array = pixels * (255 / (2.0**bits - 1))
    return levels


def _palette(dataset: Dataset, pixels: Array) -> Array:
    """Return the colours of indices; pydicom 3.0 takes no heed of the byte order of tables."""
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    if f"{names[0]}Data" not in dataset or dataset.file_meta.TransferSyntaxUID.is_little_endian:
        return apply_color_lut(pixels, dataset)[..., :3]
    count, first, bits = (int(n) for n in dataset[f"{names[0]}Descriptor"].value)
    count = count or 2**16
    planes = []
    for name in names:
        words = np.frombuffer(dataset[f"{name}Data"].value, ">u2")
        packed = bits == 8 and len(words) < count
        # The low byte of a word is the first entry.
        entries = np.stack([words & 255, words >> 8], axis=-1).ravel() if packed else words
        planes.append(entries[np.clip(pixels.astype(np.int64) - first, 0, count - 1)])
    return np.stack(planes, axis=-1)


def pixel_height(dataset: Dataset) -> float:
    """Return a pixel's height divided by its width, 1 where no attribute says so credibly."""
    for keyword in (
        "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio",
    ):  # fmt: skip
        try:
            high, wide = (float(v) for v in dataset.get(keyword))
            if isfinite(high / wide) and 0.05 <= high / wide <= 20 and high > 0:
                return high / wide
        except (TypeError, ValueError, ZeroDivisionError):
            continue
    return 1.0


def stretch(pixels: Array, shape: tuple[int, ...]) -> Array:
    """Return pixels [rows, columns, …] interpolated linearly to more rows or columns."""
    stretched = pixels.astype(np.float64)
    for axis in (0, 1):
        old, new = pixels.shape[axis], shape[axis]
        if old == new:
            continue
        at = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        part = (at - low).reshape([-1 if i == axis else 1 for i in range(pixels.ndim)])
        high = np.minimum(low + 1, old - 1)
        stretched = stretched.take(low, axis) * (1 - part) + stretched.take(high, axis) * part
    return stretched
