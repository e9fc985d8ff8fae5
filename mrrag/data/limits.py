"""Allowed sizes of files and pictures, and the errors for files that are not read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mrrag.errors import ImageError

# The largest clinical radiograph is a 24 × 30 cm mammogram at 50 µm: 4,800 × 6,000 pixels.
MAX_PIXELS = 2**25
# Such a radiograph, uncompressed at two bytes a pixel. Also the limit after inflation.
MAX_BYTES = 2**26

FORMATS = "DICOM, PNG, JPEG, WebP, TIFF and BMP files are read."
EXPORT = "Export the picture again from its source as DICOM, PNG, TIFF or JPEG."


def refusal(came: str, allowed: str, do: str) -> ImageError:
    """Return an error of three sentences: what came, what is allowed, and what to do."""
    return ImageError(f"{came} {allowed} {do}")


def too_many_bytes(came: str) -> ImageError:
    """Return the error for a file or picture of more than ``MAX_BYTES``."""
    return refusal(
        came,
        f"At most {MAX_BYTES:,} bytes are read.",
        "Export one frame, or compress the picture without loss.",
    )


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn any exception that a library raises on damaged bytes into an ``ImageError``."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # pydicom, Pillow and the codecs raise many kinds
        raise refusal(
            f"{what} could not be read: the file is damaged, cut short, or not what it says.",
            FORMATS,
            EXPORT,
        ) from error


def check_size(rows: int, columns: int) -> None:
    """Raise ``ImageError`` if a picture has no pixels, or more than ``MAX_PIXELS``."""
    if rows < 1 or columns < 1 or rows * columns > MAX_PIXELS:
        raise refusal(
            f"The picture is said to have {rows:,} rows and {columns:,} columns.",
            f"Both must be at least 1, and rows × columns at most {MAX_PIXELS:,}.",
            "Export it at a lower resolution.",
        )


def check_frame(frame: int, frames: int) -> None:
    """Raise ``ImageError`` if a file of so many frames has no such frame, counted from 0."""
    if not 0 <= frame < frames:
        raise refusal(
            f"Frame {frame + 1} was asked for.",
            f"The file has {frames} frame{'s' * (frames > 1)}, counted from 1.",
            "Ask for one of these.",
        )
