"""Reads a DICOM, PNG, JPEG, WebP, TIFF or BMP file as one :class:`~mrrag.types.Image`.

The format is recognised by content, and nothing is written to disk. A picture that is stored in
colour but shows none is read as grey. This module does not know
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
from math import inf
from pathlib import Path

import numpy as np
import PIL.Image
from pydicom.config import disable_value_validation
from pydicom.tag import Tag

from mrrag.data.dicom import is_dicom, parse, read_dicom, without_identity
from mrrag.data.limits import (
    EXPORT,
    FORMATS,
    MAX_BYTES,
    check_size,
    refusal,
    refusing,
    too_many_bytes,
)
from mrrag.data.pictures import grey_if_alike, picture_format, read_picture
from mrrag.types import Image

__all__ = ["load_image", "place_in_series", "read_image", "strip_identity", "thumbnail"]

# Other formats that people upload, by their first bytes.
OTHER_FORMATS = {
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive or an Office document",
    b"\x1f\x8b": "a gzip archive (NIfTI volumes often are)",
    b"GIF8": "a GIF picture",
    b"II+\0": "a BigTIFF picture",
    b"MM\0+": "a BigTIFF picture",
    b"RIFF": "a RIFF file (sounds and videos are)",
    b"\0\0\0\x0cjP": "a bare JPEG 2000 picture",
    b"\xff\x4f\xff\x51": "a bare JPEG 2000 picture",
}

PLACE = tuple(map(Tag, ("SeriesInstanceUID", "SeriesNumber", "InstanceNumber")))

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
    """Read one frame of a DICOM file, or a PNG, JPEG, WebP, TIFF or BMP file, by its content.

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
            return grey_if_alike(read_dicom(data, frame))
        if picture_format(data):
            return grey_if_alike(read_picture(data, frame))
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


def place_in_series(data: bytes) -> tuple[float, str, float]:
    """Return a DICOM file's series number, series and instance number (PS3.3 C.7.3.1, C.7.6.1).

    A number that is not known is infinity, for all three in other formats. They are to sort
    by, not to show.
    """
    unknown = (inf, "", inf)
    with _reading():
        if not is_dicom(data):
            return unknown
        try:
            header = parse(data, PLACE, most=MAX_BYTES)
            given = [header.get(name) for name in ("SeriesNumber", "InstanceNumber")]
            series, instance = (inf if number is None else float(number) for number in given)
            return series, str(header.get("SeriesInstanceUID") or ""), instance
        except Exception:  # pydicom raises many kinds on damaged values
            return unknown


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
