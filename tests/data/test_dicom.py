"""DICOM headers that lie about the display: the picture, the note, and what the model reads."""

from __future__ import annotations

import re
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pydicom.uid import (
    ExplicitVRLittleEndian as LITTLE,
)
from tiny_dicom import RAMP, RGB, make_compressed, make_dicom, make_item, make_table

from mrrag.data.grey import apply_window, automatic_window, leaves_nothing, window_grey
from mrrag.data.images import read_image
from mrrag.data.limits import MAX_PIXELS
from mrrag.data.proportions import square_shape
from mrrag.errors import ImageError
from mrrag.types import Image, Window

# A radiograph of 12 bits: a dark border, and a smooth field of all greys.
FILM = np.zeros((40, 60), np.uint16)
FILM[4:36, 6:54] = np.linspace(300, 4000, 32 * 48).reshape(32, 48)
SQUARE = np.arange(600, dtype=np.uint16).reshape(20, 30) * 5


def read(pixels: np.ndarray = FILM, syntax: str = LITTLE, /, **header: Any) -> Image:
    return read_image(make_dicom(pixels, syntax, **header))


def automatic(image: Image) -> np.ndarray:
    """Return the automatic window's display of a picture."""
    window = automatic_window(image)
    assert window is not None
    assert window.name == "Automatic"
    return apply_window(image, window).display


def noted(image: Image, text: str) -> bool:
    return any(text in note for note in image.notes)


# VOI LUT, modality LUT, palette

IDENTITY = [i * 16 for i in range(256)]  # of 12 bits
CUT = make_table(list(range(4096)), bits=12)
CUT[0].LUTData = CUT[0].LUTData[:1000]
ALONE = make_item()
ALONE[0].add_new("LUTData", "OW", b"\0\1" * 9)
BAD_TABLES = {
    "values beyond its bits": (make_table([i * 16 for i in range(4096)], bits=8), "end at 255"),
    "no data": (make_item(LUTDescriptor=[4096, 0, 12]), "it has no data"),
    "no descriptor": (ALONE, "it has no descriptor"),
    "cut short": (CUT, "it has 500 of the 4,096 entries"),
    "impossible bits": (make_table(list(range(4096)), bits=99), "names 99 bits"),
    "far shorter than the values": (make_table(IDENTITY, bits=12), "leave nothing to see"),
    "beside the values": (make_table(IDENTITY, first=9000, bits=12), "leave nothing to see"),
    "far more bits than values": (make_table(list(range(4096)), bits=16), "leave nothing to see"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_an_unusable_voi_table_gives_way_to_the_window_and_else_to_the_full_range(
    kind: str,
) -> None:
    table, why = BAD_TABLES[kind]
    window = {"WindowCenter": 2000, "WindowWidth": 3000}
    image = read(VOILUTSequence=table, **window)
    assert np.array_equal(image.display, read(**window).display)
    assert noted(image, "VOI LUT 1 was left out: ")
    assert noted(image, why)
    assert image.windows == (Window("Window 1", 2000, 3000),)
    assert np.array_equal(read(VOILUTSequence=table).display, read().display)
    assert noted(read(VOILUTSequence=table), "shown over its full range")


def test_the_first_voi_table_that_can_be_used_is_used() -> None:
    falling = make_table(list(range(4095, -1, -1)), bits=12)
    image = read(VOILUTSequence=[*BAD_TABLES["no data"][0], *BAD_TABLES["cut short"][0], *falling])
    assert np.array_equal(image.display, np.rint((4095 - FILM.astype(float)) / 4095 * 255))
    assert [
        note[: len("The header's VOI LUT 1")] for note in image.notes if "left out" in note
    ] == [
        "The header's VOI LUT 1",
        "The header's VOI LUT 2",
    ]


@pytest.mark.parametrize("kind", ["no data", "no descriptor", "cut short"])
def test_an_unusable_modality_table_leaves_the_stored_values(kind: str) -> None:
    image = read(ModalityLUTSequence=BAD_TABLES[kind][0])
    assert np.array_equal(image.values, FILM)  # type: ignore[arg-type]
    assert np.array_equal(image.display, read().display)
    assert noted(image, f"modality LUT was left out: {BAD_TABLES[kind][1]}")
    short = read(ModalityLUTSequence=make_table(list(range(40)), bits=16))
    assert np.array_equal(short.values, FILM)  # type: ignore[arg-type]
    assert noted(short, "modality LUT was left out: it would leave nothing to see.")


def test_a_tables_first_value_may_be_signed_though_written_as_unsigned() -> None:
    pixels = FILM.astype(np.int16) - 2000
    table = make_table(list(range(4096)), first=65536 - 2000, bits=12)
    image = read(pixels, VOILUTSequence=table)
    assert np.array_equal(image.display, np.rint(FILM / 4095 * 255))


def palette(bits: int, data: bytes) -> dict[str, Any]:
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    tables = {f"{name}Data": data for name in names[:2]} | {f"{names[2]}Data": data[::-1]}
    return {"PhotometricInterpretation": "PALETTE COLOR", **tables} | {
        f"{name}Descriptor": [256, 0, bits] for name in names
    }


def test_a_palette_whose_bits_are_wrong_is_neither_white_nor_black() -> None:
    steps = np.arange(256)
    for bits, entries, note in ((8, steps * 257, "more than"), (16, steps, "use 8 of the 16")):
        data = entries.astype("<u2").tobytes()
        header = palette(bits, data)
        header["BluePaletteColorLookupTableData"] = entries[::-1].astype("<u2").tobytes()
        image = read(RAMP, **header)
        assert np.array_equal(image.display, np.stack([RAMP, RAMP, 255 - RAMP], axis=-1))
        assert noted(image, note)


def test_the_8_bit_entries_of_a_big_endian_palette_lie_in_swapped_pairs() -> None:
    # As GDCM writes them: an OW word's low byte is the first entry (PS3.3 C.7.6.3.1.6).
    swapped = np.arange(256, dtype=np.uint8).reshape(-1, 2)[:, ::-1].tobytes()
    image = read(RAMP.astype(np.uint16), ExplicitVRBigEndian, **palette(8, swapped))
    assert np.array_equal(image.display, np.stack([RAMP, RAMP, 255 - RAMP], axis=-1))


def test_a_palette_without_its_colours_is_refused_by_name() -> None:
    with pytest.raises(ImageError, match="palette cannot be used: it has 100 of the 256 entries"):
        read(RAMP, **palette(8, bytes(range(100))))
    few = palette(8, bytes(range(100)))
    assert read(RAMP % 99, **few).display.max() == 99  # the pixels need no more


# Windows

BLIND = {
    "one byte's window on 12 bits": (127, 255),
    "width 1": (2000, 1),
    "width 1e9": (2000, 1e9),
    "above the values": (30000, 400),
    "below the values": (-30000, 400),
    "of 16 bits": (32768, 65536),
}


@pytest.mark.parametrize("kind", BLIND)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_a_window_that_leaves_nothing_to_see_gives_way_to_an_automatic_one(
    kind: str, photometric: str
) -> None:
    center, width = BLIND[kind]
    image = read(WindowCenter=center, WindowWidth=width, PhotometricInterpretation=photometric)
    assert np.array_equal(image.display, automatic(image))  # what the model reads
    assert len(np.unique(image.display)) > 100
    assert noted(image, "would leave nothing to see.")
    assert noted(image, "Shown and read by the model through an automatic window (centre ")
    assert image.windows == (Window("Window 1", center, width),)
    by_hand = apply_window(image, image.windows[0])  # obeyed
    assert len(np.unique(by_hand.display)) < 40 or kind == "one byte's window on 12 bits"
    assert not np.array_equal(by_hand.display, image.display)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_automatic_window_leaves_out_outliers_and_padding(function: str) -> None:
    pixels = FILM.astype(np.int16)
    pixels[0, :3] = 32000  # a marker
    pixels[-3:] = -2000
    image = read(
        pixels, WindowCenter=-9000, WindowWidth=2, VOILUTFunction=function, PixelPaddingValue=0
    )
    padded = Image(image.display, pixels, (), function, padding=pixels == -2000)
    window = automatic_window(padded)
    assert window is not None
    low, high = window.center - window.width / 2, window.center + window.width / 2
    assert -1 <= low <= 0
    assert 3900 < high < 4001
    levels = window_grey(np.array([0, 4000]), window, function).tolist()
    assert levels == ([0, 255] if function != "SIGMOID" else [30, 225])


def test_the_automatic_window_of_one_value_or_of_colour_is_none() -> None:
    assert automatic_window(read(np.full((3, 4), 7, np.uint16))) is None
    assert automatic_window(read(RGB)) is None
    flat = read(np.full((3, 4), 7, np.uint16), WindowCenter=900, WindowWidth=1)
    assert noted(flat, "Shown through the header's window")  # no window shows more
    two = np.zeros((30, 40), np.uint8)
    two[0, 0] = 1  # fewer than 1 in 200
    assert automatic_window(read(two)) == Window("Automatic", 1.0, 2.0)


@pytest.mark.parametrize(
    ("center", "width"), [(40, 80), (40, 400), (-600, 1500), (400, 2000), (32, 30), (60, 150)]
)
def test_the_usual_windows_of_ct_are_kept(center: float, width: float) -> None:
    # A head: air with noise, a skull, and a brain whose greys differ by a few Hounsfield units.
    chance = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    head, brain = x**2 + y**2 < 0.7, x**2 + y**2 < 0.55
    values = np.where(brain, 35, np.where(head, 1100, -1000)) + chance.normal(0, 8, x.shape)
    assert not leaves_nothing(
        window_grey(values, Window("", center, width), "LINEAR"), values, np.ones(x.shape, bool)
    )


def test_a_hot_spot_and_a_mask_are_no_reason_for_an_automatic_window() -> None:
    chance = np.random.default_rng(0)
    scan = chance.exponential(900, (128, 128)).astype(np.uint16)  # tracer, without and with uptake
    scan[30:36, 30:36] = np.linspace(9000, 30000, 36).reshape(6, 6)
    assert noted(read(scan, WindowCenter=15000, WindowWidth=30000), "Shown through the header's")
    mask = (FILM > 0).astype(np.uint8)
    assert noted(read(mask, WindowCenter=1, WindowWidth=1), "Shown through the header's window")


def test_the_next_window_of_the_header_comes_before_the_automatic_one() -> None:
    image = read(WindowCenter=[127, 2000], WindowWidth=[255, 4000])
    assert np.array_equal(image.display, read(WindowCenter=2000, WindowWidth=4000).display)
    assert noted(image, "Shown through the header's window “Window 2”")
    assert len(image.windows) == 2


def test_a_hot_pixel_does_not_darken_a_film_without_a_window() -> None:
    film = FILM.copy()
    film[0, 0] = 65535
    image = read(film)
    assert np.array_equal(image.display, automatic(image))
    assert image.display[20, 30] > 100
    assert noted(image, "its full range would leave nothing to see")


def test_windows_of_unequal_number_or_without_numbers_are_left_out() -> None:
    image = read(WindowCenter=[2000, 900], WindowWidth=3000)
    assert image.windows == (Window("Window 1", 2000, 3000),)
    assert noted(image, "2 window centres and 1 widths")
    names = {"WindowCenterWidthExplanation": ["BONE", "LUNG", "SOFT"]}
    image = read(WindowCenter=[2000, 900], WindowWidth=[3000, 800], **names)
    assert [window.name for window in image.windows] == ["Window 1", "Window 2"]
    data = make_dicom(FILM, WindowCenter=2000, WindowWidth=3000).replace(b"3000", b"wide")
    image = read_image(data)
    assert image.windows == ()
    assert np.array_equal(image.display, read().display)
    assert noted(image, "window 1 has a width of nan and was left out")


# Proportions


@pytest.mark.parametrize(
    "keyword", ["PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"]
)
def test_pixels_that_are_not_square_become_square(keyword: str) -> None:
    header = {"WindowCenter": 1500, "WindowWidth": 2000}
    image = read(SQUARE, **{keyword: [0.2, 0.4]}, **header)
    assert image.display.shape == (20, 60)
    assert image.values is not None
    assert image.values.dtype == np.uint16
    assert np.array_equal(image.values[:, 1:-1:2], np.rint(SQUARE[:, :-1] + 1.25))
    window = Window("", 1500, 2000)
    assert np.array_equal(image.display, window_grey(image.values, window, "LINEAR"))
    assert np.array_equal(apply_window(image, window).display, image.display)
    assert noted(image, f"By the header's {keyword} (0.2 x 0.4), pixels are not square")
    assert noted(image, "from 20 x 30 to 20 x 60 pixels")
    assert image.tags["rows x columns"] == "20 x 30"  # as stored
    assert read(SQUARE, **{keyword: [0.6, 0.2]}).display.shape == (60, 30)
    assert read(SQUARE, **{keyword: [0.2, 0.2001]}).display.shape == (20, 30)


def test_a_pixel_aspect_ratio_counts_where_no_spacing_is_given() -> None:
    colour = read(RGB, PixelAspectRatio=[2, 1])
    assert colour.display.shape == (24, 10, 3)
    assert noted(colour, "PixelAspectRatio (2 x 1)")
    assert read(SQUARE, PixelAspectRatio=[2, 1], PixelSpacing=[1, 1]).display.shape == (20, 30)
    measures = make_item(PixelMeasuresSequence=make_item(PixelSpacing=[0.4, 0.2]))
    assert read(SQUARE, SharedFunctionalGroupsSequence=measures).display.shape == (40, 30)


def test_padding_is_resampled_to_the_nearest_pixel_and_darkens_no_neighbour() -> None:
    pixels = np.full((8, 8), 1000, np.int16)
    pixels[2:6, 2:6] = np.arange(2000, 3600, 100).reshape(4, 4)
    pixels[:, :2] = -2000
    image = read(pixels, PixelPaddingValue=-2000, PixelSpacing=[1, 3])
    assert image.padding is not None
    assert image.values is not None
    assert image.padding.shape == image.values.shape == image.display.shape == (8, 24)
    assert np.array_equal(image.padding, np.repeat(pixels == -2000, 3, axis=1))
    assert image.values[~image.padding].min() == 1000
    assert not image.display[image.padding].any()


@pytest.mark.parametrize(
    "spacing", [["0", "0.2"], ["-0.2", "0.4"], ["NaN", "1"], ["0.01", "1"], ["0.3"], ["1e400", "1"]]
)
def test_impossible_spacings_are_left_out(spacing: list[str]) -> None:
    data = make_dicom(SQUARE, PixelSpacing=["8.7654321", "8.7654321"][: len(spacing)])
    old, new = "\\".join(["8.7654321"] * len(spacing)), "\\".join(spacing)
    image = read_image(data.replace(old.encode(), new.ljust(len(old)).encode()))
    assert np.array_equal(image.display, read(SQUARE).display)
    assert noted(image, "The header's PixelSpacing (")
    assert noted(image, "cannot be true and was left out.")


def test_square_pixels_keep_the_size_limits() -> None:
    rows, columns = square_shape(4800, 6000, 0.05)
    assert rows * columns <= MAX_PIXELS
    assert columns / rows == pytest.approx(6000 * 20 / 4800, rel=0.01)
    assert square_shape(1, 2**25, 20.0)[0] >= 1


# Codestreams

ENCODERS = {
    "JPEG": lambda a: imagecodecs.jpeg8_encode(a, lossless=True),
    "JPEG-LS": imagecodecs.jpegls_encode,
    "JPEG 2000": lambda a: imagecodecs.jpeg2k_encode(a, level=0),
    "RLE": lambda a: pydicom.pixels.encoders.RLELosslessEncoder.encode(
        a, encoding_plugin="pydicom", rows=a.shape[0], columns=a.shape[1], samples_per_pixel=1,
        bits_allocated=8, bits_stored=8, pixel_representation=0, number_of_frames=1,
        photometric_interpretation="MONOCHROME2",
    ),
}  # fmt: skip
NAMED = {
    JPEGLosslessSV1: "JPEG",
    JPEGLSLossless: "JPEG-LS",
    JPEG2000Lossless: "JPEG 2000",
    RLELossless: "RLE",
}


@pytest.mark.parametrize("syntax", NAMED)
@pytest.mark.parametrize("inside", ENCODERS)
def test_a_frames_own_markers_decide_which_decoder_reads_it(syntax: str, inside: str) -> None:
    image = read_image(make_compressed(ENCODERS[inside](RAMP), syntax, RAMP))
    assert np.array_equal(image.values, RAMP)  # type: ignore[arg-type]
    note = (
        f"The header names {NAMED[syntax]} compression, but the frame itself is {inside}:"
        f" read as {inside}."
    )
    assert (note in image.notes) == (NAMED[syntax] != inside)


@pytest.mark.parametrize("stated", ["RGB", "YBR_RCT", "YBR_ICT"])
def test_colours_survive_a_misnamed_compression(stated: str) -> None:
    for encode in (imagecodecs.jpegls_encode, lambda a: imagecodecs.jpeg2k_encode(a, level=0)):
        data = make_compressed(encode(RGB), JPEGLosslessSV1, RGB, PhotometricInterpretation=stated)
        assert np.array_equal(read_image(data).display, RGB)


def test_a_lossy_frame_is_called_lossy_whatever_the_header_names() -> None:
    smooth = np.linspace(0, 255, 4096).astype(np.uint8).reshape(64, 64)
    code = imagecodecs.jpeg8_encode(smooth, level=95)
    image = read_image(make_compressed(code, JPEGLSLossless, smooth, LossyImageCompression="00"))
    assert np.abs(image.display.astype(int) - smooth).max() < 6
    assert image.tags["lossy compression"] == "yes"
    assert noted(image, "compressed with loss")


def test_pixels_that_are_not_compressed_are_read_so_and_compressed_ones_decoded() -> None:
    plain, rle = LITTLE.encode(), RLELossless.encode()  # of the same length
    image = read_image(make_dicom(FILM).replace(plain + b"\0", rle + b"\0"))
    assert np.array_equal(image.values, FILM)  # type: ignore[arg-type]
    assert noted(image, "names RLE compression, but the pixels are not compressed")
    smooth = np.linspace(0, 255, 4096).astype(np.uint8).reshape(64, 64)
    for inside in ("RLE", "JPEG", "JPEG 2000"):
        data = make_compressed(ENCODERS[inside](smooth), RLELossless, smooth)
        image = read_image(data.replace(rle + b"\0", plain + b"\0"))
        assert np.array_equal(image.values, smooth)  # type: ignore[arg-type]
        assert noted(image, f"names no compression, but the frame itself is {inside}")


def test_a_frame_of_no_known_kind_is_refused_as_such() -> None:
    data = make_compressed(b"neither one nor the other", JPEGLSLossless, RAMP)
    with pytest.raises(ImageError, match="does not begin as any kind") as caught:
        read_image(data)
    assert "the header names JPEG-LS compression" in str(caught.value)
    assert len(re.split(r"(?<=[.]) (?=[A-Z])", str(caught.value))) == 3


# Other attributes


@pytest.mark.parametrize(
    ("photometric", "shape", "contradicts"),
    [
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "INVERSE", False),
    ],
)
def test_the_photometric_interpretation_decides_what_is_bright(
    photometric: str, shape: str, contradicts: bool
) -> None:
    image = read(RAMP, PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    inverted = photometric == "MONOCHROME1"
    assert np.array_equal(image.display, 255 - RAMP if inverted else RAMP)
    assert image.inverted == inverted
    assert noted(image, f"of {shape}. It was read as {photometric}") == contradicts


def test_a_rescale_that_cannot_be_true_leaves_the_stored_values() -> None:
    for header in ({"RescaleSlope": 0, "RescaleIntercept": 5}, {"RescaleSlope": 0}):
        image = read(**header)
        assert np.array_equal(image.values, FILM)  # type: ignore[arg-type]
        assert np.array_equal(image.display, read().display)
        assert noted(image, "rescale slope 0 and intercept")
    halved = read(RescaleSlope=0.5)
    assert np.array_equal(halved.values, FILM / 2)  # type: ignore[arg-type]
    assert noted(halved, "gives no rescale intercept: taken as 0.")
    moved = read(RescaleIntercept=-1024)
    assert np.array_equal(moved.values, FILM.astype(float) - 1024)  # type: ignore[arg-type]
    assert noted(moved, "gives no rescale slope: taken as 1.")


def test_colours_of_fewer_bits_than_the_header_says_are_not_black() -> None:
    image = read(RGB.astype(np.uint16))
    assert np.array_equal(image.display, RGB)
    assert noted(image, "The colours use 8 of the 16 bits that the header says.")


def test_bits_above_those_stored_are_left_out_with_a_note() -> None:
    deep = {"BitsStored": 12, "HighBit": 11}
    overlay = FILM | (np.arange(60) > 50).astype(np.uint16) << 15
    image = read(overlay, **deep)
    assert np.array_equal(image.values, FILM)  # type: ignore[arg-type]
    assert noted(image, "Some pixels use more bits than the 12")
    signed = FILM.astype(np.int16) - 2000
    for pixels in (FILM, signed, signed & 0xFFF):  # one without extended signs
        assert not noted(read(pixels, **deep), "more bits")
    assert np.array_equal(read(signed & 0xFFF, **deep).values, signed)  # type: ignore[arg-type]


def test_smallest_and_largest_values_of_the_header_do_not_count() -> None:
    image = read(SmallestImagePixelValue=0, LargestImagePixelValue=9)
    assert np.array_equal(image.display, read().display)


def test_these_attributes_are_read_in_big_endian_files_too() -> None:
    header = {"PixelSpacing": [1, 2], "WindowCenter": 127, "WindowWidth": 255}
    little, big = read(SQUARE, **header), read(SQUARE, ExplicitVRBigEndian, **header)
    assert np.array_equal(little.display, big.display)
    assert little.notes == big.notes
