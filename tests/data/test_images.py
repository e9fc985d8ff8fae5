"""Reading real and made picture files: exact pixels, the Standard's order, and clear errors."""

from __future__ import annotations

import io
import logging
import random
import re
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_windowing, get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from tiny_dicom import (
    NAME,
    RAMP,
    RGB,
    make_compressed,
    make_dicom,
    make_item,
    make_picture,
    make_table,
    shipped,
)

from mrrag.data.dicom import parse
from mrrag.data.images import load_image, read_image, thumbnail
from mrrag.data.limits import MAX_BYTES, MAX_PIXELS
from mrrag.errors import ImageError
from mrrag.types import Image, Window


def refusal(data: bytes, *, frame: int = 0) -> str:
    """Return the error's text, which must have three sentences and name nobody."""
    with pytest.raises(ImageError) as caught:
        read_image(data, frame=frame)
    text = str(caught.value)
    sentences = re.split(r"(?<=[.]) (?=[A-Z])", text)
    assert len(sentences) == 3, text
    assert all(sentence.endswith(".") for sentence in sentences), text
    assert "Secret" not in text
    assert "4711" not in text
    return text


# The grey-scale pipeline


def test_ct_values_are_hounsfield_units() -> None:
    image = read_image(shipped("CT_small.dcm"))
    stored = pydicom.dcmread(io.BytesIO(shipped("CT_small.dcm"))).pixel_array
    assert image.values is not None
    assert image.values.dtype == np.float32
    assert np.array_equal(image.values, stored.astype(np.float32) - 1024)
    assert image.display[0, 0] == round((int(stored[0, 0]) - 1024 + 896) * 255 / (1167 + 896))


def test_modality_lut_comes_before_the_window() -> None:
    image = read_image(
        make_dicom(RAMP, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=100, WindowWidth=201)
    )
    modality = RAMP * 2.0 - 100
    expected = np.clip(np.rint((modality - 99.5) / 200 * 255 + 127.5), 0, 255)
    assert np.array_equal(image.display, expected)
    assert np.array_equal(image.values, modality)
    assert image.display.ravel()[[0, 49, 50, 100, 150, 151]].tolist() == [0, 0, 1, 128, 255, 255]


def test_modality_table_comes_before_the_window() -> None:
    table = make_table([1000 - i for i in range(256)], bits=16)
    image = read_image(
        make_dicom(RAMP, ModalityLUTSequence=table, WindowCenter=900, WindowWidth=101)
    )
    assert np.array_equal(image.values, 1000 - RAMP.astype(int))
    assert image.display[0, 0] == 255
    assert image.display[15, 15] == 0


def test_monochrome1_is_inverted_after_the_window() -> None:
    window = {"WindowCenter": 100, "WindowWidth": 51}
    plain = read_image(make_dicom(RAMP, **window))
    inverted = read_image(make_dicom(RAMP, PhotometricInterpretation="MONOCHROME1", **window))
    assert np.array_equal(inverted.display, 255 - plain.display)
    assert np.array_equal(inverted.values, plain.values)
    assert inverted.inverted
    assert not plain.inverted
    assert inverted.display.ravel()[[0, 74, 75, 125, 255]].tolist() == [255, 255, 252, 0, 0]
    assert "MONOCHROME1: low values are shown bright." in inverted.notes


def test_an_inverse_presentation_shape_does_not_invert_twice() -> None:
    image = read_image(
        make_dicom(RAMP, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    )
    assert np.array_equal(image.display, 255 - RAMP)


@pytest.mark.parametrize("name", ["MR_small.dcm", "examples_overlay.dcm", "693_J2KI.dcm"])
def test_windows_agree_with_pydicom(name: str) -> None:
    image = read_image(shipped(name))
    dataset = pydicom.dcmread(io.BytesIO(shipped(name)))
    modality = apply_modality_lut(image.values.copy(), Dataset())  # type: ignore[union-attr]
    shown = apply_windowing(modality, dataset)
    low, high = apply_windowing(np.array([-1e9, 1e9]), dataset)
    assert np.array_equal(image.display, np.rint((shown - low) / (high - low) * 255))


@pytest.mark.parametrize(
    ("function", "at_center", "at_quarter"),
    [("LINEAR", 129, 64), ("LINEAR_EXACT", 128, 64), ("SIGMOID", 128, 69)],
)
def test_each_voi_function(function: str, at_center: int, at_quarter: int) -> None:
    image = read_image(make_dicom(RAMP, WindowCenter=128, WindowWidth=100, VOILUTFunction=function))
    assert image.display.ravel()[[128, 103]].tolist() == [at_center, at_quarter]


def test_an_unknown_voi_function_is_taken_as_linear_and_noted() -> None:
    window = {"WindowCenter": 128, "WindowWidth": 100}
    image = read_image(make_dicom(RAMP, VOILUTFunction="CUBIC", **window))
    assert np.array_equal(image.display, read_image(make_dicom(RAMP, **window)).display)
    assert any("not known" in note for note in image.notes)


def test_the_first_window_that_can_be_used_makes_the_display() -> None:
    image = read_image(
        make_dicom(
            RAMP,
            WindowCenter=[40, 128.0625, 60],
            WindowWidth=[0, 33.33333333333333, 80],
            WindowCenterWidthExplanation=["EMPTY", "BONE", "LUNG"],
        )
    )
    assert image.windows == (Window("BONE", 128.0625, 33.33333333333333), Window("LUNG", 60, 80))
    assert any("window 1 has a width of 0" in note for note in image.notes)
    assert any("“BONE”" in note for note in image.notes)
    assert image.display.ravel()[[100, 128, 160]].tolist() == [0, 131, 255]


def test_a_negative_slope_does_not_invert_the_display() -> None:
    image = read_image(
        make_dicom(RAMP, RescaleSlope=-1, RescaleIntercept=0, WindowCenter=-128, WindowWidth=256)
    )
    assert image.display.ravel()[[0, 100, 255]].tolist() == [255, 156, 1]


def test_a_voi_table_wins_over_a_window() -> None:
    table = make_table(list(range(255, -1, -1)))
    image = read_image(make_dicom(RAMP, VOILUTSequence=table, WindowCenter=128, WindowWidth=256))
    assert np.array_equal(image.display, 255 - RAMP)
    assert image.windows == (Window("Window 1", 128, 256),)
    assert "Shown through the header's VOI LUT, not its windows." in image.notes


def test_an_incomplete_voi_table_loses_to_a_window() -> None:
    item = make_item(LUTExplanation="no data")
    image = read_image(make_dicom(RAMP, VOILUTSequence=item, WindowCenter=128, WindowWidth=256))
    assert np.array_equal(image.display, RAMP)


def test_a_voi_table_of_8_bits_may_have_4096_entries() -> None:
    # pydicom 3.0 wraps this table's index at 256.
    pixels = np.array([[0, 300, 4095, 5000]], np.uint16)
    table = make_table([i // 16 for i in range(4096)])
    image = read_image(make_dicom(pixels, VOILUTSequence=table))
    assert image.display.tolist() == [[0, 18, 255, 255]]


def test_a_voi_table_maps_modality_values_from_its_first_on() -> None:
    pixels = np.array([[0, 900, 1024, 1100, 3000]], np.int16)
    table = make_table([0, 100, 200, 4095], first=-1, bits=12)
    image = read_image(
        make_dicom(pixels, RescaleSlope=1, RescaleIntercept=-1024, VOILUTSequence=table)
    )
    assert image.display.tolist() == [[0, 0, 6, 255, 255]]


def test_without_a_window_the_range_leaves_padding_out_and_shows_it_black() -> None:
    pixels = np.array([[-2000, 100, 200, 300]], np.int16)
    for padding in (-2000, 63536):  # some write the unsigned twin
        data = make_dicom(pixels, PhotometricInterpretation="MONOCHROME1")
        dataset = pydicom.dcmread(io.BytesIO(data))
        dataset.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)
        file = io.BytesIO()
        dataset.save_as(file)
        image = read_image(file.getvalue())
        assert image.display.tolist() == [[0, 255, 127, 0]]
        assert "Padding (25.0% of the pixels) is shown black." in image.notes
        assert any("full range, 100 to 300" in note for note in image.notes)


def test_padding_may_be_a_range() -> None:
    image = read_image(make_dicom(RAMP, PixelPaddingValue=240, PixelPaddingRangeLimit=255))
    assert image.display.ravel()[[0, 239, 240, 255]].tolist() == [0, 255, 0, 0]


def test_display_never_shares_memory_with_values() -> None:
    image = read_image(make_dicom(RAMP, PixelPaddingValue=0))
    assert image.values is not None
    assert not np.shares_memory(image.display, image.values)


def test_one_bit_and_constant_pictures_are_shown() -> None:
    image = read_image(shipped("liver_1frame.dcm"))
    assert np.array_equal(image.display, image.values * 255)  # type: ignore[operator]
    flat = read_image(make_dicom(np.full((3, 4), 7, np.uint16)))
    assert not flat.display.any()
    assert "Every pixel has the same value, 7." in flat.notes


# Transfer syntaxes


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_implicit.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_padded.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
    ],
)
def test_lossless_syntaxes_give_the_same_image(name: str) -> None:
    reference, image = read_image(shipped("MR_small.dcm")), read_image(shipped(name))
    assert np.array_equal(image.values, reference.values)  # type: ignore[arg-type]
    assert np.array_equal(image.display, reference.display)
    assert image.values.dtype == np.int16  # type: ignore[union-attr]
    assert reference.values.sum() == 2125338  # type: ignore[union-attr]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (JPEGLossless, lambda a: imagecodecs.jpeg8_encode(a, lossless=True, predictor=4)),
        (JPEGLosslessSV1, lambda a: imagecodecs.jpeg8_encode(a, lossless=True)),
        (JPEGLSLossless, imagecodecs.jpegls_encode),
        (JPEG2000Lossless, lambda a: imagecodecs.jpeg2k_encode(a, level=0)),
    ],
)
def test_sixteen_bits_survive_lossless_compression(syntax: str, encode: Any, signed: bool) -> None:
    pixels = np.random.default_rng(1).integers(0, 2**16, (24, 18)).astype(np.uint16)
    like = pixels.view(np.int16) if signed else pixels  # the codestreams stay unsigned
    image = read_image(make_compressed(encode(pixels), syntax, like))
    assert np.array_equal(image.values, like)  # type: ignore[arg-type]


def test_high_throughput_jpeg_2000_is_read() -> None:
    like = (np.arange(64, dtype=np.uint8) * 3).reshape(8, 8)
    code = bytes.fromhex(
        "ff4fff5100294000000000080000000800000000000000000000000800000008000000000000000000010701"
        "01ff500008000200000002ff52000c00020001000504044001ff5c0013204850505050505050505050505048"
        "4848ff64001700014f70656e4a50482056657220302e32362e332eff90000a0000000000490001ff93c02583"
        "010774000000c012c01280fa00c77400da01077400c012c01300e4004274006af500235400c02580548000a9"
        "e27400ae73eec00001ecb600ffd9"
    )
    image = read_image(make_compressed(code, HTJ2KLossless, like))
    assert np.array_equal(image.values, like)  # type: ignore[arg-type]


def test_a_signed_codestream_outweighs_an_unsigned_header() -> None:
    signed = np.linspace(-2000, 1700, 48 * 64).astype(np.int16).reshape(48, 64)
    code = imagecodecs.jpeg2k_encode(signed, level=0)
    image = read_image(make_compressed(code, JPEG2000Lossless, signed.view(np.uint16)))
    np.testing.assert_array_equal(image.values, signed)


def test_twelve_bit_signed_values_get_their_sign_back() -> None:
    like = np.arange(-2048, 2048, 8, dtype=np.int16).reshape(16, 32)
    code = imagecodecs.jpeg2k_encode((like & 0xFFF).astype(np.uint16), level=0, bitspersample=12)
    image = read_image(make_compressed(code, JPEG2000Lossless, like))
    assert np.array_equal(image.values, like)  # type: ignore[arg-type]


def test_lossy_twelve_bit_jpeg_is_read() -> None:
    image = read_image(shipped("JPGExtended.dcm"))
    assert image.values is not None
    assert (image.values.min(), image.values.max(), image.values.sum()) == (0, 264, 3767007)
    assert "The picture was compressed with loss (76 to 1)." in image.notes


@pytest.mark.parametrize(
    "name",
    [
        "examples_ybr_color.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_jpeg.dcm",
        "SC_rgb_jpeg_app14_dcmd.dcm",
        "SC_jpeg_no_color_transform.dcm",
        "SC_rgb_small_odd_jpeg.dcm",
        "SC_rgb_small_odd_big_endian.dcm",
        "SC_rgb_rle.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "examples_jpeg2k.dcm",
        "examples_rgb_color.dcm",
    ],
)
def test_colours_agree_with_pydicom(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom remarks on most of them
        dataset = pydicom.dcmread(io.BytesIO(shipped(name)))
        decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
        plugin = "pillow" if "pillow" in decoder.available_plugins else ""
        expected, _ = decoder.as_array(dataset, index=0, decoding_plugin=plugin)
    image = read_image(shipped(name))
    assert np.array_equal(image.display, expected)
    assert image.values is None
    assert image.windows == ()


@pytest.mark.parametrize("stated", ["RGB", "YBR_FULL", "YBR_FULL_422"])
def test_a_jpegs_own_markers_determine_its_colours(stated: str) -> None:
    # pydicom 3.0 with Pillow converts these twice where Adobe's marker says YCbCr.
    red = np.zeros((16, 16, 3), np.uint8) + np.array([200, 30, 30], np.uint8)
    jfif = make_picture(PIL.Image.fromarray(red), "JPEG", quality=95, subsampling=0)
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"
    assert jfif[2:6] == b"\xff\xe0\x00\x10"
    codes = [jfif, jfif[:2] + adobe + jfif[20:], jfif[:20] + adobe + jfif[20:]]
    if stated != "RGB":  # where no marker says, the header does
        codes.append(jfif[:2] + jfif[20:])
    for code in codes:
        image = read_image(
            make_compressed(code, JPEGBaseline8Bit, red, PhotometricInterpretation=stated)
        )
        assert image.display[8, 8].tolist() == [200, 30, 30]


def test_sixteen_bit_colour_is_scaled_to_eight() -> None:
    pixels = np.array([[[0, 257, 65535], [128, 129, 32768]]], np.uint16)
    image = read_image(make_dicom(pixels))
    assert image.display.tolist() == [[[0, 1, 255], [0, 1, 128]]]


def test_rle_of_several_bytes_and_samples_agrees_with_pydicom() -> None:
    for name in ("SC_rgb_rle_16bit_2frame.dcm", "rtdose_rle.dcm"):
        dataset = pydicom.dcmread(io.BytesIO(shipped(name)))
        decoder, last = get_decoder(RLELossless), int(dataset.NumberOfFrames) - 1
        stored, _ = decoder.as_array(dataset, index=last, decoding_plugin="pydicom")
        image = read_image(shipped(name), frame=last)
        if image.values is None:
            assert np.array_equal(image.display, np.rint(stored / 257))
        else:
            assert np.array_equal(image.values, stored)


def test_palettes_become_rgb() -> None:
    dataset = pydicom.dcmread(io.BytesIO(shipped("examples_palette.dcm")))
    expected = apply_color_lut(dataset.pixel_array, dataset)
    image = read_image(shipped("examples_palette.dcm"))
    assert np.array_equal(image.display, np.rint(expected / 257))


def test_segmented_palettes_become_rgb() -> None:
    # One discrete segment of 1 entry, then one linear segment of 255 (PS3.3 C.7.9.2).
    ramp = bytes([0, 1, 0, 1, 255, 255])
    colours = {
        f"{colour}PaletteColorLookupTableDescriptor": [256, 0, 8]
        for colour in ("Red", "Green", "Blue")
    } | {
        f"Segmented{colour}PaletteColorLookupTableData": ramp for colour in ("Red", "Green", "Blue")
    }
    image = read_image(make_dicom(RAMP, PhotometricInterpretation="PALETTE COLOR", **colours))
    assert np.array_equal(image.display, RAMP)  # alike, and so grey


def test_deflated_files_are_read() -> None:
    image = read_image(shipped("image_dfl.dcm"))
    dataset = pydicom.dcmread(io.BytesIO(shipped("image_dfl.dcm")))
    assert np.array_equal(image.values, dataset.pixel_array)  # type: ignore[arg-type]
    assert image.tags["transfer syntax"] == "Deflated Explicit VR Little Endian"


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_dicom_is_known_without_its_preamble(syntax: str) -> None:
    pixels = np.arange(300, dtype=np.uint16).reshape(15, 20)
    data = make_dicom(pixels, syntax)
    with_meta = data[132:]
    stop = 12 + struct.unpack_from("<I", with_meta, 8)[0]  # after the group length element
    for headless in (with_meta, with_meta[stop:]):
        assert np.array_equal(read_image(headless).values, pixels)  # type: ignore[arg-type]


# Frames


def test_one_frame_of_many_is_read() -> None:
    name = "examples_ybr_color.dcm"
    dataset = pydicom.dcmread(io.BytesIO(shipped(name)))
    expected, _ = get_decoder(JPEGBaseline8Bit).as_array(
        dataset, index=29, decoding_plugin="pillow"
    )
    image = read_image(shipped(name), frame=29)
    assert np.array_equal(image.display, expected)
    assert (image.frame, image.frames) == (29, 30)
    assert "Frame 30 of 30." in image.notes


def test_only_the_requested_frame_is_decoded() -> None:
    good = imagecodecs.jpegls_encode(RAMP)
    data = make_compressed(good, JPEGLSLossless, RAMP, NumberOfFrames=2)
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.PixelData = encapsulate([good, b"damaged, and never looked at"])
    file = io.BytesIO()
    dataset.save_as(file)
    assert np.array_equal(read_image(file.getvalue()).values, RAMP)  # type: ignore[arg-type]
    assert "does not begin as any kind" in refusal(file.getvalue(), frame=1)


@pytest.mark.parametrize("frame", [-1, 30, 10**9])
def test_an_absent_frame_is_refused_with_the_number_of_frames(frame: int) -> None:
    assert "The file has 30 frames" in refusal(shipped("examples_ybr_color.dcm"), frame=frame)


def test_more_frames_than_fragments_are_refused() -> None:
    code = imagecodecs.jpegls_encode(RAMP)
    refusal(make_compressed(code, JPEGLSLossless, RAMP, NumberOfFrames=2**31 - 1))


def test_functional_groups_give_each_frame_its_own_transforms() -> None:
    shared = make_item(
        PixelValueTransformationSequence=make_item(RescaleSlope=2, RescaleIntercept=-10),
        FrameVOILUTSequence=make_item(WindowCenter=0, WindowWidth=100),
    )
    own = [
        *make_item(StackID="1"),
        *make_item(FrameVOILUTSequence=make_item(WindowCenter=100, WindowWidth=50)),
    ]
    dataset = pydicom.dcmread(io.BytesIO(make_dicom(RAMP)))
    data = make_dicom(
        RAMP,
        NumberOfFrames=2,
        PixelData=dataset.PixelData * 2,
        SharedFunctionalGroupsSequence=shared,
        PerFrameFunctionalGroupsSequence=own,
    )
    first, second = read_image(data), read_image(data, frame=1)
    assert first.windows == (Window("Window 1", 0, 100),)
    assert second.windows == (Window("Window 1", 100, 50),)
    assert np.array_equal(second.values, RAMP * 2.0 - 10)  # type: ignore[arg-type]


# PNG and JPEG


def test_sixteen_bit_png_keeps_its_values() -> None:
    pixels = np.array([[100, 200], [1100, 600]], np.uint16)
    image = read_image(make_picture(PIL.Image.fromarray(pixels)))
    assert np.array_equal(image.values, pixels)  # type: ignore[arg-type]
    assert image.values.dtype == np.uint16  # type: ignore[union-attr]
    assert image.display.tolist() == [[0, 26], [255, 128]]
    assert image.tags == {
        "format": "PNG",
        "rows x columns": "2 x 2",
        "bits stored": "16",
        "colour": "grey",
    }


def test_grey_and_colour_pictures_keep_their_pixels() -> None:
    grey = read_image(make_picture(PIL.Image.fromarray(RAMP)))
    assert np.array_equal(grey.display, RAMP)
    assert np.array_equal(grey.values, RAMP)  # type: ignore[arg-type]
    colour = read_image(make_picture(PIL.Image.fromarray(RGB)))
    assert np.array_equal(colour.display, RGB)
    assert colour.values is None
    assert colour.notes == ()


def test_one_bit_and_palette_pictures_are_expanded() -> None:
    bits = np.array([[True, False, True]])
    assert read_image(make_picture(PIL.Image.fromarray(bits))).display.tolist() == [[255, 0, 255]]
    palette = PIL.Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert read_image(make_picture(palette)).display.tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_transparency_is_laid_over_black() -> None:
    pixels = np.array([[[200, 100, 50, 255], [200, 100, 50, 0]]], np.uint8)
    image = read_image(make_picture(PIL.Image.fromarray(pixels)))
    assert image.display.tolist() == [[[200, 100, 50], [0, 0, 0]]]
    assert "Transparent parts were laid over black." in image.notes
    grey = PIL.Image.fromarray(np.array([[[200, 255], [200, 0]]], np.uint8), "LA")
    assert read_image(make_picture(grey)).display.tolist() == [[200, 0]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :8] = 255
    # Where each orientation stores row 0 and column 0 (TIFF 6.0).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    picture = PIL.Image.fromarray(np.ascontiguousarray(stored))
    image = read_image(make_picture(picture, kind, exif=exif))
    assert np.array_equal(image.display, upright)
    assert any("EXIF" in note for note in image.notes) == (orientation > 1)


def test_cmyk_jpeg_becomes_rgb() -> None:
    picture = PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    image = read_image(make_picture(picture, "JPEG", quality=95))
    assert image.display.shape == (8, 8, 3)
    assert np.abs(image.display[4, 4].astype(int) - [255, 0, 0]).max() <= 3


def test_a_jpeg_with_more_pictures_gives_the_first() -> None:
    first, second = PIL.Image.fromarray(RGB), PIL.Image.new("RGB", (4, 4))
    image = read_image(make_picture(first, "MPO", save_all=True, append_images=[second]))
    assert image.display.shape == RGB.shape
    assert any("holds 2 pictures" in note for note in image.notes)


def test_encoders_get_grey_or_rgb_and_pages_get_small_grey_jpegs() -> None:
    assert (
        PIL.Image.fromarray(read_image(make_picture(PIL.Image.fromarray(RAMP))).display).mode == "L"
    )
    image = read_image(make_picture(PIL.Image.fromarray(RGB)))
    assert PIL.Image.fromarray(image.display).mode == "RGB"
    small = PIL.Image.open(io.BytesIO(thumbnail(image, 96)))
    assert (small.format, small.mode, small.size) == ("JPEG", "L", (80, 96))
    sliver = Image(display=np.zeros((1, 1000), np.uint8))
    assert PIL.Image.open(io.BytesIO(thumbnail(sliver, 64))).size == (64, 1)


def test_a_path_is_read_and_a_missing_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "no suffix at all"
    path.write_bytes(shipped("CT_small.dcm"))
    assert load_image(path).sha256 == read_image(path.read_bytes()).sha256
    with pytest.raises(ImageError, match="could not be opened"):
        load_image(tmp_path / "missing")


# Limits


def make_png_header(rows: int, columns: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def test_a_picture_of_60000_by_60000_is_refused_before_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("mrrag.data.dicom.decode_frame", fail)
    dicom = make_dicom(RAMP, Rows=60000, Columns=60000)
    for data in (dicom, make_png_header(60000, 60000), make_png_header(7000, 7000)):
        assert "33,554,432" in refusal(data)


@pytest.mark.parametrize(
    ("syntax", "encode", "marker"),
    [
        (JPEGLSLossless, imagecodecs.jpegls_encode, b"\xff\xf7"),
        (JPEGLosslessSV1, lambda a: imagecodecs.jpeg8_encode(a, lossless=True), b"\xff\xc3"),
        (JPEG2000Lossless, lambda a: imagecodecs.jpeg2k_encode(a, level=0), b"\xff\x51"),
    ],
)
def test_a_frame_larger_than_its_header_is_refused_before_decoding(
    syntax: str, encode: Any, marker: bytes
) -> None:
    code = bytearray(encode(RAMP))
    size = struct.pack(">II" if syntax == JPEG2000Lossless else ">HH", 60000, 60000)
    at = code.index(marker) + (6 if syntax == JPEG2000Lossless else 5)
    code[at : at + len(size)] = size
    assert "60000 rows, 60000 columns" in refusal(make_compressed(bytes(code), syntax, RAMP))


def test_too_many_bytes_are_refused(tmp_path: Path) -> None:
    assert f"{MAX_BYTES:,}" in refusal(b"\0" * (MAX_BYTES + 1))
    with open(tmp_path / "large", "wb") as file:
        file.truncate(MAX_BYTES * 8)
    with pytest.raises(ImageError, match="At most"):
        load_image(tmp_path / "large")


def test_a_deflated_bomb_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrrag.data.dicom.MAX_BYTES", 2**20)
    data = make_dicom(RAMP, DeflatedExplicitVRLittleEndian)
    start = 132 + 12 + struct.unpack_from("<I", data, 140)[0]
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    block = packer.compress(b"\0" * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    bomb = data[:start] + block * 2 + packer.flush()
    assert len(bomb) < 2**13
    assert "inflates to more" in refusal(bomb)
    assert "inflates to more" in refusal(bomb[132:])  # nor without the preamble


def test_an_rle_bomb_is_not_unpacked() -> None:
    segment = b"\x81\x07" * 2**20  # 128 MiB from 2 MiB
    code = struct.pack("<16I", 1, 64, *[0] * 14) + segment
    refusal(make_compressed(code, RLELossless, RAMP))


def test_the_largest_radiograph_fits() -> None:
    assert MAX_PIXELS >= 4800 * 6000
    assert MAX_BYTES >= 4800 * 6000 * 2 + 2**16


# Refusals


def make_animation() -> bytes:
    frames = [PIL.Image.new("L", (4, 4), shade) for shade in (0, 255)]
    return make_picture(frames[0], "PNG", save_all=True, append_images=frames[1:])


def make_without_pixels(**attributes: Any) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(make_dicom(RAMP)))
    del dataset.PixelData
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        dataset.save_as(file)
    return file.getvalue()


VIDEO = make_compressed(b"moving", "1.2.840.10008.1.2.4.102", RAMP)
FLOATS = RAMP.astype("<f4").tobytes()
PDF = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "EncapsulatedDocument": b"%PDF"}

REFUSED = {
    "nothing": (b"", "empty"),
    "text": (b"Patient^Secret has ID 4711. " * 20, "unsupported"),
    "pdf": (b"%PDF-1.7 " + b"x" * 200, "a PDF"),
    "zip": (b"PK\x03\x04" + b"x" * 200, "a ZIP"),
    "gif": (make_picture(PIL.Image.new("L", (2, 2)), "GIF"), "a GIF"),
    "animated png": (make_animation(), "animated"),
    "zeros": (bytes(4096), "unsupported"),
    "preamble alone": (b"\0" * 128 + b"DICM", "no pixel data"),
    "report": (shipped("test-SR.dcm"), "Comprehensive SR Storage"),
    "plan": (shipped("rtplan.dcm"), "RT Plan Storage"),
    "waveform": (shipped("waveform_ecg.dcm"), "12-lead ECG Waveform Storage"),
    "document": (make_without_pixels(**PDF), "Encapsulated PDF Storage"),
    "video": (VIDEO, "MPEG-4"),
    "private syntax": (
        VIDEO.replace(b"1.2.840.10008.1.2.4.102", b"1.2.826.0.1.3680043.8.1"),
        "of an unregistered kind",
    ),
    "float pixels": (make_without_pixels(FloatPixelData=FLOATS), "floating-point"),
    "no rows": (make_dicom(RAMP, Rows=0), "0 rows"),
    "Rows absent": (make_dicom(RAMP, Rows=None), "lacks Rows"),
    "bits absent": (make_dicom(RAMP, BitsStored=None), "lacks BitsStored"),
    "bits impossible": (make_dicom(RAMP, BitsAllocated=12), "cut short"),
    "frames impossible": (make_dicom(RAMP, NumberOfFrames=7), "cut short"),
    "CMYK": (make_dicom(RAMP, PhotometricInterpretation="CMYK"), "CMYK"),
    "wrong samples": (make_dicom(RAMP, SamplesPerPixel=3), "3 samples"),
    "no known colours": (make_dicom(RAMP, PhotometricInterpretation=NAME[:16]), "no known form"),
    "raw YBR_ICT": (make_dicom(RGB, PhotometricInterpretation="YBR_ICT"), "cut short"),
    "infinite slope": (make_dicom(RAMP, RescaleSlope="1e308", RescaleIntercept=0), "display"),
    "broken codestream": (make_compressed(b"\xff\xd8 no\xff\xd9", JPEGExtended12Bit, RAMP), "JPEG"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_files_are_refused_with_what_to_do(kind: str) -> None:
    data, expected = REFUSED[kind]
    assert expected in refusal(data)


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "MR_small_jpeg_ls_lossless.dcm"]
)
def test_a_file_cut_short_anywhere_is_refused(name: str) -> None:
    data = shipped(name)
    for length in (1, 130, 140, 400, len(data) // 2, len(data) - 300):
        refusal(data[:length])


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (JPEGLosslessSV1, lambda a: imagecodecs.jpeg8_encode(a, lossless=True)),
        (JPEGBaseline8Bit, imagecodecs.jpeg8_encode),
        (JPEG2000Lossless, lambda a: imagecodecs.jpeg2k_encode(a, level=0)),
        (JPEGLSLossless, imagecodecs.jpegls_encode),
    ],
)
def test_a_frame_cut_short_is_refused(syntax: str, encode: Any) -> None:
    # Some decoders silently fill in the rest, and one searches for it for minutes.
    code = encode(RAMP)
    for cut in (code[:-30], code[:-30] + b"\xff\xd9" + b"left over" * 3):
        assert "cut short" in refusal(make_compressed(cut, syntax, RAMP))
    assert read_image(make_compressed(code + bytes(100), syntax, RAMP)).values is not None


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_cut_short_is_refused(kind: str) -> None:
    data = make_picture(PIL.Image.fromarray(np.tile(RAMP, (8, 8))), kind)
    for length in (9, 20, 60, len(data) // 2, len(data) - 40):
        refusal(data[:length])


def test_damaged_files_are_read_or_refused_and_nothing_else() -> None:
    names = ("MR_small_RLE.dcm", "SC_rgb_jls_lossy_line.dcm", "SC_rgb_jpeg_gdcm.dcm")
    names += ("SC_rgb_gdcm_KY.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm", "reportsi.dcm")
    files = [shipped(name) for name in names] + [make_picture(PIL.Image.fromarray(RGB))]
    for seed in range(210):
        chance = random.Random(seed)
        data = bytearray(files[seed % len(files)])
        for _ in range(chance.choice([1, 4, 16])):
            data[chance.randrange(len(data))] = chance.choice([0, 255, chance.randrange(256)])
        try:
            read_image(bytes(data))
        except ImageError:
            continue


# Privacy


def test_no_patient_in_the_image_the_logs_or_the_warnings(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    misfiled = make_dicom(RAMP, Modality=NAME, ViewPosition="PA")
    pixelless = make_without_pixels(SOPClassUID=NAME)
    damaged = make_compressed(b"\xff\xd8\xff\xd9", JPEGLSLossless, RAMP)
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    image = read_image(misfiled)
    refusal(damaged)
    refusal(pixelless)
    assert "modality" not in image.tags
    assert image.tags["view position"] == "PA"
    told = f"{image.tags} {image.notes} {image.windows} {caplog.text} {[w for w in recwarn]}"
    assert "Secret" not in told
    assert "4711" not in told
    assert not recwarn.list


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_the_patient_is_never_parsed(syntax: str) -> None:
    assert not {"PatientName", "PatientID"} & set(
        parse(make_dicom(RAMP, syntax), most=MAX_BYTES).dir()
    )


def test_notes_warn_of_burned_in_text_and_loss() -> None:
    def notes(**attributes: Any) -> str:
        return " ".join(read_image(make_dicom(RAMP, **attributes)).notes)

    assert "does not exclude burned-in text" in notes()
    assert "may name the patient" in notes(BurnedInAnnotation="YES")
    assert "burned" not in notes(BurnedInAnnotation="NO")
    assert "with loss (12.5 to 1)" in notes(
        LossyImageCompression="01", LossyImageCompressionRatio=[4, 12.5]
    )
    assert "with loss" not in notes(LossyImageCompression="00")


def test_tags_are_short_strings_about_the_pixels_only() -> None:
    assert dict(read_image(shipped("MR_small.dcm")).tags) == {
        "modality": "MR",
        "rows x columns": "64 x 64",
        "bits stored": "16",
        "photometric interpretation": "MONOCHROME2",
        "transfer syntax": "Explicit VR Little Endian",
        "pixel spacing": "0.3125 x 0.3125 mm",
    }


def test_nothing_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    for name in (
        "CT_small.dcm",
        "MR_small_jp2klossless.dcm",
        "JPGExtended.dcm",
        "MR_truncated.dcm",
    ):
        try:
            thumbnail(read_image(shipped(name)), 32)
        except ImageError:
            continue
    assert not list(tmp_path.iterdir())


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    odd = make_dicom(RAMP, NumberOfFrames=0)
    before = list(warnings.filters)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                read_image(shipped("examples_ybr_color.dcm"))
                read_image(odd)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert warnings.filters == before


def test_fundus_archives_are_read_from_disk_without_unpickling(tmp_path: Path) -> None:
    grey = np.arange(60, dtype=np.uint8).reshape(10, 6)
    for pixels in (grey, grey.astype(np.float32), grey / 255.0):
        np.savez_compressed(tmp_path / "data_00001.npz", slo_fundus=pixels, note=np.str_("a"))
        np.testing.assert_array_equal(load_image(tmp_path / "data_00001.npz").display, grey)
    with pytest.raises(ImageError, match="ZIP archive"):  # an upload is no archive
        read_image((tmp_path / "data_00001.npz").read_bytes())


@pytest.mark.parametrize(
    "arrays",
    [
        {"other": np.zeros((4, 4))},
        {"slo_fundus": np.zeros((4, 4, 4, 4))},
        {"slo_fundus": np.array([{"a": 1}], dtype=object)},
        {"slo_fundus": np.zeros((0, 4))},
        {"slo_fundus": np.zeros((9000, 9000), np.uint8)},  # 81 MB that pack to 80 KB
    ],
)
def test_archives_that_hold_no_picture_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    with pytest.raises(ImageError):
        load_image(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:50])
    with pytest.raises(ImageError):
        load_image(tmp_path / "a.npz")
