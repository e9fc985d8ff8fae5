"""Pictures for the page: data URLs, and attention laid over an X-ray.

Everything travels inside the page, so nothing of a case is written to disk. It does not
know where attention comes from; it is told the values of the patches and their grid.
"""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
import PIL.Image
from markupsafe import Markup

from mrrag.report.templating import render

# Anchors of cividis (Nuñez et al. 2018), made to look alike with and without colour
# blindness, and monotone in lightness, so that it also reads in grey.
CIVIDIS = (
    "#00224e", "#123570", "#3b496c", "#575d6d", "#707173",
    "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
)  # fmt: skip


def data_url(pixels: npt.NDArray[np.uint8], *, lossless: bool = True) -> str:
    """Grey, RGB or RGBA pixels as a PNG (or JPEG) that an ``img`` can hold itself."""
    file = io.BytesIO()
    picture = PIL.Image.fromarray(pixels)
    if lossless:
        picture.save(file, "PNG", compress_level=3)
    else:
        picture.save(file, "JPEG", quality=85)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def file_url(data: bytes) -> str:
    """Return the URL of a PNG or JPEG file as it is."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def shrink(pixels: npt.NDArray[np.uint8], longest: int) -> npt.NDArray[np.uint8]:
    """Return the picture with its longer side at most ``longest`` px; smaller ones unchanged."""
    rows, columns = pixels.shape[:2]
    scale = longest / max(rows, columns)
    if scale >= 1:
        return pixels
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    return np.asarray(PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.LANCZOS))


def padded_square(rows: int, columns: int) -> tuple[int, int, int]:
    """Return the square that the model sees, on the picture: (top, left, side), in px.

    The model's processor pads the shorter side evenly (the odd pixel goes after the
    picture, as in LLaVA's ``expand2square``), so ``top`` or ``left`` is negative there.
    """
    side = max(rows, columns)
    return -((side - rows) // 2), -((side - columns) // 2), side


def grid_box(rows: int, columns: int, *, padded: bool = True) -> tuple[int, int, int, int]:
    """Return what the patches cover, on the picture: (top, left, height, width), in px.

    The picture padded to a square, or the picture alone: see
    :class:`mrrag.types.AttentionTrace`.
    """
    if not padded:
        return 0, 0, rows, columns
    top, left, side = padded_square(rows, columns)
    return top, left, side, side


def patch_box(
    row: int, column: int, grid: tuple[int, int], rows: int, columns: int, *, padded: bool = True
) -> tuple[float, float, float, float] | None:
    """Return the part of the picture that a patch covers: (top, left, bottom, right), in px.

    None where the patch lies in the padding alone.
    """
    top, left, height, width = grid_box(rows, columns, padded=padded)
    upper, lower = (top + height * (row + i) / grid[0] for i in (0, 1))
    start, end = (left + width * (column + i) / grid[1] for i in (0, 1))
    box = max(upper, 0.0), max(start, 0.0), min(lower, float(rows)), min(end, float(columns))
    return box if box[0] < box[2] and box[1] < box[3] else None


def patches_on_picture(
    grid: tuple[int, int], rows: int, columns: int, *, padded: bool = True
) -> npt.NDArray[np.bool_]:
    """Return which patches show any of the picture; bool [grid rows, grid columns]."""
    return np.array(
        [
            [
                patch_box(y, x, grid, rows, columns, padded=padded) is not None
                for x in range(grid[1])
            ]
            for y in range(grid[0])
        ]
    )


def heat_pixels(values: npt.NDArray[np.floating], top: float) -> npt.NDArray[np.uint8]:
    """Return values from 0 to ``top`` as cividis, more opaque where higher: uint8 [..., RGBA]."""
    share = np.clip(values / top if top > 0 else np.zeros_like(values), 0.0, 1.0)
    anchors = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in CIVIDIS])
    places = np.linspace(0.0, 1.0, len(CIVIDIS))
    channels = [np.interp(share, places, anchors[:, i]) for i in range(3)]
    return np.stack([*channels, 255 * 0.72 * share], axis=-1).round().astype(np.uint8)


def overlay_html(
    picture: str,
    shape: tuple[int, int],
    heat: npt.NDArray[np.uint8],
    alternative: str,
    *,
    padded: bool = True,
) -> Markup:
    """Return a radiograph with one pixel of heat per patch stretched over it.

    ``picture`` is the X-ray's URL and ``shape`` its (rows, columns); ``heat`` is RGBA
    [grid rows, grid columns, 4]. What lies over the padding falls outside the frame.
    """
    rows, columns = shape
    top, left, height, width = grid_box(rows, columns, padded=padded)
    place = (
        f"top:{100 * top / rows:.4f}%;left:{100 * left / columns:.4f}%;"
        f"height:{100 * height / rows:.4f}%;width:{100 * width / columns:.4f}%"
    )
    return render(
        "overlay.html",
        ratio=f"{columns}/{rows}",
        picture=picture,
        alternative=alternative,
        heat=data_url(heat),
        place=place,
    )
