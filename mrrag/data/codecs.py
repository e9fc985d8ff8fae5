"""Decodes DICOM frames: one decoder for each family of compressed transfer syntaxes.

imagecodecs decodes (libjpeg-turbo, CharLS, OpenJPEG, PackBits), because GDCM crashes on many
damaged frames. pydicom then does the steps that all transfer syntaxes have in common. This
module does not know how stored values are displayed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame, parse_fragments
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options

from mrrag.data.limits import EXPORT, refusal

__all__ = ["ALWAYS_LOSSY", "DECODERS", "J2K", "decode_frame", "native"]

Array = npt.NDArray[Any]

J2K = b"\xff\x4f\xff\x51"  # SOC and SIZ: the start of every JPEG 2000 codestream
MAX_TRAILING_BYTES = 16  # after the end marker, not counting zeros: some writers leave a few


class _Codestream(NamedTuple):
    """The header of a compressed frame; ``colour`` is "" where it does not say."""

    rows: int
    columns: int
    samples: int
    precision: int
    colour: str = ""


def _read_codestream(code: bytes) -> _Codestream:
    """Read the SIZ marker of JPEG 2000 (T.800 A.5.1), or a JPEG frame header (T.81 B.2.2).

    A JPEG's colour follows libjpeg's rule: the JFIF marker, else Adobe's, else the components'
    names.
    """
    if code.startswith(J2K):
        right, bottom, left, top = struct.unpack_from(">4I", code, 8)
        samples, precision = struct.unpack_from(">HB", code, 40)
        return _Codestream(bottom - top, right - left, samples, (precision & 0x7F) + 1)
    at, colour = 2, ""
    while True:
        marker, length = struct.unpack_from(">HH", code, at)
        if marker < 0xFFC0:
            raise ValueError("a marker is missing")
        # C0 to CF are frame headers, except C4, C8 and CC; so is JPEG-LS's F7.
        if marker == 0xFFF7 or marker == 0xFFC0 or (marker <= 0xFFCF and marker % 4):
            precision, rows, columns, samples = struct.unpack_from(">BHHB", code, at + 4)
            if not colour and code[at + 10 : at + 19 : 3] in (b"RGB", b"rgb"):
                colour = "RGB"
            return _Codestream(rows, columns, samples, precision, colour)
        if marker == 0xFFE0 and code[at + 4 : at + 9] == b"JFIF\0":
            colour = "YBR_FULL"
        elif marker == 0xFFEE and length >= 14 and code[at + 4 : at + 9] == b"Adobe":
            colour = colour or ("YBR_FULL" if code[at + 15] else "RGB")
        at += 1 if marker == 0xFFFF else 2 + length  # FF may be padding


def _check_codestream(code: bytes, dataset: Dataset) -> tuple[bytes, _Codestream]:
    """Return a frame up to its end marker, and its header.

    Decoders allocate memory by the frame's own size, and CharLS searches for the end marker
    without end: so both are checked first.

    Raises
    ------
    ImageError
        If the frame's size differs from the DICOM header's.
    ValueError
        If the end marker is missing.
    """
    end = code.rindex(b"\xff\xd9") + 2
    if len(code.rstrip(b"\0")) - end > MAX_TRAILING_BYTES:
        raise ValueError("the frame is cut short")
    stream = _read_codestream(code)
    said = tuple(int(dataset[name].value) for name in ("Rows", "Columns", "SamplesPerPixel"))
    if stream[:3] != said:
        raise refusal(
            "The compressed frame has {} rows, {} columns and {} samples.".format(*stream),
            "The DICOM header says {}, {} and {}, and they must agree.".format(*said),
            EXPORT,
        )
    return code[:end], stream


def _decode_jpeg(code: bytes, dataset: Dataset) -> Array:
    """Decode JPEG (PS3.5 A.4.1 and A.4.2) without a colour transform, and set its colour space.

    A lossy frame's own markers take precedence over the DICOM header, which is often wrong.
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
    """Decode JPEG 2000 and HTJ2K (PS3.5 A.4.4 and A.4.12), with or without a JP2 header."""
    code, stream = _check_codestream(code[code.index(J2K) :], dataset)
    dataset.BitsStored = stream.precision
    if dataset.PhotometricInterpretation in ("YBR_ICT", "YBR_RCT"):  # undone by the decoder
        dataset.PhotometricInterpretation = "RGB"
    pixels = imagecodecs.jpeg2k_decode(code)
    if pixels.dtype.kind == "i":  # some headers say unsigned
        dataset.PixelRepresentation = 1
    return pixels


def _decode_rle(code: bytes, dataset: Dataset) -> Array:
    """Decode RLE (PS3.5 annex G): a segment for each byte of each sample, highest byte first.

    pydicom's own decoder checks a segment's length only after it has grown up to 64-fold.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    samples, width = int(dataset.SamplesPerPixel), int(dataset.BitsAllocated) // 8
    count, *starts = struct.unpack_from("<16I", code)
    if width not in (1, 2, 4, 8) or count != samples * width:
        raise ValueError("the number of RLE segments does not fit the samples")
    planes = np.empty((rows * columns, samples * width), np.uint8)
    for i, (start, end) in enumerate(zip(starts, [*starts[1:count], len(code)], strict=False)):
        # Some writers pad a segment, so a little more is accepted, and cut off.
        segment = imagecodecs.packbits_decode(code[start:end], out=rows * columns + 128)
        planes[:, i] = np.frombuffer(segment, np.uint8, rows * columns)
    return native(planes.view(f">u{width}").reshape(rows, columns, samples))


# Transfer syntax (PS3.5 annex A) → decoder of one frame, or None if it is uncompressed.
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


def decode_frame(dataset: Dataset, frame: int, frames: int) -> Array:
    """Return one frame's stored values, [rows, columns], or RGB [rows, columns, 3].

    The decoded frame replaces the compressed ones in ``dataset``, as if it had never been
    compressed. pydicom then does the steps common to every syntax: it restores the sign (by
    PS3.5 8.2.4 and others, a codestream may be unsigned though Pixel Representation is signed)
    and converts to RGB.

    Raises
    ------
    ValueError
        If frames are missing, or the colours cannot be converted. Damaged frames raise many
        other exceptions.
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
    return native(pixels)


def native(pixels: Array) -> Array:
    """Return the pixels contiguous and in the machine's byte order."""
    """Return the same values, contiguous and in this machine's byte order."""
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))
