"""The viewer's other half: what of a picture goes to the browser, and what comes back.

The values after the modality LUT go once, at full bit depth; window, zoom and pan are the
browser's own (``viewer.js``). What comes back is the numbers of a window, never pixels:
:func:`as_chosen` draws the picture again from the values that the server kept.
"""

from __future__ import annotations

import base64
import json
import math
import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from mrrag.data.images import apply_window, strip_identity, window_grey
from mrrag.errors import ImageError, SettingsError
from mrrag.report.cards import note_list, text
from mrrag.report.pictures import CIVIDIS, data_url, patches_on_picture, shrink
from mrrag.report.plots import DIVERGING
from mrrag.types import FloatArray, Image, Window

Array = npt.NDArray[Any]

SCRIPT = (Path(__file__).parents[1] / "static" / "viewer.js").read_text(encoding="utf-8")
# The longer side that travels: more is neither seen on a screen nor drawn at 60 frames a second.
MOST_PX = 2048
# Of one visit, in memory: the values behind the picture, and the file behind its other frames.
MAX_VALUE_BYTES = 2**25
MAX_FRAME_BYTES = 2**25
MOST_LEVELS = 2**16
LARGEST = 1e9  # of a window's centre and width; more than any modality's values

# What may be shown of a file; none of it says who the patient is.
TECHNICAL = (
    *("modality", "view position", "format", "rows x columns", "bits stored", "colour"),
    *("photometric interpretation", "transfer syntax", "pixel spacing"),
    *("burned-in annotation", "lossy compression"),
)


# ---------------------------------------------------------------- what goes to the browser


def retained(image: Image) -> Image:
    """The picture as a visit keeps it: without its values where they are too large to keep."""
    if image.values is None or image.values.nbytes <= MAX_VALUE_BYTES:
        return image
    return replace(image, values=None, padding=None)


def other_frames(data: bytes, image: Image) -> bytes:
    """The file without what names a patient, to read other frames from; empty where not kept."""
    if image.frames == 1 or len(data) > MAX_FRAME_BYTES:
        return b""
    try:
        return strip_identity(data)
    except ImageError:
        return b""


def put_up(image: Image, title: str, *, frames_kept: bool) -> dict[str, Any]:
    """The viewer's part of an update: a new picture waits, and the viewer is told to fetch it.

    It is fetched by an event of its own that is not queued, since a message of the queue's
    stream takes the browser seconds where it has megabytes.
    """
    return {"film": secrets.token_hex(8), "waiting": film(image, title, frames_kept=frames_kept)}


def film(image: Image, title: str, *, frames_kept: bool) -> str:
    """A picture as the viewer takes it, in JSON.

    A grey one is an index into its distinct values, which ``viewer.js`` turns into a table
    of greys for each window, so it is windowed at full bit depth.
    """
    rows, columns = image.display.shape[:2]
    common: dict[str, Any] = {
        "title": title,
        "rows": rows,
        "columns": columns,
        "case": image.sha256[:16],
        "frame": image.frame,
        "frames": image.frames,
        "framesKept": frames_kept,
        "flags": [flag for flag, _, _ in warnings(image.tags, image.inverted)],
    }
    if image.values is None:
        picture = shrink(image.display, MOST_PX)
        return json.dumps(common | {"kind": "colour", "picture": data_url(picture)})
    step = math.ceil(max(rows, columns) / MOST_PX)
    values, padding = block_mean(image.values, image.padding, step)
    index, table, exact = index_values(values, padding)
    presets, greys = header_presets(image, step, table)
    return json.dumps(
        common
        | {
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
            "greys": None if greys is None else base64.b64encode(greys.tobytes()).decode("ascii"),
            "windowable": image.values.nbytes <= MAX_VALUE_BYTES,
        }
    )


def block_mean(
    values: Array, padding: npt.NDArray[np.bool_] | None, step: int
) -> tuple[Array, npt.NDArray[np.bool_] | None]:
    """Means of ``step`` × ``step`` pixels (fewer at the edges), rounded where they were whole.

    A block that is mostly padding is padding; elsewhere padding does not count.
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
    values: Array, padding: npt.NDArray[np.bool_] | None
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float64], bool]:
    """The picture as places in a rising table of its values; whether that is lossless.

    Padding has a place of its own, one past the table. More than 65,536 different values
    (32-bit pixels) are rounded to so many levels.
    """
    shown = values if padding is None else values[~padding]
    most = MOST_LEVELS - (padding is not None)
    low, high = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 0.0)
    exact = True
    whole = values.dtype.kind in "iu" or np.array_equal(shown, np.rint(shown))
    if whole and high - low < most:
        table = np.arange(low, high + 1)
        index: Array = values.astype(np.float64) - low
    else:
        table = np.unique(shown).astype(np.float64)
        if len(table) <= most:
            index = np.searchsorted(table, values.astype(np.float64)).astype(np.float64)
        else:
            exact = False
            table = np.linspace(low, high, most)
            index = np.rint((values.astype(np.float64) - low) * ((most - 1) / (high - low)))
    if padding is not None:
        index[padding] = len(table)
    return index.astype(np.uint16), table, exact


def pack(index: npt.NDArray[np.uint16]) -> str:
    """Lossless and small: differences along rows, high bytes before low ones, deflated."""
    change = index.copy()
    change[:, 1:] -= index[:, :-1]
    planes = (change >> 8).astype(np.uint8).tobytes() + change.astype(np.uint8).tobytes()
    return base64.b64encode(zlib.compress(planes, 1)).decode("ascii")


def _table(table: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Evenly spaced values as a start and a step; others one by one."""
    first, step = float(table[0]), float(table[1] - table[0]) if len(table) > 1 else 1.0
    if np.array_equal(table, first + step * np.arange(len(table))):
        return {"first": first, "step": step}
    return {"values": base64.b64encode(table.astype("<f8").tobytes()).decode("ascii")}


def header_presets(
    image: Image, step: int, table: npt.NDArray[np.float64]
) -> tuple[tuple[Window, ...], npt.NDArray[np.uint8] | None]:
    """The windows to choose from; the first makes the picture as it was read.

    Where none of them does (the header has a VOI LUT), the greys of ``table`` that do.
    """
    assert image.values is not None
    values, display = image.values[::step, ::step], image.display[::step, ::step]
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
    stored = (Window("As stored", 128, 256),) if image.values.dtype == np.uint8 else ()
    windows = (*image.windows, full) if image.windows else (*stored, full)
    first = next((w for w in dict.fromkeys((windows[0], full)) if reproduces(w)), None)
    if first is None:
        places, at = np.unique(inside, return_index=True)
        greys = np.interp(table, places.astype(np.float64), plain[shown][at].astype(np.float64))
        return windows, np.rint(greys).astype(np.uint8)
    return (first, *(w for w in windows if w is not first)), None


# ---------------------------------------------------------------- what comes back


@dataclass(frozen=True)
class View:
    """How a person looks at the picture; without a centre, through the header's VOI LUT."""

    use: bool
    window: Window | None
    invert: bool


def parse_view(sent: object) -> View:
    """What the browser says of its window, checked as if a stranger had sent it.

    Raises
    ------
    SettingsError
        Where it is not what the viewer sends.
    """
    wrong = SettingsError(
        "The viewer's window is not one that it can show. Press R in the viewer to reset it."
    )
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


def as_chosen(image: Image, sent: object) -> Image:
    """The picture that the model reads: as the file asks, or through the person's window.

    Raises
    ------
    SettingsError, ImageError
        Where the window is none, or the picture's values were not kept.
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


def heat(before: FloatArray, after: FloatArray, layer: int, shape: tuple[int, int]) -> str:
    """One layer's question→image attention by patch, in JSON; float32 [rows, columns] twice.

    ``shape`` is the picture's. Before and after share a scale from 0, and the difference
    runs from −swing to swing. Patches of the padding alone count in neither.
    """
    grid = (int(before.shape[0]), int(before.shape[1]))
    seen = patches_on_picture(grid, *shape)
    return json.dumps(
        {
            "grid": grid,
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


def warnings(tags: Mapping[str, str], inverted: bool) -> list[tuple[str, str, str]]:
    """What a reader must know before trusting or sharing the picture.

    Each as two words for a corner of the picture, a headline and the reason.
    """
    found = []
    burned_in = tags.get("burned-in annotation")
    if "transfer syntax" in tags and burned_in != "NO":  # PS3.3 C.7.6.1; DICOM files only
        says = "says that there is" if burned_in == "YES" else "does not exclude"
        found.append(
            (
                "! burned-in text?",
                "Text may be burned in.",
                f"The header {says} text in the pixels, which could name the patient.",
            )
        )
    if tags.get("lossy compression") == "yes" or tags.get("format") == "JPEG":
        found.append(("! lossy", "Compressed with loss.", "Fine detail may be missing or made up."))
    if inverted:
        why = "Low values are bright, and are shown that way."
        found.append(("MONOCHROME1", "MONOCHROME1.", why))
    return found


def details(image: Image, title: str, note: str = "") -> str:
    """The picture's title, warnings, technical attributes and what was done to the file."""
    rows, columns = image.display.shape[:2]
    alerts = "".join(
        f'<li><span class="mark" aria-hidden="true">!</span><span><b>{text(head)}</b> '
        f"{text(why)}</span></li>"
        for _, head, why in warnings(image.tags, image.inverted)
    )
    tags = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(image.tags[name])}</td></tr>'
        for name in TECHNICAL
        if name in image.tags
    )
    return (
        f'<p class="film-title"><b>{text(title)}</b><span>{columns} × {rows} px</span></p>'
        + (f'<p class="case-note">{text(note)}</p>' if note else "")
        + (f'<ul class="film-warnings" aria-label="Warnings">{alerts}</ul>' if alerts else "")
        + (
            '<table class="film-tags"><caption>Technical attributes; none names a patient'
            f"</caption><tbody>{tags}</tbody></table>"
            if tags
            else ""
        )
        + '<details class="file-notes"><summary>What was done to the file</summary>'
        + (note_list(image.notes) or "<p>Nothing: shown as stored.</p>")
        + "</details>"
    )


def model_view(pixels: npt.NDArray[np.uint8], by_hand: bool) -> str:
    """The square that the vision tower reads; uint8 [side, side, 3]."""
    rows, columns = pixels.shape[:2]
    how = "through your window" if by_hand else "as the file asks"
    return (
        '<figure class="film-frame model-view">'
        f'<img src="{data_url(pixels)}" alt="The picture as the model reads it, {how}, padded to '
        f'a square and resized to {columns} by {rows} pixels">'
        f"<figcaption><b>What the model sees</b> {columns} × {rows} px, {how}"
        "</figcaption></figure>"
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


def frame() -> str:
    """The viewer's fixed markup; it is a gradio template, and nothing is ever put into it."""
    keys = "".join(f"<li><kbd>{text(key)}</kbd> {text(what)}</li>" for key, what in KEYS)
    return f"""
<section class="viewer" aria-label="Picture viewer" data-state="empty">
  <div class="stage">
    <canvas tabindex="0" role="application" aria-label="No picture yet"
      aria-describedby="viewer-keys"></canvas>
    <p class="hud hud-window" aria-hidden="true"></p>
    <p class="hud hud-flags"></p>
    <p class="hud hud-zoom" aria-hidden="true"></p>
    <p class="hud hud-value" aria-hidden="true"></p>
    <p class="hud hud-patch" aria-hidden="true"></p>
    <p class="stage-note">No picture yet.</p>
  </div>
  <p class="viewer-live" role="status" aria-live="polite"></p>
  <div class="tools" role="group" aria-label="Viewer tools">
    <label class="preset"><span>Window</span><span class="pick"><select
      aria-label="Window preset"></select></span></label>
    <button type="button" data-do="invert" aria-pressed="false" title="Invert (I)">Invert</button>
    <button type="button" data-do="reset" title="Reset window, zoom and pan (R)">Reset</button>
    <button type="button" data-do="out" title="Zoom out (−)" aria-label="Zoom out">−</button>
    <button type="button" data-do="in" title="Zoom in (+)" aria-label="Zoom in">+</button>
    <button type="button" data-do="actual" title="One picture pixel on one of the screen"
      aria-label="Actual size">1:1</button>
    <button type="button" data-do="full" title="Full screen (F)" aria-label="Full screen"
      aria-pressed="false"><svg width="14" height="14" viewBox="0 0 14 14" fill="none"
      stroke="currentColor" stroke-width="2" aria-hidden="true"><path
      d="M1 5V1h4M9 1h4v4M13 9v4H9M5 13H1V9"/></svg></button>
  </div>
  <div class="frames" hidden>
    <label><span>Frame</span><input type="range" min="1" step="1" aria-label="Frame"></label>
    <output></output>
  </div>
  <div class="heat-tools" hidden>
    <label><span>Heatmap</span><span class="pick"><select aria-label="Heatmap">
      <option value="off">off</option><option value="before">before IFA</option>
      <option value="after">after IFA</option><option value="difference">difference</option>
    </select></span></label>
    <label class="opacity"><span>Opacity</span><input type="range" min="0" max="100" value="60"
      aria-label="Heatmap opacity"></label>
    <p class="heat-scale" hidden><span class="low"></span><i aria-hidden="true"></i><span
      class="high"></span></p>
  </div>
  <label class="use"><input type="checkbox"><span>Use my window for the model</span></label>
  <p class="viewer-hint small" hidden></p>
  <ul class="keys" id="viewer-keys" aria-label="Keys and gestures">{keys}</ul>
</section>"""


# Run in the browser before an event whose last input is the view.
READ_VIEW = """(...inputs) => {
  inputs[inputs.length - 1] = document.querySelector('#viewer .viewer')?.dataset.view ?? '';
  return inputs;
}"""
# Hands the heatmap to the viewer, which is another part of the page.
HEAT_SCRIPT = """
watch('value', () => document.querySelector('#viewer .viewer')?.dispatchEvent(
  new CustomEvent('heat', {detail: props.value})));
"""
