"""Grey values → display: VOI windows (PS3.3 C.11.2), the full range, or an automatic window.

This module also measures whether a display leaves anything to see.
"""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from mrrag.data.limits import refusal
from mrrag.types import Image, Window

__all__ = [
    "apply_window",
    "automatic_window",
    "fit_window",
    "is_window",
    "leaves_nothing",
    "scale",
    "show_full_range",
    "window_grey",
]

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

# The automatic window runs between these quantiles of the values, so that a marker, a hot pixel
# or a piece of metal does not decide it.
QUANTILES = (0.005, 0.995)
# A display leaves nothing to see if this share of the greys ends black or white,
LOST = 0.9
# or if all but 2 in 1,000 pixels lie within so few of its 256 levels, where four times as many
# are possible.
FEW_LEVELS = 32
SAMPLE = 2**20  # pixels that are measured; of larger pictures every n-th row and column


def apply_window(image: Image, window: Window, *, invert: bool = False) -> Image:
    """Return the picture as it looks through another window.

    Parameters
    ----------
    invert
        Exchange dark and bright.

    Raises
    ------
    ImageError
        If the picture has no ``values``, or the window is invalid.
    """
    if image.values is None:
        raise refusal(
            "This picture has no grey values to apply a window to.",
            "Grey pictures whose values were kept can be windowed; colours are shown as they are.",
            "Use the picture as it is.",
        )
    display = window_grey(image.values, window, image.voi_function)
    if image.inverted != invert:
        display = 255 - display
    if image.padding is not None:
        display[image.padding] = 0
    note = (
        f"Instead of that, shown through the window chosen by hand (centre {window.center:g}, "
        f"width {window.width:g}{', inverted' if invert else ''})."
    )
    return replace(image, display=display, notes=(*image.notes, note))


def automatic_window(image: Image) -> Window | None:
    """Return a window that shows nearly all values of a picture.

    It runs from the 0.5th to the 99.5th percentile of the values that are not padding, or
    over their full range if these are the same.

    Returns
    -------
    Window or None
        Named "Automatic", in units of ``image.values``, and meant by ``image.voi_function``.
        None if the picture has no ``values``, or all of them are the same.
    """
    if image.values is None:
        return None
    shown = np.ones(image.values.shape, bool) if image.padding is None else ~image.padding
    return fit_window(image.values, shown, image.voi_function)


def fit_window(values: Array, shown: Mask, function: str) -> Window | None:
    """Return :func:`automatic_window` of values [rows, columns], where ``shown`` is true."""
    at = _sample(values.shape)
    inside = values[at][shown[at]]
    if not inside.size:
        return None
    low, high = (float(v) for v in np.quantile(inside, QUANTILES, method="nearest"))
    if low == high:
        low, high = float(inside.min()), float(inside.max())
    if low == high:
        return None
    if function == "LINEAR":  # its lowest value is black, and its highest white
        return Window("Automatic", (low + high + 1) / 2, high - low + 1)
    return Window("Automatic", (low + high) / 2, high - low)


def leaves_nothing(display: npt.NDArray[np.uint8], values: Array, shown: Mask) -> bool:
    """Return whether a display leaves nothing to see that an automatic window would show.

    Either it makes nearly all greys of the automatic window as dark or as bright as it gets (a
    window beside the values, or far too narrow), or it squeezes nearly all pixels into very
    few grey levels (a window far too wide). A picture whose values are few or alike is
    never judged so, since no window would show more.

    Parameters
    ----------
    display
        uint8 [rows, columns].
    values
        [rows, columns], in any unit that the display was made from.
    shown
        bool [rows, columns]: which pixels are not padding.
    """
    window = fit_window(values, shown, "LINEAR")
    if window is None:
        return False
    at = _sample(values.shape)
    inside = shown[at]
    levels = display[at][inside]
    automatic = window_grey(values[at], window, "LINEAR")[inside]
    grey = levels[(automatic > 7) & (automatic < 248)]
    ends = (grey == levels.min()) | (grey == levels.max())
    if grey.size and ends.mean() >= LOST:
        return True
    span = _span(levels)
    return span < FEW_LEVELS and _span(automatic) >= 4 * max(span, 1)


def _span(levels: npt.NDArray[np.uint8]) -> int:
    """Return over how many grey levels all but 2 in 1,000 pixels run."""
    low, high = np.quantile(levels, (0.001, 0.999), method="nearest")
    return int(high) - int(low)


def _sample(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return every n-th row and column, so that about ``SAMPLE`` pixels are left."""
    step = slice(None, None, max(1, round((shape[0] * shape[1] / SAMPLE) ** 0.5)))
    return step, step


def window_grey(values: Array, window: Window, function: str) -> npt.NDArray[np.uint8]:
    """Map modality values to grey levels, dark to bright (PS3.3 C.11.2.1.2.1 and C.11.2.1.3).

    Parameters
    ----------
    values
        [rows, columns], in the units of the window.
    function
        The VOI LUT function: LINEAR, LINEAR_EXACT or SIGMOID.

    Raises
    ------
    ImageError
        If the window is invalid: see :func:`is_window`.
    """
    center, width, linear = window.center, window.width, function == "LINEAR"
    if not is_window(center, width, function):
        raise refusal(
            f"The window has a centre of {center:g} and a width of {width:g}.",
            f"Both must be finite, and the width {'at least 1' if linear else 'more than 0'}.",
            "Choose another window.",
        )
    if values.dtype.kind in "iu" and values.itemsize <= 2 and values.size > 2**16:
        # Fewer possible values than pixels: compute each value's level once.
        first = np.iinfo(values.dtype).min
        table = np.arange(first, np.iinfo(values.dtype).max + 1)
        return window_grey(table, window, function)[values.astype(np.int32) - first]
    x = values.astype(np.float64)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):  # exp may reach infinity: grey level 0
            grey = 255 / (1 + np.exp(-4 * (x - center) / width))
    else:
        if linear:
            center, width = center - 0.5, width - 1
        inside = (x > center - width / 2) & (x <= center + width / 2)
        grey = np.where(x > center, 255.0, 0.0)
        if width > 0:  # a linear window of width 1 is a threshold
            np.copyto(grey, ((x - center) / width + 0.5) * 255, where=inside)
    return np.rint(grey).astype(np.uint8)


def is_window(center: float, width: float, function: str) -> bool:
    """Return whether centre and width are finite, and the width is allowed (PS3.3 C.11.2.1.2).

    The width must be at least 1 for LINEAR, and more than 0 for the other functions.
    """
    if not (isfinite(center) and isfinite(width)):
        return False
    return width >= 1 if function == "LINEAR" else width > 0


def show_full_range(values: Array, shown: Mask) -> tuple[npt.NDArray[np.uint8], str]:
    """Map the full range of the shown values linearly to the display.

    Returns
    -------
    tuple
        The display, uint8 [rows, columns], and a note that says which range it shows.
    """
    inside = values[shown]
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
    if low == high:
        return np.zeros(values.shape, np.uint8), f"Every pixel has the same value, {low:g}."
    return (
        scale(values, low, high),
        f"The file gives no window: shown over its full range, {low:g} to {high:g}.",
    )


def scale(values: Array, low: float, high: float) -> npt.NDArray[np.uint8]:
    """Map [low, high] linearly to 0 to 255, rounded to the nearest level and clipped."""
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return values.copy()
    scaled = (values.astype(np.float64) - low) * 255 / (high - low)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
