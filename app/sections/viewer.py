"""The viewer: its markup, the heatmap over the picture, and the window it sends back.

The browser never sends pixels back, only the numbers of a window: :func:`through_window`
renders the picture again from the values that the server kept. What is sent to the browser is
made in :mod:`app.sections.payload`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from app.sections.payload import warnings
from mrrag.data.grey import apply_window
from mrrag.errors import SettingsError
from mrrag.report.cards import note_list
from mrrag.report.pictures import CIVIDIS, data_url, patches_on_picture
from mrrag.report.plots import DIVERGING
from mrrag.types import FloatArray, Image, Window

FOLDER = Path(__file__).parents[1]
TEMPLATE: Any = (
    Environment(loader=FileSystemLoader(FOLDER / "templates"), autoescape=True)
    .get_template("viewer.html")
    .module
)
SCRIPT = (FOLDER / "static" / "viewer.js").read_text(encoding="utf-8")
# Hands the heatmap to the viewer, which is another component of the page.
HEAT_SCRIPT = (FOLDER / "static" / "heat.js").read_text(encoding="utf-8")
# Runs in the browser before an event whose last input is the viewer's window.
READ_VIEW = (FOLDER / "static" / "read_view.js").read_text(encoding="utf-8")
LARGEST = 1e9  # of a window's centre and width; more than any modality's values

# Attributes that may be shown of a file; none of them identifies the patient.
TECHNICAL = (
    *("modality", "view position", "format", "rows x columns", "bits stored", "colour"),
    *("photometric interpretation", "transfer syntax", "pixel spacing"),
    *("burned-in annotation", "lossy compression"),
)
KEYS: Sequence[tuple[str, str]] = (
    ("drag", "window: right wider, down darker"),
    ("wheel", "zoom"),
    ("middle or Space + drag", "pan"),
    ("← →", "width"),
    ("↑ ↓", "centre"),
    ("+ −", "zoom"),
    ("I", "invert"),
    ("R", "reset"),
    ("1 … 9", "preset"),
    ("[ ]", "frame"),
    ("H", "heatmap"),
    ("F", "full screen"),
    ("touch", "one finger window, two zoom and pan"),
)

# ---------------------------------------------------------------- the window


@dataclass(frozen=True)
class View:
    """How the picture is displayed; without a window, through the header's VOI LUT."""

    use: bool
    window: Window | None
    invert: bool


def parse_view(sent: object) -> View:
    """Return the window that the browser sent, checked as untrusted input.

    Raises
    ------
    SettingsError
        If the viewer could not have sent it.
    """
    wrong = SettingsError("The viewer's window is not valid. Press R in the viewer to reset it.")
    if sent in (None, ""):
        return View(False, None, False)
    if not isinstance(sent, str) or len(sent) > 1000:
        raise wrong
    try:
        said = json.loads(sent)
        use, invert, center, width = (said[name] for name in ("use", "invert", "center", "width"))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise wrong from None
    if not isinstance(use, bool) or not isinstance(invert, bool):
        raise wrong
    if center is None and width is None:
        return View(use, None, invert)
    for number in (center, width):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise wrong
        if not abs(number) <= LARGEST:
            raise wrong
    return View(use, Window("by hand", float(center), float(width)), invert)


def through_window(image: Image, sent: object) -> Image:
    """Return the picture as the model reads it: as the file asks, or through the user's window.

    Raises
    ------
    SettingsError, ImageError
        If the window is invalid, or the picture's values were not kept.
    """
    view = parse_view(sent)
    if not view.use:
        return image
    if image.values is None:
        raise SettingsError(
            "The model cannot read this picture through your window: it is in colour, or too "
            "large to keep its values. Untick “Use my window for the model”."
        )
    if view.window is not None:
        return apply_window(image, view.window, invert=view.invert)
    if not view.invert:
        return image
    display = 255 - image.display
    if image.padding is not None:
        display[image.padding] = 0
    return replace(image, display=display, notes=(*image.notes, "Inverted by hand after that."))


# ---------------------------------------------------------------- the heatmap


def heat(
    before: FloatArray,
    after: FloatArray,
    layer: int,
    shape: tuple[int, int],
    *,
    padded: bool = True,
) -> str:
    """Return one layer's attention from question to image, by patch, as JSON.

    Before and after share a scale from 0, and the difference runs from −swing to swing.
    Patches that show padding only count in neither.

    Parameters
    ----------
    before, after : float32 [rows, columns]
        By patch.
    shape
        Rows and columns of the picture.
    padded
        As in :class:`mrrag.types.AttentionTrace`.
    """
    grid = (int(before.shape[0]), int(before.shape[1]))
    seen = patches_on_picture(grid, *shape, padded=padded)
    return json.dumps(
        {
            "grid": grid,
            "padded": padded,
            "layer": layer,
            "before": before.ravel().tolist(),
            "after": after.ravel().tolist(),
            "top": float(max(before[seen].max(), after[seen].max())),
            "swing": float(np.abs(after - before)[seen].max()),
            "sequential": [[i / (len(CIVIDIS) - 1), c] for i, c in enumerate(CIVIDIS)],
            "diverging": list(DIVERGING),
        }
    )


# ---------------------------------------------------------------- markup


def frame() -> str:
    """Return the viewer's fixed markup."""
    return str(TEMPLATE.frame(KEYS))


def details(image: Image, title: str, note: str = "") -> str:
    """Return the picture's title, warnings, technical attributes and what was done to the file."""
    rows, columns = image.display.shape[:2]
    tags = [(name, image.tags[name]) for name in TECHNICAL if name in image.tags]
    found = warnings(image.tags, image.inverted)
    notes = Markup(note_list(image.notes))
    return str(TEMPLATE.details(title, rows, columns, note, found, tags, notes))


def model_view(pixels: npt.NDArray[np.uint8], by_hand: bool) -> str:
    """Return what the vision tower reads; ``pixels`` is uint8 [rows, columns, 3]."""
    rows, columns = pixels.shape[:2]
    how = "through your window" if by_hand else "as the file asks"
    return str(TEMPLATE.model_view(data_url(pixels), rows, columns, how))
