"""Encode a picture for the viewer, and say what the server keeps of it.

The values after the modality LUT are sent once, at full bit depth; window, zoom and pan are
computed in the browser (``static/viewer.js``). This module knows no HTML.
"""

from __future__ import annotations

import base64
import json
import math
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from app.sections.visit import Update
from mrrag.data.grey import automatic_window, window_grey
from mrrag.data.images import strip_identity
from mrrag.errors import ImageError
from mrrag.report.pictures import data_url, shrink
from mrrag.types import Image, Window

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

# The longer side that is sent: more is neither seen on a screen nor drawn at 60 frames a second.
MAX_PX = 2048
# Kept in memory for one visit: a picture's values, and the file behind its other frames.
MAX_VALUE_BYTES = 2**25
MAX_FRAME_BYTES = 2**25
MAX_LEVELS = 2**16


def retained(image: Image) -> Image:
    """Return the picture as a visit keeps it: without its values if they are too large."""
    if image.values is None or image.values.nbytes <= MAX_VALUE_BYTES:
        return image
    return replace(image, values=None, padding=None)


def other_frames(data: bytes, image: Image) -> bytes:
    """Return the file without the patient's identity, for its other frames; empty if not kept."""
    if image.frames == 1 or len(data) > MAX_FRAME_BYTES:
        return b""
    try:
        return strip_identity(data)
    except ImageError:
        return b""


def update(image: Image, title: str, *, multiframe: bool) -> Update:
    """Return the viewer's part of an update: a payload, and a token to fetch it by.

    It is fetched by an event of its own that is not queued, since a message of several
    megabytes takes the browser seconds in the queue's stream.
    """
    return {
        "viewer": secrets.token_hex(8),
        "payload": encode(image, title, multiframe=multiframe),
    }


def encode(image: Image, title: str, *, multiframe: bool) -> str:
    """Return a picture as JSON for the viewer.

    A grey one is an index into its distinct values, which ``viewer.js`` turns into a table
    of greys for each window, so it is windowed at full bit depth. ``multiframe`` is whether
    other frames can be read.
    """
    rows, columns = image.display.shape[:2]
    common: dict[str, Any] = {
        "title": title,
        "rows": rows,
        "columns": columns,
        "case": image.sha256[:16],
        "frame": image.frame,
        "frames": image.frames,
        "framesKept": multiframe,
        "flags": [flag for flag, _, _ in warnings(image.tags, image.inverted)],
    }
    if image.values is None:
        picture = shrink(image.display, MAX_PX)
        return json.dumps(common | {"kind": "colour", "picture": data_url(picture)})
    return json.dumps(common | _grey(image, image.values))


def warnings(tags: Mapping[str, str], inverted: bool) -> list[tuple[str, str, str]]:
    """Return what a reader must know before trusting or sharing the picture.

    Each is a flag of two words for a corner of the picture, a headline and the reason.
    """
    found = []
    burned_in = tags.get("burned-in annotation")
    if "transfer syntax" in tags and burned_in != "NO":  # PS3.3 C.7.6.1; DICOM files only
        says = "says that there is" if burned_in == "YES" else "does not exclude"
        reason = f"The header {says} text in the pixels, which could name the patient."
        found.append(("! burned-in text?", "Text may be burned in.", reason))
    if tags.get("lossy compression") == "yes" or tags.get("format") == "JPEG":
        reason = "Fine detail may be missing or altered."
        found.append(("! lossy", "Lossy compression.", reason))
    if inverted:
        reason = "Low values are bright, and are shown that way."
        found.append(("MONOCHROME1", "MONOCHROME1.", reason))
    return found


def _grey(image: Image, values: Array) -> dict[str, Any]:
    """Return the fields of a grey picture."""
    step = math.ceil(max(image.display.shape[:2]) / MAX_PX)
    reduced, padding = block_mean(values, image.padding, step)
    index, table, exact = index_values(reduced, padding)
    presets, greys = header_presets(image, values, step, table)
    return {
        "kind": "grey",
        "step": step,
        "width": index.shape[1],
        "height": index.shape[0],
        "index": pack(index),
        "size": len(table),
        "table": _table(table),
        "exact": exact,
        "padded": padding is not None,
        "function": image.voi_function,
        "inverted": image.inverted,
        "presets": [{"name": w.name, "center": w.center, "width": w.width} for w in presets],
        "greys": None if greys is None else _base64(greys),
        "windowable": values.nbytes <= MAX_VALUE_BYTES,
    }


def block_mean(values: Array, padding: Mask | None, step: int) -> tuple[Array, Mask | None]:
    """Return means of ``step`` × ``step`` pixels (fewer at the edges), rounded for whole numbers.

    A block that is mostly padding is padding; in other blocks padding does not count.
    """
    if step == 1:
        return values, padding

    def reduced(pixels: Array) -> Array:
        return np.asarray(PIL.Image.fromarray(pixels.astype(np.float32)).reduce(step))

    mean: Array
    if padding is None:
        mean, outside = reduced(values), None
    else:
        share = reduced(~padding)
        mean = reduced(np.where(padding, 0, values)) / np.maximum(share, 1e-6)
        outside = share < 0.5
    return (np.rint(mean) if values.dtype.kind in "iu" else mean), outside


def index_values(
    values: Array, padding: Mask | None
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float64], bool]:
    """Return the picture as an index into an ascending table of its values.

    More than ``MAX_LEVELS`` different values (32-bit pixels) are rounded to that many levels.

    Returns
    -------
    uint16 [rows, columns]
        The index; padding has one of its own, the length of the table.
    float64 [levels]
        The table.
    bool
        Whether this is lossless.
    """
    shown = values if padding is None else values[~padding]
    limit = MAX_LEVELS - (padding is not None)
    low, high = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 0.0)
    exact = True
    whole = values.dtype.kind in "iu" or np.array_equal(shown, np.rint(shown))
    if whole and high - low < limit:
        table = np.arange(low, high + 1)
        index: Array = values.astype(np.float64) - low
    else:
        table = np.unique(shown).astype(np.float64)
        if len(table) <= limit:
            index = np.searchsorted(table, values.astype(np.float64)).astype(np.float64)
        else:
            exact = False
            table = np.linspace(low, high, limit)
            index = np.rint((values.astype(np.float64) - low) * ((limit - 1) / (high - low)))
    if padding is not None:
        index[padding] = len(table)
    return index.astype(np.uint16), table, exact


def pack(index: npt.NDArray[np.uint16]) -> str:
    """Compress an index without loss: row differences, high bytes before low ones, deflated."""
    change = index.copy()
    change[:, 1:] -= index[:, :-1]
    planes = (change >> 8).astype(np.uint8).tobytes() + change.astype(np.uint8).tobytes()
    return base64.b64encode(zlib.compress(planes, 1)).decode("ascii")


def _table(table: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return evenly spaced values as first and step, others one by one."""
    first, step = float(table[0]), float(table[1] - table[0]) if len(table) > 1 else 1.0
    if np.array_equal(table, first + step * np.arange(len(table))):
        return {"first": first, "step": step}
    return {"values": _base64(table.astype("<f8"))}


def header_presets(
    image: Image, values: Array, step: int, table: npt.NDArray[np.float64]
) -> tuple[tuple[Window, ...], npt.NDArray[np.uint8] | None]:
    """Return the windows to choose from; the first reproduces the picture as it was read.

    They are the header's, an automatic one and the full range. If none reproduces it (the
    header has a VOI LUT), the greys of ``table`` that do come with them.
    """
    is_bytes = values.dtype == np.uint8
    values, display = values[::step, ::step], image.display[::step, ::step]
    shown = np.ones(values.shape, bool) if image.padding is None else ~image.padding[::step, ::step]
    plain = 255 - display if image.inverted else display

    def reproduces(window: Window) -> bool:
        greys = window_grey(values, window, image.voi_function).astype(np.int16)
        return bool((np.abs(greys - plain)[shown] <= 1).all())

    inside = values[shown]
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
    if image.voi_function == "LINEAR":  # its lowest value is black and its highest white
        full = Window("Full range", (low + high + 1) / 2, high - low + 1)
    else:
        full = Window("Full range", (low + high) / 2, (high - low) or 1.0)
    stored = (Window("As stored", 128, 256),) if is_bytes else ()
    found = automatic_window(image)
    same = found is None or (found.center, found.width) == (full.center, full.width)
    automatic = () if found is None or same else (found,)
    windows = (*(image.windows or stored), *automatic, full)
    first = next((window for window in windows if reproduces(window)), None)
    if first is None:
        places, at = np.unique(inside, return_index=True)
        greys = np.interp(table, places.astype(np.float64), plain[shown][at].astype(np.float64))
        return windows, np.rint(greys).astype(np.uint8)
    return (first, *(w for w in windows if w is not first)), None


def _base64(values: Array) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")
