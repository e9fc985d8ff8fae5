"""Reads one frame of a DICOM file: its header, its stored values, and from both a picture.

Only the attributes listed below are ever parsed, so this module never knows who the patient is.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from math import isfinite

import numpy as np
from pydicom import dcmread, dcmwrite, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import VR

from mrrag.data.attributes import as_list, numbers_of
from mrrag.data.codecs import ALWAYS_LOSSY, DECODERS, decode_frame
from mrrag.data.limits import (
    EXPORT,
    MAX_BYTES,
    check_frame,
    check_size,
    refusal,
    refusing,
    too_many_bytes,
)
from mrrag.data.presentation import show_colour, show_grey
from mrrag.data.proportions import SPACINGS
from mrrag.types import Image

__all__ = ["TAGS", "is_dicom", "parse", "read_dicom", "without_identity"]

# The only attributes that are parsed. None of them says who the patient is.
REQUIRED = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel",
    "PhotometricInterpretation",
)  # fmt: skip
TRANSFORMS = (
    "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence", "WindowCenter", "WindowWidth",
    "WindowCenterWidthExplanation", "VOILUTFunction", "VOILUTSequence", "PixelSpacing",
)  # fmt: skip
PALETTE_DATA = tuple(
    f"{kind}{colour}PaletteColorLookupTable{part}"
    for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    for colour in ("Red", "Green", "Blue")
)
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
# The sequences in functional groups that hold the transforms (PS3.3 C.7.6.16).
MACROS = ("PixelMeasuresSequence", "PixelValueTransformationSequence", "FrameVOILUTSequence")
ATTRIBUTES = (
    "SOPClassUID", "Modality", "ViewPosition", "BurnedInAnnotation", "PresentationLUTShape",
    "LossyImageCompression", "LossyImageCompressionRatio", "NumberOfFrames",
    "PlanarConfiguration", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    *SPACINGS[1:], *FUNCTIONAL_GROUPS, *REQUIRED, *TRANSFORMS, *PALETTE_DATA, *PIXELS,
)  # fmt: skip
TAGS = tuple(Tag(keyword) for keyword in ATTRIBUTES)

GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
# Photometric interpretation → samples per pixel.
SAMPLES = {**dict.fromkeys((*GREY, PALETTE), 1), **dict.fromkeys(COLOUR, 3)}


def is_dicom(data: bytes) -> bool:
    """Return whether bytes are a DICOM file (PS3.10 7.1), with or without its preamble.

    Without a preamble, the first element must be of group 0002 or 0008, and either name a
    value representation (PS3.5 7.1.2) or, in implicit VR, give a length that fits.
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


def read_dicom(data: bytes, frame: int) -> Image:
    """Read one frame of a DICOM file.

    Raises
    ------
    ImageError
        If the file holds no picture that is read here, no such frame, or damaged data.
    """
    with refusing("The DICOM header"):
        dataset = parse(data, most=MAX_BYTES)
        _check_header(dataset)
        frames = int(dataset.get("NumberOfFrames") or 1)
        check_frame(frame, frames)
        _flatten_functional_groups(dataset, frame)
        tags = _read_tags(dataset)
        # Decoding may change it.
        photometric = str(dataset.PhotometricInterpretation)
    with refusing(f"The pixel data ({tags['transfer syntax']})"):
        pixels, decoding = decode_frame(dataset, frame, frames)
        if dataset.get("LossyImageCompression") == "01":  # the frame itself may say so
            tags["lossy compression"] = "yes"
        notes = _read_notes(dataset, tags.get("lossy compression") == "yes", frame, frames)
    with refusing("The DICOM display attributes (palette, modality LUT, VOI LUT, windows)"):
        if photometric in GREY:
            image = show_grey(pixels, dataset, inverted=photometric == "MONOCHROME1")
        else:
            image = show_colour(pixels, dataset, palette=photometric == PALETTE)
    return replace(
        image,
        display=np.ascontiguousarray(image.display),
        frame=frame,
        frames=frames,
        tags=tags,
        notes=(*notes, *decoding, *image.notes),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def parse(data: bytes, tags: Sequence[BaseTag] = TAGS, *, most: int) -> Dataset:
    """Return a data set of only the listed attributes, with its transfer syntax set.

    Raises
    ------
    ImageError
        If a deflated file inflates to more than ``most`` bytes. Damaged files raise many other
        exceptions.
    """
    stream = BytesIO(data)
    stream.seek(132 if data[128:132] == b"DICM" else 0)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag.group != 2)
    if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:  # PS3.5 A.5
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(), most + 1)
        if len(inflated) > most:
            raise too_many_bytes("The file inflates to more than is read.")
        dataset = read_dataset(BytesIO(inflated), False, True, specific_tags=list(tags))
        dataset.file_meta = FileMetaDataset(meta)
        return dataset
    dataset = dcmread(BytesIO(data), force=True, specific_tags=list(tags))
    if not dataset.file_meta.get("TransferSyntaxUID"):
        dataset.file_meta.TransferSyntaxUID = _uncompressed_syntax(*dataset.original_encoding)
    return dataset


def _uncompressed_syntax(implicit: bool, little: bool) -> uid.UID:
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def without_identity(data: bytes) -> bytes:
    """Return the DICOM file rewritten with only the listed attributes."""
    dataset = parse(data, most=MAX_BYTES)
    for group in (group for name in FUNCTIONAL_GROUPS for group in dataset.get(name) or []):
        for tag in [element.tag for element in group if element.keyword not in MACROS]:
            del group[tag]
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    dataset.file_meta, dataset.preamble = meta, b"\0" * 128
    stripped = BytesIO()
    dcmwrite(stripped, dataset, enforce_file_format=False)
    return stripped.getvalue()


def _check_header(dataset: Dataset) -> None:
    """Raise ``ImageError``, before anything is decoded, if the file is no readable picture."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not any(keyword in dataset for keyword in PIXELS):
        kind = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
        raise refusal(
            f"The DICOM file ({_uid_name(kind)}) has no pixel data, or is cut short before it.",
            "DICOM images are read; reports, documents, plans and signals are not.",
            "Choose the study's image instead.",
        )
    if syntax not in DECODERS:
        raise refusal(
            f"The DICOM file's transfer syntax is {_uid_name(syntax)}.",
            "Uncompressed, RLE, JPEG, JPEG-LS and JPEG 2000 pixels are read; video is not.",
            "Export a still picture, without compression if there is a choice.",
        )
    if "PixelData" not in dataset:
        raise refusal(
            "The DICOM file's pixels are floating-point numbers (a parametric map).",
            "Pixels must be whole numbers, as in radiographs.",
            "Choose the picture that the map was made from.",
        )
    missing = [keyword for keyword in REQUIRED if dataset.get(keyword) is None]
    if missing:
        raise refusal(
            f"The DICOM header lacks {', '.join(missing)}.",
            f"An image must have {', '.join(REQUIRED)}.",
            EXPORT,
        )
    check_size(int(dataset.Rows), int(dataset.Columns))
    samples, photometric = int(dataset.SamplesPerPixel), str(dataset.PhotometricInterpretation)
    if samples != SAMPLES.get(photometric):
        raise refusal(
            f"The DICOM header gives {samples} samples a pixel and a photometric"
            f" interpretation of {_code(photometric) or 'no known form'}.",
            f"{', '.join((*GREY, PALETTE))} have 1 sample, and {', '.join(COLOUR)} have 3.",
            EXPORT,
        )


def _flatten_functional_groups(dataset: Dataset, frame: int) -> None:
    """Copy one frame's transforms to the top level (PS3.3 C.7.6.16).

    The frame's own take precedence over those that all frames share.
    """
    shared, own = (dataset.get(keyword) or [] for keyword in FUNCTIONAL_GROUPS)
    groups = (*shared[:1], *own[frame : frame + 1])
    items = (item for group in groups for macro in MACROS for item in (group.get(macro) or [])[:1])
    for item in items:
        for keyword in TRANSFORMS:
            if keyword in item:
                dataset[keyword] = item[keyword]


def _uid_name(value: object) -> str:
    """Return the name of a registered UID; never an unregistered UID itself."""
    name = uid.UID(str(value)).name
    return name if name != str(value) else "of an unregistered kind"


def _code(value: object) -> str:
    """Return a value that is a code string (PS3.5 6.2, CS), else ""."""
    text = str(value or "").strip()
    return text if re.fullmatch(r"[A-Z0-9_ ]{1,16}", text) else ""


def _number(value: object) -> str:
    """Return a number, or two joined by "x", to four digits; "" for anything else."""
    try:
        numbers = [float(number) for number in as_list(value)]
    except (TypeError, ValueError):
        return ""
    return " x ".join(f"{number:.4g}" for number in numbers[:2] if isfinite(number))


def _read_tags(dataset: Dataset) -> dict[str, str]:
    """Return the technical attributes to show, in forms that cannot contain a name."""
    spacings = (_number(numbers_of(dataset, keyword)) for keyword in SPACINGS[:3])
    spacing = next(filter(None, spacings), "")
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
    """Return what to know before trusting the picture: frame, lossy compression, burned-in text."""
    notes = [f"Frame {frame + 1} of {frames}."] if frames > 1 else []
    if lossy:  # PS3.3 C.7.6.1.1.5
        ratio = _number(as_list(dataset.get("LossyImageCompressionRatio"))[-1:])
        notes.append(
            "The picture was compressed with loss" + (f" ({ratio} to 1)." if ratio else ".")
        )
    burned_in = dataset.get("BurnedInAnnotation")  # PS3.3 C.7.6.1
    if burned_in == "YES":
        notes.append("The header says that text is burned in; it may name the patient.")
    elif burned_in != "NO":
        notes.append("The header does not exclude burned-in text, which could name the patient.")
    return notes
