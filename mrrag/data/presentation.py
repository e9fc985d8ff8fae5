"""A DICOM frame's stored values → :class:`~mrrag.types.Image`, by PS3.4 N.2.

The steps are modality LUT, square pixels, VOI LUT or window, and MONOCHROME1 inversion. What
cannot be true in the header, or would leave nothing to see, is left out with a note. This module
does not know how files are stored.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset

from mrrag.data.attributes import as_list, numbers_of
from mrrag.data.grey import (
    fit_window,
    is_window,
    leaves_nothing,
    scale,
    show_full_range,
    window_grey,
)
from mrrag.data.proportions import make_square, pixel_ratio, square_shape
from mrrag.data.tables import (
    UnusableTable,
    apply_palette,
    level_top,
    look_up,
    read_table,
    read_voi_table,
)
from mrrag.types import Image, Window

__all__ = ["show_colour", "show_grey"]

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


def show_grey(pixels: Array, dataset: Dataset, *, inverted: bool) -> Image:
    """Return the display of stored grey values, with what a viewer needs to window them.

    Parameters
    ----------
    pixels
        Whole numbers [rows, columns].
    dataset
        The header; an unknown VOI LUT function is set to LINEAR.
    inverted
        Whether low values are shown bright (MONOCHROME1).

    Raises
    ------
    ValueError
        If slope and intercept lead to infinite values. Damaged attributes raise other exceptions.
    """
    found = _find_padding(pixels, dataset)
    values, notes = _apply_modality_lut(pixels, ~found, dataset)
    values, padding, squared = _square(values, dataset, found if found.any() else None)
    shown = np.ones(values.shape, bool) if padding is None else ~padding
    windows, left_out = _read_windows(dataset)
    display, done = _apply_voi(values, shown, dataset, windows)
    notes.extend([*squared, *left_out, *done, *_polarity(dataset, inverted)])
    if inverted:
        display = 255 - display
    if padding is not None:
        display[padding] = 0
        notes.append(f"Padding ({padding.mean():.1%} of the pixels) is shown black.")
    return Image(
        display=display,
        values=values,
        windows=windows,
        voi_function=str(dataset.get("VOILUTFunction") or "LINEAR") if windows else "LINEAR",
        inverted=inverted,
        padding=padding,
        notes=tuple(notes),
    )


def show_colour(pixels: Array, dataset: Dataset, *, palette: bool) -> Image:
    """Return the display of RGB levels [rows, columns, 3], or of palette indices [rows, columns].

    Raises
    ------
    ImageError
        If the palette cannot be used: see :func:`mrrag.data.tables.apply_palette`.
    """
    if palette:
        display, notes = apply_palette(pixels, dataset, _is_little(dataset))
    else:
        top, note = level_top(int(pixels.max()), int(dataset.BitsStored))
        display, notes = scale(pixels, 0, top), [f"The colours {note}"] if note else []
    display, _, squared = _square(display, dataset)
    return Image(display, notes=(*notes, *squared))


def _square(
    pixels: Array, dataset: Dataset, padding: Mask | None = None
) -> tuple[Array, Mask | None, list[str]]:
    """Return pixels and padding resampled so that pixels are square, and notes."""
    ratio, said, notes = pixel_ratio(dataset)
    old = (int(pixels.shape[0]), int(pixels.shape[1]))
    new = square_shape(*old, ratio)
    if new == old:
        return pixels, padding, notes
    pixels, padding = make_square(pixels, new, padding)
    notes.append(
        f"By the header's {said}, pixels are not square: the picture was resampled from"
        f" {old[0]} x {old[1]} to {new[0]} x {new[1]} pixels, so that its proportions are right."
    )
    return pixels, padding, notes


def _polarity(dataset: Dataset, inverted: bool) -> list[str]:
    """Return notes on which values are bright; the photometric interpretation decides.

    A Presentation LUT Shape of INVERSE goes with MONOCHROME1, and IDENTITY with MONOCHROME2
    (PS3.3 C.8.11.3.1.2).
    """
    notes = ["MONOCHROME1: low values are shown bright."] if inverted else []
    shape = dataset.get("PresentationLUTShape")
    if shape == ("IDENTITY" if inverted else "INVERSE"):
        notes.append(
            f"The header contradicts itself: MONOCHROME{2 - inverted}, but a presentation LUT shape"
            f" of {shape}. It was read as MONOCHROME{2 - inverted}; invert it if bone is dark."
        )
    return notes


def _is_little(dataset: Dataset) -> bool:
    return bool(dataset.file_meta.TransferSyntaxUID != uid.ExplicitVRBigEndian)


def _find_padding(pixels: Array, dataset: Dataset) -> Mask:
    """Return which pixels are padding, by their stored values (PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(pixels.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    # Some headers state a signed value as unsigned: the cast restores its sign.
    ends = np.array([value, value if limit is None else limit]).astype(pixels.dtype)
    padding: Mask = (pixels >= ends.min()) & (pixels <= ends.max())
    return padding


def _apply_modality_lut(pixels: Array, shown: Mask, dataset: Dataset) -> tuple[Array, list[str]]:
    """Return modality values (PS3.3 C.11.1): by a table, or by slope and intercept; and notes."""
    notes: list[str] = []
    for item in (dataset.get("ModalityLUTSequence") or [])[:1]:
        try:
            table = read_table(item, "LUTDescriptor", "LUTData", _is_little(dataset))
        except UnusableTable as error:
            notes.append(f"The header's modality LUT was left out: {error}.")
            continue
        values = look_up(pixels, table)
        if not leaves_nothing(show_full_range(values, shown)[0], pixels, shown):
            return values, notes
        notes.append("The header's modality LUT was left out: it would leave nothing to see.")
    slope, intercept = (numbers_of(dataset, f"Rescale{part}") for part in ("Slope", "Intercept"))
    factor, offset = (slope or [1.0])[0], (intercept or [0.0])[0]
    if factor == 0 or np.isnan(factor) or np.isnan(offset):
        notes.append(
            f"The header's rescale slope {factor:g} and intercept {offset:g} cannot be true:"
            " the values are shown as they are stored."
        )
        return pixels, notes
    if factor == 1 and offset == 0:
        return pixels, notes
    if not (slope and intercept):
        absent = "intercept" if slope else "slope"
        notes.append(f"The header gives no rescale {absent}: taken as {0 if slope else 1}.")
    values = (pixels.astype(np.float64) * factor + offset).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("the rescale slope or intercept is not finite")
    return values, notes


def _read_windows(dataset: Dataset) -> tuple[tuple[Window, ...], list[str]]:
    """Return the header's valid windows (PS3.3 C.11.2.1.2), and a note for each invalid one."""
    function = dataset.get("VOILUTFunction") or "LINEAR"
    notes = []
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        notes.append("The header's VOI LUT function is not known: its windows are taken as linear.")
        function = dataset.VOILUTFunction = "LINEAR"
    names = as_list(dataset.get("WindowCenterWidthExplanation"))
    centers, widths = (numbers_of(dataset, f"Window{part}") for part in ("Center", "Width"))
    if len(centers) != len(widths):
        notes.append(
            f"The header gives {len(centers)} window centres and {len(widths)} widths:"
            " those without the other were left out."
        )
    if len(names) not in (0, len(centers)):
        names = []  # no one can tell which is whose
    windows = []
    for i, (center, width) in enumerate(zip(centers, widths, strict=False)):
        if not is_window(center, width, function):
            what = f"a width of {width:g}" if isfinite(center) else f"a centre of {center:g}"
            notes.append(f"The header's window {i + 1} has {what} and was left out.")
            continue
        name = "".join(c for c in str(names[i]) if c.isprintable())[:64] if names else ""
        windows.append(Window(name.strip() or f"Window {i + 1}", center, width))
    return tuple(windows), notes


def _apply_voi(
    values: Array, shown: Mask, dataset: Dataset, windows: tuple[Window, ...]
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Return the display of modality values, and notes.

    It is the first that leaves something to see: of the VOI LUTs, the windows, the full range
    if there are no windows, and an automatic window. If a header has both a VOI LUT and
    windows, PS3.3 C.11.2 leaves the choice; the VOI LUT is the more specific.
    """
    display, notes = _apply_voi_tables(values, shown, dataset)
    if display is not None:
        return display, [
            *notes,
            f"Shown through the header's VOI LUT{', not its windows' * bool(windows)}.",
        ]
    function = dataset.get("VOILUTFunction") or "LINEAR" if windows else "LINEAR"
    for window in windows:
        display = window_grey(values, window, function)
        said = (
            f"the header's window “{window.name}” (centre {window.center:g},"
            f" width {window.width:g})"
        )
        if not leaves_nothing(display, values, shown):
            return display, [*notes, f"Shown through {said}."]
        notes.append(f"{said[0].upper()}{said[1:]} would leave nothing to see.")
    if not windows:
        display, note = show_full_range(values, shown)
        if not leaves_nothing(display, values, shown):
            return display, [*notes, note]
        notes.append("The file gives no window, and its full range would leave nothing to see.")
    automatic = fit_window(values, shown, function)
    assert automatic is not None  # else no display leaves nothing to see
    return window_grey(values, automatic, function), [
        *notes,
        f"Shown and read by the model through an automatic window (centre {automatic.center:g},"
        f" width {automatic.width:g}); another can be chosen by hand.",
    ]


def _apply_voi_tables(
    values: Array, shown: Mask, dataset: Dataset
) -> tuple[npt.NDArray[np.uint8] | None, list[str]]:
    """Return the display by the first VOI LUT that can be used, and a note for each that cannot."""
    notes = []
    for i, item in enumerate(dataset.get("VOILUTSequence") or []):
        try:
            table = read_voi_table(item, _is_little(dataset))
            display = scale(look_up(values, table), 0, 2**table.bits - 1)
            if leaves_nothing(display, values, shown):
                raise UnusableTable("it would leave nothing to see")
        except UnusableTable as error:
            notes.append(f"The header's VOI LUT {i + 1} was left out: {error}.")
            continue
        return display, notes
    return None, notes
