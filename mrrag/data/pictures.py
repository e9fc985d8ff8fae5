"""Reads a PNG, JPEG, WebP, TIFF or BMP file as one :class:`~mrrag.types.Image`.

Pillow decodes them. Sizes, storage and the number of pictures are checked on the header first.
Colour profiles and text in the file are ignored. This module does not know DICOM.
Of a damaged TIFF, libtiff prints a line to stderr that says which step failed.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps

from mrrag.data.codecs import native
from mrrag.data.grey import show_full_range
from mrrag.data.limits import (
    EXPORT,
    FORMATS,
    MAX_PIXELS,
    check_frame,
    check_size,
    refusal,
    refusing,
)
from mrrag.errors import ImageError
from mrrag.types import Image

Array = npt.NDArray[Any]

__all__ = ["grey_if_alike", "picture_format", "read_picture"]

# The first bytes of each format, by Pillow's name for it.
MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
}
GREY_MODES = ("1", "L", "LA")  # Pillow's
SAID = {"WEBP": "WebP"}  # where Pillow's name is not the usual one

# How far the channels of a grey picture may lie apart, of 255. JPEG and WebP move them by up to
# 8 where a scanner added colour noise of ±2; a colour that is meant is far stronger.
CHROMA_ERROR = 12

# TIFF's tags and their values (TIFF 6.0, and Adobe's technical notes for deflate).
BITS, COMPRESSION, PHOTOMETRIC, SAMPLE_FORMAT = 258, 259, 262, 339
MIN_IS_WHITE, SIGNED, FLOAT = 0, 2, 3
TIFF_COMPRESSIONS = {1, 5, 8, 32946, 32773}  # none, LZW, deflate (two numbers), PackBits
TIFF_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I;16B", "I"}
TIFF_READ = (
    "TIFF pictures of 8 or 16 whole bits are read: grey, palette or RGB, uncompressed or "
    "compressed by LZW, deflate or PackBits."
)


def picture_format(data: bytes) -> str:
    """Return Pillow's name of a file's format by its first bytes, or "" if it is none of these."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in MAGIC.items() if data.startswith(magic)), "")


def read_picture(data: bytes, frame: int) -> Image:
    """Read a picture: apply EXIF orientation, and lay transparent parts over black.

    Parameters
    ----------
    data : bytes
        A file that :func:`picture_format` names.
    frame : int
        0: of several pictures, the first is read.

    Returns
    -------
    Image
        ``display`` uint8 [rows, columns] or [rows, columns, 3]; ``values`` of grey pictures,
        uint8, uint16 or int16 [rows, columns], bright where they are high.

    Raises
    ------
    ImageError
        If the file is damaged, too large, animated, or stored in a way that is not read.
    """
    name = picture_format(data)
    said = SAID.get(name, name)
    lossy = name == "JPEG" or (name == "WEBP" and _is_lossy_webp(data))
    with refusing(f"The {said} picture"):
        picture = _open_picture(data, name)
        check_frame(frame, 1)
        mode = picture.mode
        notes = [f"The picture was compressed with loss ({said})."] if lossy else []
        notes.extend(_header_notes(picture))
        pixels, done = _decode(picture)
    deep, grey = pixels.dtype != np.uint8, pixels.ndim == 2
    display, full_range = pixels, []
    if deep:
        display, note = show_full_range(pixels, np.ones(pixels.shape, bool))
        full_range = [note]
    tags = {
        "format": said,
        "rows x columns": f"{pixels.shape[0]} x {pixels.shape[1]}",
        "bits stored": "16" if deep else "1" if mode == "1" else "8",
        "colour": "grey" if grey else mode,
    } | ({"lossy compression": "yes"} if lossy and name != "JPEG" else {})
    return Image(
        display=display,
        values=pixels if grey else None,
        tags=tags,
        notes=(*notes, *done, *full_range),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def grey_if_alike(image: Image) -> Image:
    """Return a colour picture whose channels are alike as the grey picture that it is.

    Alike means that at no pixel they differ by more than ``CHROMA_ERROR``, so that even a
    small part in colour (a Doppler overlay, a marker) keeps a picture in colour. The grey is
    the luma of ITU-R BT.601, which is what JPEG stores; equal channels keep their value.

    Returns
    -------
    Image
        ``display`` and ``values`` uint8 [rows, columns]; or the same image, if it is grey
        already or shows colour.
    """
    if image.display.ndim == 2:
        return image
    red, green, blue = (image.display[..., channel] for channel in range(3))
    most = np.maximum(np.maximum(red, green), blue)
    least = np.minimum(np.minimum(red, green), blue)
    if int((most - least).max(initial=0)) > CHROMA_ERROR:
        return image
    grey: npt.NDArray[np.uint8] = np.array(PIL.Image.fromarray(image.display).convert("L"))
    stored = image.tags.get("colour") or image.tags.get("photometric interpretation") or "RGB"
    return replace(
        image,
        display=grey,
        values=grey.copy(),
        tags={**image.tags, "colour": f"grey, stored as {stored}"},
        notes=(*image.notes, "It is stored in colour, but its channels are alike: read as grey."),
    )


def _open_picture(data: bytes, name: str) -> PIL.ImageFile.ImageFile:
    """Open a file that holds one picture of an allowed size and storage, before it is decoded."""
    try:
        picture = PIL.Image.open(BytesIO(data), formats=(name,))
    except PIL.Image.DecompressionBombError as error:
        raise refusal(
            "The picture has far too many pixels.",
            f"At most {MAX_PIXELS:,} are read.",
            "Export it at a lower resolution.",
        ) from error
    except PIL.UnidentifiedImageError as error:
        if name != "TIFF" or len(data) < 64:
            raise
        raise _refused_tiff("The TIFF picture is damaged, or stored in another way.") from error
    check_size(picture.height, picture.width)
    if name == "TIFF":
        _check_tiff(picture)
    if name in ("PNG", "WEBP") and getattr(picture, "n_frames", 1) > 1:
        said = SAID.get(name, name)
        raise refusal(f"The {said} file is animated.", FORMATS, "Export one of its frames.")
    # Pillow unpacks these byte by byte, which takes minutes for a large picture.
    if name == "BMP" and picture.tile and picture.tile[0][0] == "bmp_rle":
        raise refusal("The BMP picture is run-length encoded.", "Other BMP files are read.", EXPORT)
    return picture


def _check_tiff(picture: PIL.ImageFile.ImageFile) -> None:
    """Raise ``ImageError`` if a TIFF picture is stored in a way that is not read."""
    if picture.mode == "F" or _tag(picture, SAMPLE_FORMAT) == FLOAT:
        raise _refused_tiff("The TIFF picture's pixels are floating-point numbers.")
    bits = max(np.atleast_1d(_tag(picture, BITS, 1)))
    if bits > 16:
        raise _refused_tiff(f"The TIFF picture's pixels have {bits} bits.")
    if _tag(picture, COMPRESSION, 1) not in TIFF_COMPRESSIONS:
        raise _refused_tiff("The TIFF picture is compressed in another way.")
    if picture.mode not in TIFF_MODES:
        raise _refused_tiff(f"The TIFF picture's colours are stored as {picture.mode}.")


def _refused_tiff(came: str) -> ImageError:
    return refusal(came, TIFF_READ, "Export it so, or as PNG or DICOM.")


def _tag(picture: PIL.ImageFile.ImageFile, number: int, default: Any = None) -> Any:
    """Return a TIFF tag's value (the first, of several alike), or the default."""
    value = getattr(picture, "tag_v2", {}).get(number, default)
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _count_pictures(picture: PIL.ImageFile.ImageFile) -> str:
    """Return in words how many pictures the file holds, or "" for one.

    A TIFF's pages are not counted, since a hostile file may list millions.
    """
    if picture.format != "TIFF":
        count = getattr(picture, "n_frames", 1)
        return str(count) if count > 1 else ""
    try:
        picture.seek(1)
    except Exception:  # there is no second page, or none that Pillow can read
        return ""
    finally:
        picture.seek(0)
    return "several"


def _header_notes(picture: PIL.ImageFile.ImageFile) -> list[str]:
    """Return what a reader should know of the file that its pixels do not show."""
    notes = []
    pictures = _count_pictures(picture)
    if pictures:
        notes.append(f"The file holds {pictures} pictures; this is the first.")
    if not picture.mode.startswith("I") and picture.tile and ";16" in str(picture.tile[0][3]):
        notes.append("Its 16 bits a channel are read as 8.")
    if _tag(picture, PHOTOMETRIC) == MIN_IS_WHITE:
        notes.append("The file stores white as 0 (MinIsWhite): its values were turned around.")
    return notes


def _decode(picture: PIL.ImageFile.ImageFile) -> tuple[Array, list[str]]:
    """Return an opened picture's pixels, upright, and notes of what was done to them.

    Returns
    -------
    uint8, uint16 or int16 [rows, columns], or uint8 [rows, columns, 3]
        Bright where they are high.
    list of str
        The notes.
    """
    notes, mode = [], picture.mode
    deep = mode.startswith("I")  # 16 bits, or 32 that hold 16 of them with a sign
    orientation = picture.getexif().get(0x0112, 1)
    signed, reverse = _tag(picture, SAMPLE_FORMAT) == SIGNED, _reversed_from(picture)
    picture.load()
    upright: PIL.Image.Image = picture
    if orientation in range(2, 9):
        upright = PIL.ImageOps.exif_transpose(picture)  # Pillow has turned a TIFF already
        notes.append("The picture was turned as its EXIF orientation asks.")
    if deep:
        pixels = np.array(upright)
        pixels = reverse - pixels.astype(np.int32) if reverse else pixels
        return native(pixels.astype(np.int16 if signed else np.uint16)), notes
    upright, cut = _over_black(upright)
    if cut:
        notes.append("Transparent parts were laid over black.")
    return np.array(upright.convert("L" if mode in GREY_MODES else "RGB")), notes


def _reversed_from(picture: PIL.ImageFile.ImageFile) -> int:
    """Return what a 16-bit MinIsWhite TIFF's values are subtracted from; 0 for other pictures.

    Pillow itself turns values of at most 8 bits around.
    """
    signed = _tag(picture, SAMPLE_FORMAT) == SIGNED
    if _tag(picture, PHOTOMETRIC) != MIN_IS_WHITE:
        return 0
    return -1 if signed else int(2 ** int(_tag(picture, BITS, 1)) - 1)


def _over_black(picture: PIL.Image.Image) -> tuple[PIL.Image.Image, bool]:
    """Lay transparent parts over black; also return whether there were any."""
    if not picture.has_transparency_data:
        return picture, False
    clear = picture.convert("RGBA")
    if clear.getchannel("A").getextrema() == (255, 255):
        return clear.convert("RGB"), False
    black = PIL.Image.new("RGBA", picture.size, "black")
    return PIL.Image.alpha_composite(black, clear), True


def _is_lossy_webp(data: bytes) -> bool:
    """Return whether a WebP file's first picture is lossy: a chunk "VP8 " and not "VP8L"."""
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8 "
        at += 8 + size + size % 2
    return False
