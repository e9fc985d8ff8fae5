"""One file's bytes to one :class:`~mrrag.types.Image`: DICOM, PNG and JPEG.

Everything happens in memory; nothing is written. A grey DICOM frame passes through the
Standard's pipeline in its order: stored values, modality LUT, VOI LUT or window, MONOCHROME1
inversion (PS3.4 N.2). This module does not know who the patient is (only the attributes
listed below are ever parsed), what a model wants as its input, or what is in the picture.

Decoders: Pillow for PNG and JPEG files; imagecodecs (libjpeg-turbo, CharLS, OpenJPEG, PackBits)
for compressed DICOM frames, since GDCM ends the whole process on many damaged ones.
"""

from __future__ import annotations

import hashlib
import re
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps
from pydicom import dcmread, dcmwrite, uid
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame, parse_fragments
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_rescale
from pydicom.pixels.utils import as_pixel_options
from pydicom.tag import Tag
from pydicom.valuerep import VR

from mrrag.errors import ImageError
from mrrag.types import Image, Window

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "apply_window",
    "load_image",
    "read_image",
    "strip_identity",
    "thumbnail",
    "to_pil",
    "window_grey",
]

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
# The functional groups that hold them in a multi-frame file (PS3.3 C.7.6.16).
MACROS = ("PixelMeasuresSequence", "PixelValueTransformationSequence", "FrameVOILUTSequence")
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

TAGS = tuple(Tag(keyword) for keyword in ATTRIBUTES)

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"

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
    with _reading, disable_value_validation(), warnings.catch_warnings():
        # Validation would log values. The filter is narrow, since filters belong to the process:
        # were another thread to keep it, only these libraries' remarks would be lost.
        warnings.filterwarnings("ignore", module=r"(pydicom|PIL|imagecodecs)\b")
        if _is_dicom(data):
            return _read_dicom(data, frame)
        if data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
            return _read_picture(data, frame)
    kinds = [name for magic, name in OTHER_FORMATS.items() if data.startswith(magic)]
    what = kinds[0] if kinds else "empty" if not data else "of a kind that is not known here"
    raise _refusal(f"The file is {what}.", FORMATS, EXPORT)


def load_image(path: str | Path, *, frame: int = 0) -> Image:
    """Read an image file from disk: see :func:`read_image`.

    A NumPy archive of Harvard-FairVLMed is read too, by its ``slo_fundus``.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refusal(
            f"The image file could not be opened ({error.strerror or 'no reason given'}).",
            FORMATS,
            "Check its path and permissions.",
        ) from error
    if Path(path).suffix == ".npz":
        return _read_archive(data)
    return read_image(data, frame=frame)


def apply_window(image: Image, window: Window, *, invert: bool = False) -> Image:
    """Return the picture as another window shows it; ``invert`` turns the greys around.

    Raises
    ------
    ImageError
        Where the picture has no ``values`` to look at, or the window is none.
    """
    if image.values is None:
        raise _refusal(
            "This picture has no grey values to apply a window to.",
            "Grey pictures whose values were kept can be windowed; colours are shown as they are.",
            "Use the picture as it is.",
        )
    display = window_grey(image.values, window, image.voi_function)
    if image.inverted != invert:
        display = 255 - display
    if image.padding is not None:
        display[image.padding] = 0
    note = (
        f"Instead of that, shown through the window chosen by hand (centre {window.center:g}, "
        f"width {window.width:g}{', inverted' if invert else ''})."
    )
    return replace(image, display=display, notes=(*image.notes, note))


def window_grey(values: Array, window: Window, function: str) -> npt.NDArray[np.uint8]:
    """Map modality values to greys, dark to bright (PS3.3 C.11.2.1.2.1 and C.11.2.1.3).

    Raises
    ------
    ImageError
        Where the centre or width is not finite, or the width is too small for ``function``.
    """
    center, width, linear = window.center, window.width, function == "LINEAR"
    if not (isfinite(center) and isfinite(width)) or width <= 0 or (linear and width < 1):
        raise _refusal(
            f"The window has a centre of {center:g} and a width of {width:g}.",
            f"Both must be finite, and the width {'at least 1' if linear else 'more than 0'}.",
            "Choose another window.",
        )
    if values.dtype.kind in "iu" and values.itemsize <= 2 and values.size > 2**16:
        # Fewer values than pixels: look each of them up.
        first = np.iinfo(values.dtype).min
        table = np.arange(first, np.iinfo(values.dtype).max + 1)
        return window_grey(table, window, function)[values.astype(np.int32) - first]
    x = values.astype(np.float64)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):  # exp reaches infinity, and the grey 0
            grey = 255 / (1 + np.exp(-4 * (x - center) / width))
    else:
        if linear:
            center, width = center - 0.5, width - 1
        inside = (x > center - width / 2) & (x <= center + width / 2)
        grey = np.where(x > center, 255.0, 0.0)
        if width > 0:  # a linear window of width 1 is a threshold
            np.copyto(grey, ((x - center) / width + 0.5) * 255, where=inside)
    return np.rint(grey).astype(np.uint8)


def strip_identity(data: bytes) -> bytes:
    """Return a DICOM file that reads alike and holds only the attributes that are parsed.

    Raises
    ------
    ImageError
        Where the file is no DICOM file, or cannot be written again.
    """
    with _reading, disable_value_validation(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(pydicom|PIL|imagecodecs)\b")
        if not _is_dicom(data):
            raise _refusal("The file is not a DICOM file.", "Only these are stripped.", EXPORT)
        with _refusing("The DICOM header"):
            dataset = _parse(data)
            for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
                for group in dataset.get(groups) or []:
                    for element in list(group):
                        if element.keyword not in MACROS:
                            del group[element.tag]
            meta = FileMetaDataset()
            meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
            dataset.file_meta, dataset.preamble = meta, b"\0" * 128
            stripped = BytesIO()
            dcmwrite(stripped, dataset, enforce_file_format=False)
    return stripped.getvalue()


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


# NumPy archives, from disk only: nobody uploads them


def _read_archive(data: bytes) -> Image:
    """Read ``slo_fundus`` [rows, columns] of an .npz, bytes or fractions of one, unpickled."""
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(f"The file has {len(data):,} bytes.")
    with _refusing("The NumPy archive"):
        with zipfile.ZipFile(BytesIO(data)) as archive:
            size = archive.getinfo("slo_fundus.npy").file_size
        if size > MAX_BYTES:
            raise _too_many_bytes("Its picture inflates to more than is read.")
        with np.load(BytesIO(data), allow_pickle=False) as arrays:
            pixels = arrays["slo_fundus"]
        if pixels.ndim != 2 or pixels.dtype.kind not in "uif":
            raise ValueError("not a grey picture")
        _check_size(*pixels.shape)
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
        notes = _read_notes(dataset, tags.get("lossy compression") == "yes", frame, frames)
        photometric = str(dataset.PhotometricInterpretation)
    with _refusing(f"The pixel data ({tags['transfer syntax']})"):
        pixels = _decode_frame(dataset, frame, frames)

    values: Array | None = None
    padding: npt.NDArray[np.bool_] | None = None
    windows: tuple[Window, ...] = ()
    inverted = photometric == "MONOCHROME1"
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
                padding = ~shown
                display[padding] = 0
                notes.append(f"Padding ({1 - shown.mean():.1%} of the pixels) is shown black.")
        elif photometric == PALETTE:
            display = _apply_palette(pixels, dataset)
        else:
            display = _scale(pixels, 0, 2 ** int(dataset.BitsStored) - 1)
    return Image(
        display=np.ascontiguousarray(display),
        values=values,
        windows=windows,
        voi_function=str(dataset.get("VOILUTFunction") or "LINEAR") if windows else "LINEAR",
        inverted=inverted,
        padding=padding,
        frame=frame,
        frames=frames,
        tags=tags,
        notes=tuple(notes),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _parse(data: bytes) -> Dataset:
    """Parse the attributes on the list, and no others, whatever the transfer syntax."""
    stream = BytesIO(data)
    stream.seek(132 if data[128:132] == b"DICM" else 0)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag.group != 2)
    if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:  # PS3.5 A.5
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(), MAX_BYTES + 1)
        if len(inflated) > MAX_BYTES:
            raise _too_many_bytes("The file inflates to more than is read.")
        dataset = read_dataset(BytesIO(inflated), False, True, specific_tags=list(TAGS))
        dataset.file_meta = FileMetaDataset(meta)
        return dataset
    dataset = dcmread(BytesIO(data), force=True, specific_tags=list(TAGS))
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            uid.ImplicitVRLittleEndian
            if implicit
            else uid.ExplicitVRLittleEndian
            if little
            else uid.ExplicitVRBigEndian
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
        for macro in MACROS:
            for item in (group.get(macro) or [])[:1]:
                for keyword in TRANSFORMS:
                    if keyword in item:
                        dataset[keyword] = item[keyword]


def _uid_name(value: object) -> str:
    """Return a registered uid.UID's name, and nothing of an unregistered one."""
    name = uid.UID(str(value)).name
    return name if name != str(value) else "of an unregistered kind"


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
    if dataset.file_meta.TransferSyntaxUID in ALWAYS_LOSSY:
        tags["lossy compression"] = "yes"
    return {name: value for name, value in tags.items() if value}


def _read_notes(dataset: Dataset, lossy: bool, frame: int, frames: int) -> list[str]:
    """Say what a reader should know before trusting the picture."""
    notes = [f"Frame {frame + 1} of {frames}."] if frames > 1 else []
    if lossy:  # PS3.3 C.7.6.1.1.5
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


# DICOM pixels: one decoder per family of transfer syntaxes, then pydicom for all of them

J2K = b"\xff\x4f\xff\x51"  # SOC and SIZ, with which every JPEG 2000 codestream begins
MAX_TRAILING_BYTES = 16  # after the end marker, beside any zeros: some writers leave a few


class _Codestream(NamedTuple):
    """What a compressed frame says of itself before it is decoded; colour may be unsaid."""

    rows: int
    columns: int
    samples: int
    precision: int
    colour: str = ""


def _read_codestream(code: bytes) -> _Codestream:
    """Read J2K's SIZ marker (T.800 A.5.1), or JPEG's or JPEG-LS's frame header (T.81 B.2.2).

    JPEG's colour is what libjpeg takes it for: by JFIF, else Adobe's marker, else the names.
    """
    if code.startswith(J2K):
        right, bottom, left, top = struct.unpack_from(">4I", code, 8)
        samples, precision = struct.unpack_from(">HB", code, 40)
        return _Codestream(bottom - top, right - left, samples, (precision & 0x7F) + 1)
    at, colour = 2, ""
    while True:
        marker, length = struct.unpack_from(">HH", code, at)
        if marker < 0xFFC0:
            raise ValueError("there is no marker where one must be")
        # C4, C8 and CC are tables; the rest of C0 to CF, and JPEG-LS's F7, are frame headers.
        if marker == 0xFFF7 or marker == 0xFFC0 or (marker <= 0xFFCF and marker % 4):
            precision, rows, columns, samples = struct.unpack_from(">BHHB", code, at + 4)
            if not colour and code[at + 10 : at + 19 : 3] in (b"RGB", b"rgb"):
                colour = "RGB"
            return _Codestream(rows, columns, samples, precision, colour)
        if marker == 0xFFE0 and code[at + 4 : at + 9] == b"JFIF\0":
            colour = "YBR_FULL"
        elif marker == 0xFFEE and length >= 14 and code[at + 4 : at + 9] == b"Adobe":
            colour = colour or ("YBR_FULL" if code[at + 15] else "RGB")
        at += 1 if marker == 0xFFFF else 2 + length  # FF may fill


def _check_codestream(code: bytes, dataset: Dataset) -> tuple[bytes, _Codestream]:
    """Refuse a frame whose size is not the header's, or that has no end marker.

    Decoders allocate by the one and search for the other, CharLS without end.
    """
    end = code.rindex(b"\xff\xd9") + 2
    if len(code.rstrip(b"\0")) - end > MAX_TRAILING_BYTES:
        raise ValueError("the frame is cut short")
    stream = _read_codestream(code)
    said = tuple(int(dataset[name].value) for name in ("Rows", "Columns", "SamplesPerPixel"))
    if stream[:3] != said:
        raise _refusal(
            "The compressed frame has {} rows, {} columns and {} samples.".format(*stream),
            "The DICOM header says {}, {} and {}, and they must agree.".format(*said),
            EXPORT,
        )
    return code[:end], stream


def _decode_jpeg(code: bytes, dataset: Dataset) -> Array:
    """Decode JPEG (PS3.5 A.4.1 and A.4.2): components as stored, and the name of their colours.

    A lossy frame's own markers outweigh the header, which is often wrong about them.
    """
    code, stream = _check_codestream(code, dataset)
    if stream.samples == 1:
        return imagecodecs.jpeg8_decode(code)
    if stream.colour and dataset.file_meta.TransferSyntaxUID not in LOSSLESS_JPEG:
        dataset.PhotometricInterpretation = stream.colour
    elif dataset.PhotometricInterpretation == "YBR_FULL_422":  # no longer subsampled
        dataset.PhotometricInterpretation = "YBR_FULL"
    return imagecodecs.jpeg8_decode(code, colorspace="RGB", outcolorspace="RGB")  # no change


def _decode_jpeg_ls(code: bytes, dataset: Dataset) -> Array:
    """Decode JPEG-LS (PS3.5 A.4.3)."""
    code, stream = _check_codestream(code, dataset)
    dataset.BitsStored = stream.precision
    return imagecodecs.jpegls_decode(code)


def _decode_jpeg_2000(code: bytes, dataset: Dataset) -> Array:
    """Decode JPEG 2000 and HTJ2K (PS3.5 A.4.4 and A.4.12), in a JP2 file's wrapping or none."""
    code, stream = _check_codestream(code[code.index(J2K) :], dataset)
    dataset.BitsStored = stream.precision
    if dataset.PhotometricInterpretation in ("YBR_ICT", "YBR_RCT"):  # the decoder undoes them
        dataset.PhotometricInterpretation = "RGB"
    pixels = imagecodecs.jpeg2k_decode(code)
    if pixels.dtype.kind == "i":  # the codestream knows; some headers do not
        dataset.PixelRepresentation = 1
    return pixels


def _decode_rle(code: bytes, dataset: Dataset) -> Array:
    """Decode RLE (PS3.5 annex G): a segment for each byte of each sample, highest byte first.

    Not pydicom's, which lets a segment grow to 64 times its length before it looks.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    samples, width = int(dataset.SamplesPerPixel), int(dataset.BitsAllocated) // 8
    count, *starts = struct.unpack_from("<16I", code)
    if width not in (1, 2, 4, 8) or count != samples * width:
        raise ValueError("the number of RLE segments does not fit the samples")
    planes = np.empty((rows * columns, samples * width), np.uint8)
    for i, (start, end) in enumerate(zip(starts, [*starts[1:count], len(code)], strict=False)):
        # Some writers pad a segment, so a little more is let through, and cut.
        segment = imagecodecs.packbits_decode(code[start:end], out=rows * columns + 128)
        planes[:, i] = np.frombuffer(segment, np.uint8, rows * columns)
    return _native(planes.view(f">u{width}").reshape(rows, columns, samples))


# Transfer syntax (PS3.5 annex A) → decoder of one frame; None is not compressed.
DECODERS: dict[str, Callable[[bytes, Dataset], Array] | None] = {
    uid.ImplicitVRLittleEndian: None,
    uid.ExplicitVRLittleEndian: None,
    uid.ExplicitVRBigEndian: None,
    uid.DeflatedExplicitVRLittleEndian: None,
    uid.RLELossless: _decode_rle,
    uid.JPEGBaseline8Bit: _decode_jpeg,
    uid.JPEGExtended12Bit: _decode_jpeg,
    uid.UID("1.2.840.10008.1.2.4.53"): _decode_jpeg,  # spectral selection, retired
    uid.UID("1.2.840.10008.1.2.4.55"): _decode_jpeg,  # full progression, retired
    uid.JPEGLossless: _decode_jpeg,
    uid.JPEGLosslessSV1: _decode_jpeg,
    uid.JPEGLSLossless: _decode_jpeg_ls,
    uid.JPEGLSNearLossless: _decode_jpeg_ls,
    uid.JPEG2000Lossless: _decode_jpeg_2000,
    uid.JPEG2000: _decode_jpeg_2000,
    uid.HTJ2KLossless: _decode_jpeg_2000,
    uid.HTJ2KLosslessRPCL: _decode_jpeg_2000,
    uid.HTJ2K: _decode_jpeg_2000,
}
LOSSLESS_JPEG = (uid.JPEGLossless, uid.JPEGLosslessSV1)
ALWAYS_LOSSY = tuple(
    syntax
    for syntax, decode in DECODERS.items()
    if decode is _decode_jpeg and syntax not in LOSSLESS_JPEG
)


def _decode_frame(dataset: Dataset, frame: int, frames: int) -> Array:
    """Return one frame's stored values, [rows, columns], or RGB [rows, columns, 3].

    A decoded frame takes the compressed ones' place as if it had never been compressed. Then
    pydicom does what is the same for every syntax: it sets the sign (PS3.5 8.2.4 and others
    let a codestream be unsigned where Pixel Representation is not) and converts to RGB.
    """
    decode = DECODERS[dataset.file_meta.TransferSyntaxUID]
    if decode is not None:
        if parse_fragments(dataset.PixelData)[0] - 1 < frames:  # the first is the offset table
            raise ValueError("there are fewer fragments than frames")
        offsets = as_pixel_options(dataset).get("extended_offsets")
        code = get_frame(
            dataset.PixelData, frame, number_of_frames=frames, extended_offsets=offsets
        )
        pixels = decode(code, dataset)
        dataset.add_new("PixelData", "OW", pixels.tobytes())
        dataset.BitsAllocated = 8 * pixels.itemsize
        dataset.BitsStored = min(int(dataset.BitsStored), 8 * pixels.itemsize)
        dataset.PlanarConfiguration = 0
        dataset.NumberOfFrames = 1
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        frame = 0
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    pixels, found = decoder.as_array(dataset, index=frame)
    if dataset.SamplesPerPixel == 3 and (
        found["photometric_interpretation"] != "RGB"
        or (pixels.itemsize > 1 and dataset.PhotometricInterpretation != "RGB")
    ):
        raise ValueError("these colours are not ones that pydicom converts to RGB")
    return _native(pixels)


def _native(pixels: Array) -> Array:
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))


# DICOM grey-scale and colour transforms, in the order of the pipeline


def _is_little(dataset: Dataset) -> bool:
    return bool(dataset.file_meta.TransferSyntaxUID != uid.ExplicitVRBigEndian)


def _find_padding(pixels: Array, dataset: Dataset) -> npt.NDArray[np.bool_]:
    """Find the stored values outside the picture (PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(pixels.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    # Some write a signed value as its unsigned twin: the cast takes it back.
    ends = np.array([value, value if limit is None else limit]).astype(pixels.dtype)
    padding: npt.NDArray[np.bool_] = (pixels >= ends.min()) & (pixels <= ends.max())
    return padding


def _look_up(values: Array, descriptor: Any, data: Any, little: bool) -> Array:
    """Map values through a lookup table (PS3.3 C.11.1.1, C.11.2.1.1 and C.7.6.3.1.5).

    Not pydicom's: 3.0 wraps the index of a table with more than 256 entries of 8 bits.
    """
    count, first, _ = (int(number) for number in descriptor)
    count = count or 2**16
    if isinstance(data, bytes):
        kind = "u1" if len(data) < 2 * count else "<u2" if little else ">u2"
        entries = np.frombuffer(data, kind)
    else:
        entries = np.array(_as_list(data)).astype(np.uint16)
    index = np.clip(np.rint(values), first, first + count - 1).astype(np.int32) - first
    return _native(entries[:count])[index]


def _apply_modality_lut(pixels: Array, dataset: Dataset) -> Array:
    """Turn stored values into the modality's (PS3.3 C.11.1): a table, or slope and intercept."""
    if dataset.get("ModalityLUTSequence"):
        item = dataset.ModalityLUTSequence[0]
        return _look_up(pixels, item.LUTDescriptor, item.LUTData, _is_little(dataset))
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None or (slope == 1 and intercept == 0):
        return pixels
    values: Array = apply_rescale(pixels, dataset).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("the rescale slope or intercept is not finite")
    return values


def _read_windows(dataset: Dataset) -> tuple[tuple[Window, ...], list[str]]:
    """Return the windows that PS3.3 C.11.2.1.2 allows, and a note for each that it does not."""
    function = dataset.get("VOILUTFunction") or "LINEAR"
    notes = []
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        notes.append("The header's VOI LUT function is not known: its windows are taken as linear.")
        function = dataset.VOILUTFunction = "LINEAR"
    names = _as_list(dataset.get("WindowCenterWidthExplanation"))
    pairs = zip(
        _as_list(dataset.get("WindowCenter")), _as_list(dataset.get("WindowWidth")), strict=False
    )
    windows = []
    for i, (center, width) in enumerate((float(c), float(w)) for c, w in pairs):
        if not (isfinite(center) and isfinite(width) and width >= (function == "LINEAR")) or (
            width <= 0
        ):
            notes.append(f"The header's window {i + 1} has a width of {width:g} and was left out.")
            continue
        name = "".join(c for c in str(names[i]) if c.isprintable())[:64] if i < len(names) else ""
        windows.append(Window(name.strip() or f"Window {i + 1}", center, width))
    return tuple(windows), notes


def _apply_voi(
    values: Array, shown: npt.NDArray[np.bool_], dataset: Dataset, windows: tuple[Window, ...]
) -> tuple[npt.NDArray[np.uint8], str]:
    """Turn modality values into a display: VOI LUT, else window, else the full range.

    PS3.3 C.11.2 leaves the choice where a header has both; the table is the more specific.
    """
    tables = [
        item
        for item in dataset.get("VOILUTSequence") or []
        if "LUTDescriptor" in item and "LUTData" in item
    ]
    if tables:
        descriptor, data = tables[0].LUTDescriptor, tables[0].LUTData
        mapped = _look_up(values, descriptor, data, _is_little(dataset))
        return (
            _scale(mapped, 0, 2 ** int(descriptor[2]) - 1),
            "Shown through the header's VOI LUT" + (", not its windows." if windows else "."),
        )
    if windows:
        window = windows[0]
        return (
            window_grey(values, window, dataset.get("VOILUTFunction") or "LINEAR"),
            f"Shown through the header's window “{window.name}”"
            f" (centre {window.center:g}, width {window.width:g}).",
        )
    return _show_full_range(values, shown)


def _show_full_range(
    values: Array, shown: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint8], str]:
    """Spread the shown values linearly over the display, for want of a window."""
    inside = values[shown]
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
    if low == high:
        return np.zeros(values.shape, np.uint8), f"Every pixel has the same value, {low:g}."
    return (
        _scale(values, low, high),
        f"The file gives no window: shown over its full range, {low:g} to {high:g}.",
    )


def _apply_palette(pixels: Array, dataset: Dataset) -> npt.NDArray[np.uint8]:
    """Turn palette indices into RGB (PS3.3 C.7.9), segmented tables by way of pydicom."""
    colours = ("Red", "Green", "Blue")
    top = 2 ** int(dataset.RedPaletteColorLookupTableDescriptor[2]) - 1
    if "RedPaletteColorLookupTableData" not in dataset:
        return _scale(apply_color_lut(pixels, dataset)[..., :3], 0, top)
    planes = [
        _look_up(
            pixels,
            dataset[f"{colour}PaletteColorLookupTableDescriptor"].value,
            dataset[f"{colour}PaletteColorLookupTableData"].value,
            _is_little(dataset),
        )
        for colour in colours
    ]
    return _scale(np.stack(planes, axis=-1), 0, top)


def _scale(values: Array, low: float, high: float) -> npt.NDArray[np.uint8]:
    """Map [low, high] linearly onto 0 to 255, rounding to the nearest and clipping outside."""
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return values.copy()
    scaled = (values.astype(np.float64) - low) * 255 / (high - low)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
