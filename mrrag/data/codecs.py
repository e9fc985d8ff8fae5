"""Decodes DICOM frames: one decoder for each family of compressed transfer syntaxes.

A frame's own first markers decide which decoder reads it, since some headers name another
transfer syntax. imagecodecs decodes (libjpeg-turbo, CharLS, OpenJPEG, PackBits), because GDCM
crashes on many damaged frames. pydicom then does the steps that all transfer syntaxes have in
common. This module does not know how stored values are displayed.
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
Decoder = Callable[[bytes, Dataset], Array]

J2K = b"\xff\x4f\xff\x51"  # SOC and SIZ: the start of every JPEG 2000 codestream
J2K_COLOURS = ("YBR_ICT", "YBR_RCT")
# What other decoders than JPEG 2000's leave: not subsampled, and JPEG 2000's colours were undone
# when the pixels were compressed anew.
COLOURS_DECODED = {"YBR_FULL_422": "YBR_FULL", **dict.fromkeys(J2K_COLOURS, "RGB")}
LOSSLESS, JPEG_LS = 0xFFC3, 0xFFF7  # frame headers (T.81 table B.1, T.87 C.1.1)
ITEM = b"\xfe\xff\x00\xe0"  # the start of every fragment (PS3.5 A.4)
MAX_TRAILING_BYTES = 16  # after the end marker, not counting zeros: some writers leave a few


class _Codestream(NamedTuple):
    """The header of a compressed frame; ``colour`` is "" where it does not say.

    ``marker`` is a JPEG's or JPEG-LS's frame header: FFC3 is lossless, FFF7 is JPEG-LS.
    """

    rows: int
    columns: int
    samples: int
    precision: int
    colour: str = ""
    marker: int = 0


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
            return _Codestream(rows, columns, samples, precision, colour, marker)
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
    if stream.marker != LOSSLESS:
        dataset.LossyImageCompression = "01"
    if stream.samples == 1:
        return imagecodecs.jpeg8_decode(code)
    if stream.colour and stream.marker != LOSSLESS:
        dataset.PhotometricInterpretation = stream.colour
    elif dataset.PhotometricInterpretation in J2K_COLOURS and stream.marker != LOSSLESS:
        dataset.PhotometricInterpretation = "YBR_FULL"  # as libjpeg takes it
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
    if dataset.PhotometricInterpretation in J2K_COLOURS:  # undone by the decoder
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
DECODERS: dict[str, Decoder | None] = {
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


# A decoder → what its frames are called.
CODECS: dict[Decoder | None, str] = {
    _decode_jpeg: "JPEG",
    _decode_jpeg_ls: "JPEG-LS",
    _decode_jpeg_2000: "JPEG 2000",
    _decode_rle: "RLE",
    None: "no",
}


def decode_frame(dataset: Dataset, frame: int, frames: int) -> tuple[Array, list[str]]:
    """Return one frame's stored values, [rows, columns], or RGB [rows, columns, 3], and notes.

    The decoded frame replaces the compressed ones in ``dataset``, as if it had never been
    compressed, and ``LossyImageCompression`` is set if the frame itself says so. pydicom then
    does the steps common to every syntax: it restores the sign (by PS3.5 8.2.4 and others, a
    codestream may be unsigned though Pixel Representation is signed) and converts to RGB.

    Raises
    ------
    ImageError
        If the frame is of no kind that is read.
    ValueError
        If frames are missing, or the colours cannot be converted. Damaged frames raise many
        other exceptions.
    """
    notes: list[str] = []
    named = DECODERS[dataset.file_meta.TransferSyntaxUID]
    code = _compressed_frame(dataset, frame, frames)
    if code is not None:
        decode = _decoder_of(code, named)
        if decode is not named:
            notes.append(
                f"The header names {CODECS[named]} compression, but the frame"
                f" itself is {CODECS[decode]}: read as {CODECS[decode]}."
            )
        pixels = decode(code, dataset)
        if decode is not _decode_jpeg_2000:
            said = str(dataset.PhotometricInterpretation)
            dataset.PhotometricInterpretation = COLOURS_DECODED.get(said, said)
        dataset.add_new("PixelData", "OW", pixels.tobytes())
        dataset.BitsAllocated = 8 * pixels.itemsize
        dataset.BitsStored = min(int(dataset.BitsStored), 8 * pixels.itemsize)
        dataset.PlanarConfiguration = 0
        dataset.NumberOfFrames = 1
        frame = 0
    elif named is not None:
        notes.append(
            f"The header names {CODECS[named]} compression, but the pixels are not compressed:"
            " read as they are."
        )
    if named is not None or code is not None:
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    if code is None:
        notes.extend(_note_high_bits(dataset))
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    pixels, found = decoder.as_array(dataset, index=frame)
    if dataset.SamplesPerPixel == 3 and (
        found["photometric_interpretation"] != "RGB"
        or (pixels.itemsize > 1 and dataset.PhotometricInterpretation != "RGB")
    ):
        raise ValueError("these colours are not ones that pydicom converts to RGB")
    return native(pixels), notes


def _note_high_bits(dataset: Dataset) -> list[str]:
    """Return a note if plain 16-bit pixels have bits set above those stored (PS3.5 8.1.1)."""
    stored, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation) == 1
    if int(dataset.BitsAllocated) != 16 or not 0 < stored < 16:
        return []
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    data = dataset.PixelData
    words = np.frombuffer(data[: len(data) // 2 * 2], f"{order}{'i' if signed else 'u'}2")
    # Negative numbers may or may not be extended with ones.
    least = -(2 ** (stored - 1)) if signed else 0
    if not words.size or (words.max() < 2**stored and words.min() >= least):
        return []
    return [
        f"Some pixels use more bits than the {stored} that the header says. The higher bits were"
        " left out: they are an old overlay, or the picture is wrong."
    ]


def _compressed_frame(dataset: Dataset, frame: int, frames: int) -> bytes | None:
    """Return a frame's bytes, or None if the pixels are not compressed, whatever is named."""
    data = dataset.PixelData
    named = DECODERS[dataset.file_meta.TransferSyntaxUID]
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel)
    plain = samples * int(dataset.BitsAllocated) // 8 * frames
    if not data.startswith(ITEM):
        # Fragments are missing: plain pixels, or one bare codestream.
        if named is None or plain <= len(data) <= plain + 1:
            return None
        if frames > 1:
            raise ValueError("the frames are not in fragments")
        return bytes(data)
    if named is None and len(data) >= plain:
        return None  # pixels that happen to begin so
    if parse_fragments(data)[0] - 1 < frames:  # the first is the offset table
        raise ValueError("there are fewer fragments than frames")
    offsets = as_pixel_options(dataset).get("extended_offsets")
    return get_frame(data, frame, number_of_frames=frames, extended_offsets=offsets)


def _decoder_of(code: bytes, named: Decoder | None) -> Decoder:
    """Return the decoder that a frame's own markers ask for, which headers sometimes misname.

    Raises
    ------
    ImageError
        If the frame is of no kind that is read.
    """
    if code.startswith(b"\xff\xd8"):  # SOI
        return _decode_jpeg_ls if _read_codestream(code).marker == JPEG_LS else _decode_jpeg
    if code.startswith((J2K, b"\0\0\0\x0cjP")) or (named is _decode_jpeg_2000 and J2K in code):
        return _decode_jpeg_2000
    count, first = struct.unpack_from("<2I", code.ljust(8, b"\0"))
    if 1 <= count <= 15 and first == 64:  # PS3.5 G.5
        return _decode_rle
    raise refusal(
        "The compressed frame does not begin as any kind of compression that is read"
        f" (the header names {CODECS[named]} compression).",
        "JPEG, JPEG-LS, JPEG 2000 and RLE frames are read.",
        EXPORT,
    )


def native(pixels: Array) -> Array:
    """Return the same values, contiguous and in this machine's byte order."""
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))
