"""Reads a DICOM, PNG or JPEG file as one :class:`~mrrag.types.Image`.

The format is recognised by content, and nothing is written to disk. This module does not know
who the patient is, what a model takes as input, or what the picture shows.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from pydicom.config import disable_value_validation

from mrrag.data.codecs import native
from mrrag.data.dicom import is_dicom, read_dicom, without_identity
from mrrag.data.grey import show_full_range
from mrrag.data.limits import (
    EXPORT,
    FORMATS,
    MAX_BYTES,
    MAX_PIXELS,
    check_frame,
    check_size,
    refusal,
    refusing,
    too_many_bytes,
)
from mrrag.types import Image

__all__ = ["load_image", "read_image", "strip_identity", "thumbnail"]

# Other formats that people upload, by their first bytes.
OTHER_FORMATS = {
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive or an Office document",
    b"\x1f\x8b": "a gzip archive (NIfTI volumes often are)",
    b"GIF8": "a GIF picture",
    b"II*\0": "a TIFF picture",
    b"MM\0*": "a TIFF picture",
    b"BM": "a BMP picture",
    b"RIFF": "a RIFF file (WebP pictures and videos are)",
    b"\0\0\0\x0cjP": "a bare JPEG 2000 picture",
    b"\xff\x4f\xff\x51": "a bare JPEG 2000 picture",
}

# One file at a time, because this bounds memory, and warning filters belong to the process.
_LOCK = threading.Lock()


@contextmanager
def _reading() -> Iterator[None]:
    """Hold the lock, and switch off value validation and warnings, which would show values.

    The filter is narrow, because filters belong to the process: if another thread's copy of
    them keeps this one, only warnings of these libraries are lost.
    """
    with _LOCK, disable_value_validation(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(pydicom|PIL|imagecodecs)\b")
        yield


def read_image(data: bytes, *, frame: int = 0) -> Image:
    """Read one frame of a DICOM, PNG or JPEG file, recognised by its content.

    Parameters
    ----------
    data : bytes
        The whole file; at most ``MAX_BYTES``.
    frame : int
        The number of the frame, counted from 0.

    Returns
    -------
    Image
        ``display`` uint8 [rows, columns] or [rows, columns, 3]; ``values`` after the
        modality LUT, in its units (Hounsfield units in CT).

    Raises
    ------
    ImageError
        If the file is not read, whatever its bytes. The message says what came, what is
        allowed, and what to do.
    """
    if len(data) > MAX_BYTES:
        raise too_many_bytes(f"The file has {len(data):,} bytes.")
    with _reading():
        if is_dicom(data):
            return read_dicom(data, frame)
        if data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
            return _read_picture(data, frame)
    kinds = (name for magic, name in OTHER_FORMATS.items() if data.startswith(magic))
    kind = next(kinds, "of an unsupported type") if data else "empty"
    raise refusal(f"The file is {kind}.", FORMATS, EXPORT)


def load_image(path: str | Path, *, frame: int = 0) -> Image:
    """Read an image file from disk: see :func:`read_image`.

    The ``slo_fundus`` of a NumPy archive of Harvard-FairVLMed is read too.

    Raises
    ------
    ImageError
        If the file cannot be opened, or is not read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise refusal(
            f"The image file could not be opened ({error.strerror or 'no reason given'}).",
            FORMATS,
            "Check its path and permissions.",
        ) from error
    if Path(path).suffix == ".npz":
        return _read_archive(data)
    return read_image(data, frame=frame)


def strip_identity(data: bytes) -> bytes:
    """Return a DICOM file with the same picture and only the attributes that are parsed.

    Raises
    ------
    ImageError
        If the file is not a DICOM file, or cannot be rewritten.
    """
    with _reading():
        if not is_dicom(data):
            raise refusal("The file is not a DICOM file.", "Only these are stripped.", EXPORT)
        with refusing("The DICOM header"):
            return without_identity(data)


def thumbnail(image: Image, size: int) -> bytes:
    """Return a grey JPEG whose longest side is ``size`` px."""
    picture = PIL.Image.fromarray(image.display).convert("L")
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    file = BytesIO()
    picture.resize((width, height), PIL.Image.Resampling.LANCZOS).save(file, "JPEG", quality=85)
    return file.getvalue()


# NumPy archives, which are read from disk only: nobody uploads them


def _read_archive(data: bytes) -> Image:
    """Read ``slo_fundus`` [rows, columns] of a .npz file, without unpickling anything.

    Its values are 0 to 255, or fractions of 1.
    """
    if len(data) > MAX_BYTES:
        raise too_many_bytes(f"The file has {len(data):,} bytes.")
    with refusing("The NumPy archive"):
        with zipfile.ZipFile(BytesIO(data)) as archive:
            size = archive.getinfo("slo_fundus.npy").file_size
        if size > MAX_BYTES:
            raise too_many_bytes("Its picture inflates to more than is read.")
        with np.load(BytesIO(data), allow_pickle=False) as arrays:
            pixels = arrays["slo_fundus"]
        if pixels.ndim != 2 or pixels.dtype.kind not in "uif":
            raise ValueError("not a grey picture")
        check_size(*pixels.shape)
        if pixels.dtype != np.uint8:
            values = np.nan_to_num(pixels.astype(np.float32))
            top = 1.0 if values.max() <= 1.0 else 255.0
            pixels = np.round(values.clip(0.0, top) * (255.0 / top)).astype(np.uint8)
    rows, columns = pixels.shape
    tags = {"format": "NPZ", "rows x columns": f"{rows} x {columns}", "colour": "grey"}
    digest = hashlib.sha256(data).hexdigest()
    return Image(display=pixels, values=pixels, tags=tags, sha256=digest)


# PNG and JPEG


def _read_picture(data: bytes, frame: int) -> Image:
    """Read a PNG or JPEG file: apply EXIF orientation, and lay transparent parts over black."""
    with refusing("The PNG or JPEG picture"):
        picture = _open_picture(data)
        check_frame(frame, 1)
        lossy, pictures = picture.format != "PNG", getattr(picture, "n_frames", 1)
        orientation = picture.getexif().get(0x0112, 1)
        picture.load()
        sixteen_bit = picture.mode.startswith("I")
        grey = sixteen_bit or picture.mode in ("1", "L", "LA")
        tags = {
            "format": "JPEG" if lossy else "PNG",
            "rows x columns": f"{picture.height} x {picture.width}",
            "bits stored": "16" if sixteen_bit else "1" if picture.mode == "1" else "8",
            "colour": "grey" if grey else picture.mode,
        }
        notes = ["The picture was compressed with loss (JPEG)."] if lossy else []
        if pictures > 1:
            notes.append(f"The file holds {pictures} pictures; this is the first.")
        if orientation in range(2, 9):
            picture = PIL.ImageOps.exif_transpose(picture)
            notes.append("The picture was turned as its EXIF orientation asks.")
        if picture.has_transparency_data and not sixteen_bit:
            black = PIL.Image.new("RGBA", picture.size, "black")
            picture = PIL.Image.alpha_composite(black, picture.convert("RGBA"))
            notes.append("Transparent parts were laid over black.")
        if not sixteen_bit:
            picture = picture.convert("L" if grey else "RGB")
        pixels = np.array(picture)

    display = pixels
    if sixteen_bit:
        display, note = show_full_range(pixels, np.ones(pixels.shape, bool))
        notes.append(note)
    return Image(
        display=display,
        values=native(pixels) if grey else None,
        tags=tags,
        notes=tuple(notes),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _open_picture(data: bytes) -> PIL.Image.Image:
    """Open a PNG or JPEG file of one picture and an allowed size, before it is decoded."""
    try:
        picture = PIL.Image.open(BytesIO(data), formats=("PNG", "JPEG"))
    except PIL.Image.DecompressionBombError as error:
        raise refusal(
            "The picture has far too many pixels.",
            f"At most {MAX_PIXELS:,} are read.",
            "Export it at a lower resolution.",
        ) from error
    check_size(picture.height, picture.width)
    if picture.format == "PNG" and getattr(picture, "n_frames", 1) > 1:
        raise refusal("The PNG file is animated.", FORMATS, "Export one of its frames.")
    return picture
