"""One file's bytes to one :class:`~mrrag.types.Image`: DICOM, PNG and JPEG.

Everything happens in memory; nothing is written. A grey DICOM frame passes through the
Standard's pipeline in its order: stored values, modality LUT, VOI LUT or window, MONOCHROME1
inversion (PS3.4 N.2). This module does not know who the patient is (only the attributes
listed below are ever parsed), what a model wants as its input, or what is in the picture.

Decoders: Pillow for PNG, JPEG and colour JPEG inside DICOM, pydicom for uncompressed and
RLE frames, imagecodecs (libjpeg-turbo, CharLS, OpenJPEG) for every other compression.
"""

from __future__ import annotations

import hashlib
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels import apply_color_lut, apply_rescale, apply_windowing, get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    UID_dictionary,
)
from pydicom.valuerep import VR

from mrrag.errors import ImageError
from mrrag.types import Image, Window

__all__ = ["MAX_BYTES", "MAX_PIXELS", "load_image", "read_image", "thumbnail", "to_pil"]

Array = npt.NDArray[Any]

# The largest clinical radiograph is a 24 × 30 cm mammogram at 50 µm: 4,800 × 6,000 pixels.
MAX_PIXELS = 2**25
# Such a radiograph, uncompressed at two bytes a pixel. Also the limit after inflation.
MAX_BYTES = 2**26

FORMATS = "DICOM, PNG and JPEG files are read."
EXPORT = "Export the picture again from its source as DICOM, PNG or JPEG."

# The only attributes that are parsed. None of them says who the patient is.
REQUIRED = (
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
)
TRANSFORMS = (
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "WindowCenterWidthExplanation",
    "VOILUTFunction",
    "VOILUTSequence",
    "PixelSpacing",
)
PALETTE_DATA = tuple(
    f"{kind}{colour}PaletteColorLookupTable{part}"
    for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    for colour in ("Red", "Green", "Blue")
)
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
ATTRIBUTES = (
    *("SOPClassUID", "Modality", "ViewPosition", "ImagerPixelSpacing", "BurnedInAnnotation"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "NumberOfFrames"),
    *("PlanarConfiguration", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *REQUIRED,
    *TRANSFORMS,
    *PALETTE_DATA,
    *PIXELS,
)

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"

# Transfer syntax (PS3.5 annex A) → decoder of one frame; None is pydicom's own.
DECODERS: dict[str, Callable[[bytes], Array] | None] = {
    ImplicitVRLittleEndian: None,
    ExplicitVRLittleEndian: None,
    ExplicitVRBigEndian: None,
    DeflatedExplicitVRLittleEndian: None,
    RLELossless: None,
    JPEGBaseline8Bit: imagecodecs.jpeg8_decode,
    JPEGExtended12Bit: imagecodecs.jpeg8_decode,
    "1.2.840.10008.1.2.4.53": imagecodecs.jpeg8_decode,  # spectral selection, retired
    "1.2.840.10008.1.2.4.55": imagecodecs.jpeg8_decode,  # full progression, retired
    JPEGLossless: imagecodecs.jpeg8_decode,
    JPEGLosslessSV1: imagecodecs.jpeg8_decode,
    JPEGLSLossless: imagecodecs.jpegls_decode,
    JPEGLSNearLossless: imagecodecs.jpegls_decode,
    JPEG2000Lossless: imagecodecs.jpeg2k_decode,
    JPEG2000: imagecodecs.jpeg2k_decode,
    HTJ2KLossless: imagecodecs.jpeg2k_decode,
    HTJ2KLosslessRPCL: imagecodecs.jpeg2k_decode,
    HTJ2K: imagecodecs.jpeg2k_decode,
}
DCT_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit)

# What people upload by mistake, by the bytes it begins with.
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

# One file at a time: it bounds memory, and two readers cannot restore each other's filters.
_reading = threading.Lock()


def read_image(data: bytes, *, frame: int = 0) -> Image:
    """Read one frame of a DICOM, PNG or JPEG file, found by its content.

    Parameters
    ----------
    data : bytes
        The whole file; at most ``MAX_BYTES``.
    frame : int
        Which frame, counted from 0.

    Returns
    -------
    Image
        ``display`` uint8 [rows, columns] or [rows, columns, 3]; ``values`` after the
        modality LUT, in its units (Hounsfield units in CT).

    Raises
    ------
    ImageError
        For anything else, whatever the bytes: what came, what is allowed, what to do.
    """
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(f"The file has {len(data):,} bytes.")
    with _reading, warnings.catch_warnings():
        # Narrow, since filters belong to the process: were another thread to keep this one,
        # only these libraries' remarks on odd files would be lost.
        warnings.filterwarnings("ignore", module=r"(pydicom|PIL|imagecodecs)\b")
        if _is_dicom(data):
            return _read_dicom(data, frame)
        if data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
            return _read_picture(data, frame)
    kinds = [name for magic, name in OTHER_FORMATS.items() if data.startswith(magic)]
    what = kinds[0] if kinds else "empty" if not data else "of a kind that is not known here"
    raise _refusal(f"The file is {what}.", FORMATS, EXPORT)


def load_image(path: str | Path, *, frame: int = 0) -> Image:
    """Read an image file from disk: see :func:`read_image`."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refusal(
            f"The image file could not be opened ({error.strerror or 'no reason given'}).",
            FORMATS,
            "Check its path and permissions.",
        ) from error
    return read_image(data, frame=frame)


def to_pil(image: Image) -> PIL.Image.Image:
    """Return ``display`` as a Pillow image of mode L or RGB."""
    return PIL.Image.fromarray(image.display)


def thumbnail(image: Image, size: int) -> bytes:
    """Return a grey JPEG whose longest side is ``size`` px."""
    picture = to_pil(image).convert("L")
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    file = BytesIO()
    picture.resize((width, height), PIL.Image.Resampling.LANCZOS).save(file, "JPEG", quality=85)
    return file.getvalue()


def _refusal(came: str, allowed: str, do: str) -> ImageError:
    return ImageError(f"{came} {allowed} {do}")


def _too_many_bytes(came: str) -> ImageError:
    return _refusal(
        came,
        f"At most {MAX_BYTES:,} bytes are read.",
        "Export one frame, or compress the picture without loss.",
    )


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn whatever a library raises on damaged bytes into a refusal, around its call alone."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # pydicom, Pillow and the codecs raise many kinds
        raise _refusal(
            f"{what} could not be read: the file is damaged, cut short, or not what it says.",
            FORMATS,
            EXPORT,
        ) from error


def _check_size(rows: int, columns: int) -> None:
    if rows < 1 or columns < 1 or rows * columns > MAX_PIXELS:
        raise _refusal(
            f"The picture is said to have {rows:,} rows and {columns:,} columns.",
            f"Both must be at least 1, and rows × columns at most {MAX_PIXELS:,}.",
            "Export it at a lower resolution.",
        )


def _check_frame(frame: int, frames: int) -> None:
    if not 0 <= frame < frames:
        raise _refusal(
            f"Frame {frame + 1} was asked for.",
            f"The file has {frames} frame{'s' * (frames > 1)}, counted from 1.",
            "Ask for one of these.",
        )


# PNG and JPEG


def _read_picture(data: bytes, frame: int) -> Image:
    """Read a PNG or JPEG file: EXIF orientation applied, transparency laid over black."""
    with _refusing("The PNG or JPEG picture"):
        try:
            picture: PIL.Image.Image = PIL.Image.open(BytesIO(data), formats=("PNG", "JPEG"))
        except PIL.Image.DecompressionBombError as error:
            raise _refusal(
                "The picture has far too many pixels.",
                f"At most {MAX_PIXELS:,} are read.",
                "Export it at a lower resolution.",
            ) from error
        _check_size(picture.height, picture.width)
        kind, pictures = picture.format, getattr(picture, "n_frames", 1)
        if kind == "PNG" and pictures > 1:
            raise _refusal("The PNG file is animated.", FORMATS, "Export one of its frames.")
        _check_frame(frame, 1)
        orientation = picture.getexif().get(0x0112, 1)
        picture.load()
        sixteen_bit = picture.mode.startswith("I")
        grey = sixteen_bit or picture.mode in ("1", "L", "LA")
        lossy = kind != "PNG"
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

    values = _native(pixels) if grey else None
    if sixteen_bit:
        display, note = _show_full_range(pixels, np.ones(pixels.shape, bool))
        notes.append(note)
    else:
        display = pixels
    return Image(
        display=display,
        values=values,
        tags=tags,
        notes=tuple(notes),
        sha256=hashlib.sha256(data).hexdigest(),
    )


# DICOM


def _is_dicom(data: bytes) -> bool:
    """Tell DICOM by its content: PS3.10 7.1, or a data set that lacks the preamble.

    Without one, the first element must be of group 0002 or 0008 and either name a value
    representation (PS3.5 7.1.2) or, in implicit VR, give a length that fits.
    """
    if data[128:132] == b"DICM":
        return True
    if len(data) < 16:
        return False
    known_vr = data[4:6].decode("latin-1") in set(VR)
    if data[:2] == b"\0\x08":  # big endian, which is never implicit
        return known_vr
    if data[:2] not in (b"\x02\0", b"\x08\0"):
        return False
    (length,) = struct.unpack_from("<I", data, 4)
    return known_vr or (length % 2 == 0 and length <= len(data) - 8)


def _read_dicom(data: bytes, frame: int) -> Image:
    """Read one frame of a DICOM file through the pipeline of PS3.4 N.2."""
    with _refusing("The DICOM header"):
        dataset = _parse(data)
        _check_header(dataset)
        frames = int(dataset.get("NumberOfFrames") or 1)
        _check_frame(frame, frames)
        _flatten_functional_groups(dataset, frame)
        tags = _read_tags(dataset)
        notes = _read_notes(dataset, frame, frames)
        photometric = str(dataset.PhotometricInterpretation)
    with _refusing(f"The pixel data ({tags['transfer syntax']})"):
        pixels = _decode_frame(dataset, frame, frames)

    values, windows, inverted = None, (), photometric == "MONOCHROME1"
    with _refusing("The DICOM display attributes (palette, modality LUT, VOI LUT, windows)"):
        if photometric in GREY:
            shown = ~_find_padding(pixels, dataset)
            values = _apply_modality_lut(pixels, dataset)
            windows, unusable = _read_windows(dataset)
            display, note = _apply_voi(values, shown, dataset, windows)
            notes += [*unusable, note]
            if inverted:
                display = 255 - display
                notes.append("MONOCHROME1: low values are shown bright.")
            if not shown.all():
                display[~shown] = 0
                notes.append(f"Padding ({1 - shown.mean():.1%} of the pixels) is shown black.")
        elif photometric == PALETTE:
            display = _apply_palette(pixels, dataset)
        else:
            display = _scale(pixels, 0, 2 ** int(dataset.BitsStored) - 1)
    return Image(
        display=np.ascontiguousarray(display),
        values=values,
        windows=windows,
        inverted=inverted,
        frame=frame,
        frames=frames,
        tags=tags,
        notes=tuple(notes),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _parse(data: bytes) -> Dataset:
    """Parse the attributes on the list, and no others, whatever the transfer syntax."""
    if data[128:132] == b"DICM":
        stream = BytesIO(data)
        stream.seek(132)
        meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag.group != 2)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            # PS3.5 A.5. Counted first, since pydicom inflates without a limit.
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            if len(inflater.decompress(stream.read(), MAX_BYTES + 1)) > MAX_BYTES:
                raise _too_many_bytes("The file inflates to more than is read.")
    dataset = dcmread(BytesIO(data), force=True, specific_tags=list(ATTRIBUTES))
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian
            if implicit
            else ExplicitVRLittleEndian
            if little
            else ExplicitVRBigEndian
        )
    return dataset


def _check_header(dataset: Dataset) -> None:
    """Refuse, before anything is decoded, what is not a picture that is read here."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not any(keyword in dataset for keyword in PIXELS):
        kind = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
        raise _refusal(
            f"The DICOM file ({_uid_name(kind)}) has no pixel data, or is cut short before it.",
            "DICOM images are read; reports, documents, plans and signals are not.",
            "Choose the study's image instead.",
        )
    if syntax not in DECODERS:
        raise _refusal(
            f"The DICOM file's transfer syntax is {_uid_name(syntax)}.",
            "Uncompressed, RLE, JPEG, JPEG-LS and JPEG 2000 pixels are read; video is not.",
            "Export a still picture, without compression if there is a choice.",
        )
    if "PixelData" not in dataset:
        raise _refusal(
            "The DICOM file's pixels are floating-point numbers (a parametric map).",
            "Pixels must be whole numbers, as in radiographs.",
            "Choose the picture that the map was made from.",
        )
    missing = [keyword for keyword in REQUIRED if dataset.get(keyword) is None]
    if missing:
        raise _refusal(
            f"The DICOM header lacks {', '.join(missing)}.",
            f"An image must have {', '.join(REQUIRED)}.",
            EXPORT,
        )
    _check_size(int(dataset.Rows), int(dataset.Columns))
    samples, photometric = int(dataset.SamplesPerPixel), str(dataset.PhotometricInterpretation)
    if samples != {**dict.fromkeys((*GREY, PALETTE), 1), **dict.fromkeys(COLOUR, 3)}.get(
        photometric
    ):
        raise _refusal(
            f"The DICOM header gives {samples} samples a pixel and a photometric"
            f" interpretation of {_code(photometric) or 'no known form'}.",
            f"{', '.join((*GREY, PALETTE))} have 1 sample, and {', '.join(COLOUR)} have 3.",
            EXPORT,
        )


def _flatten_functional_groups(dataset: Dataset, frame: int) -> None:
    """Lift one frame's transforms to the top level (PS3.3 C.7.6.16: a frame's own win)."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*shared[:1], *own[frame : frame + 1]):
        for macro in (
            "PixelMeasuresSequence",
            "PixelValueTransformationSequence",
            "FrameVOILUTSequence",
        ):
            for item in (group.get(macro) or [])[:1]:
                for keyword in TRANSFORMS:
                    if keyword in item:
                        dataset[keyword] = item[keyword]


def _uid_name(uid: object) -> str:
    """Return a registered UID's name, and nothing of an unregistered one."""
    return UID(str(uid)).name if str(uid) in UID_dictionary else "of an unregistered kind"


def _code(value: object) -> str:
    """Return a code string (PS3.5 6.2, CS), or nothing where the value is not one."""
    text = str(value or "").strip()
    return text if re.fullmatch(r"[A-Z0-9_ ]{1,16}", text) else ""


def _number(value: object) -> str:
    """Return a decimal number, or several joined by x, shortly; nothing otherwise."""
    try:
        numbers = [float(number) for number in _as_list(value)]
    except (TypeError, ValueError):
        return ""
    return " x ".join(f"{number:.4g}" for number in numbers[:2] if isfinite(number))


def _as_list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, (str, int, float)) else list(value)


def _read_tags(dataset: Dataset) -> dict[str, str]:
    """Return the technical attributes that are shown, in a form that can carry no name."""
    spacing = _number(dataset.get("PixelSpacing")) or _number(dataset.get("ImagerPixelSpacing"))
    tags = {
        "modality": _code(dataset.get("Modality")),
        "view position": _code(dataset.get("ViewPosition")),
        "rows x columns": f"{int(dataset.Rows)} x {int(dataset.Columns)}",
        "bits stored": f"{int(dataset.BitsStored)}",
        "photometric interpretation": _code(dataset.PhotometricInterpretation),
        "transfer syntax": _uid_name(dataset.file_meta.TransferSyntaxUID),
        "pixel spacing": f"{spacing} mm" if spacing else "",
        "burned-in annotation": _code(dataset.get("BurnedInAnnotation")),
        "lossy compression": {"00": "no", "01": "yes"}.get(
            str(dataset.get("LossyImageCompression")), ""
        ),
    }
    return {name: value for name, value in tags.items() if value}


def _read_notes(dataset: Dataset, frame: int, frames: int) -> list[str]:
    """Say what a reader should know before trusting the picture."""
    notes = [f"Frame {frame + 1} of {frames}."] if frames > 1 else []
    if dataset.get("LossyImageCompression") == "01":  # PS3.3 C.7.6.1.1.5
        ratio = _number(_as_list(dataset.get("LossyImageCompressionRatio"))[-1:])
        notes.append(
            "The picture was compressed with loss" + (f" ({ratio} to 1)." if ratio else ".")
        )
    burned_in = dataset.get("BurnedInAnnotation")  # PS3.3 C.7.6.1
    if burned_in == "YES":
        notes.append("The header says that text is burned in; it may name the patient.")
    elif burned_in != "NO":
        notes.append("The header does not exclude burned-in text, which could name the patient.")
    return notes


# DICOM pixels


class _Codestream(NamedTuple):
    """What a compressed frame says of itself, before it is decoded."""

    rows: int
    columns: int
    samples: int
    precision: int


def _read_codestream(code: bytes) -> _Codestream:
    """Read the frame header of JPEG or JPEG-LS (T.81 B.2.2), or the SIZ marker of J2K (T.800 A.5)."""
    size = code.find(b"\xff\x4f\xff\x51")
    if size >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", code, size + 8)
        samples, precision = struct.unpack_from(">HB", code, size + 40)
        return _Codestream(bottom - top, right - left, samples, (precision & 0x7F) + 1)
    at = 2
    while True:
        marker, length = struct.unpack_from(">HH", code, at)
        if marker == 0xFFFF:  # a fill byte
            at += 1
        elif marker == 0xFFF7 or (0xFFC0 <= marker <= 0xFFCF and marker & 3 != 0 or marker == 0xFFC0):
            precision, rows, columns, samples = struct.unpack_from(">BHHB", code, at + 4)
            return _Codestream(rows, columns, samples, precision)
        elif marker < 0xFFC0:
            raise ValueError("no JPEG marker where one must be")
        else:
            at += 2 + length
