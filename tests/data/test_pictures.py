"""Pictures as people store them: grey is grey, and each format is read as safely as PNG."""

from __future__ import annotations

import io
import random
import struct
from typing import Any

import numpy as np
import PIL.Image
import pytest
from tiny_dicom import NAME, RAMP, RGB, make_compressed, make_dicom, make_picture

from mrrag.data.grey import apply_window
from mrrag.data.images import read_image
from mrrag.data.limits import MAX_PIXELS
from mrrag.data.pictures import CHROMA_ERROR, grey_if_alike
from mrrag.errors import ImageError
from mrrag.types import Image, Window

FILM = np.random.default_rng(0).integers(0, 256, (48, 40), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 2**16, (24, 20)).astype(np.uint16)
ALIKE = "channels are alike"


def refusal(data: bytes) -> str:
    """The error's text: what came, what is allowed, and what to do."""
    with pytest.raises(ImageError) as caught:
        read_image(data)
    assert str(caught.value).count(". ") == 2
    assert "Secret" not in str(caught.value)
    return str(caught.value)


def smooth(rows: int = 96, columns: int = 80) -> np.ndarray:
    """A picture that lossy formats keep well."""
    return (np.add.outer(np.arange(rows), np.arange(columns)) % 256).astype(np.uint8)


# Grey is grey


def stored_in_colour() -> dict[str, tuple[bytes, int]]:
    """The same film in each way of storing it in colour, and by how much it may differ."""
    film = PIL.Image.fromarray(smooth())
    palette = film.convert("P")
    palette.putpalette([level for level in range(256) for _ in range(3)])
    rgb = np.stack([smooth()] * 3, axis=-1)
    noisy = rgb + np.random.default_rng(2).integers(-1, 2, rgb.shape)  # a scanner's colour noise
    scanned = PIL.Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    jpeg = make_picture(PIL.Image.fromarray(rgb), "JPEG", quality=95)
    return {
        "RGB PNG": (make_picture(PIL.Image.fromarray(rgb)), 0),
        "RGBA PNG": (make_picture(film.convert("RGBA")), 0),
        "palette PNG": (make_picture(palette), 0),
        "RGB JPEG": (make_picture(scanned, "JPEG", quality=95, subsampling=0), 12),
        "poor JPEG": (make_picture(scanned, "JPEG", quality=40), 40),
        "CMYK JPEG": (make_picture(film.convert("RGB").convert("CMYK"), "JPEG", quality=95), 12),
        "lossy WebP": (make_picture(scanned, "WEBP", quality=90), 40),
        "RGB WebP": (make_picture(PIL.Image.fromarray(rgb), "WEBP", lossless=True), 0),
        "RGB TIFF": (make_picture(PIL.Image.fromarray(rgb), "TIFF"), 0),
        "RGB BMP": (make_picture(PIL.Image.fromarray(rgb), "BMP"), 0),
        "RGB DICOM": (make_dicom(rgb), 0),
        "JPEG in DICOM": (make_compressed(jpeg, "1.2.840.10008.1.2.4.50", rgb), 12),
    }


@pytest.mark.parametrize("kind", list(stored_in_colour()))
def test_a_film_stored_in_colour_is_grey_with_its_window(kind: str) -> None:
    data, error = stored_in_colour()[kind]
    image = read_image(data)
    assert image.display.shape == smooth().shape
    assert np.abs(image.display.astype(int) - smooth()).max() <= error
    assert np.array_equal(image.values, image.display)  # type: ignore[arg-type]
    assert not np.shares_memory(image.values, image.display)  # type: ignore[arg-type]
    assert any(ALIKE in note for note in image.notes)
    assert image.tags["colour"].startswith("grey, stored as ")
    seen = apply_window(image, Window("", 100, 51), invert=True)  # what the model is given
    assert {0, 255} <= set(seen.display.ravel().tolist())


def fundus() -> np.ndarray:
    """A red disc on black."""
    y, x = np.mgrid[:64, :64] - 32
    disc = (y**2 + x**2 < 900)[..., None]
    return np.where(disc, np.array([180, 80, 40]), 0).astype(np.uint8)


def doppler() -> np.ndarray:
    """A grey film with a small part in colour."""
    pixels = np.stack([smooth()] * 3, axis=-1)
    pixels[20:26, 30:36] = (40, 60, 200)
    return pixels


@pytest.mark.parametrize("pixels", [fundus(), doppler()])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("JPEG", {"quality": 60}), ("WEBP", {"quality": 60}), ("TIFF", {}), ("BMP", {})],
)
def test_real_colour_is_kept(pixels: np.ndarray, kind: str, options: dict[str, Any]) -> None:
    image = read_image(make_picture(PIL.Image.fromarray(pixels), kind, **options))
    assert image.display.shape == pixels.shape
    assert image.values is None
    assert image.tags["colour"] == "RGB"
    assert not any(ALIKE in note for note in image.notes)
    blue_or_red = np.abs(image.display[..., 0].astype(int) - image.display[..., 2])
    assert blue_or_red.max() > 60


def test_the_limit_of_grey_is_one_pixel() -> None:
    pixels = np.full((4, 4, 3), 100, np.uint8)
    pixels[1, 2, 0] += CHROMA_ERROR
    assert grey_if_alike(Image(pixels)).display.ndim == 2
    pixels[1, 2, 0] += 1
    assert grey_if_alike(Image(pixels)).display is pixels


def test_transparent_grey_over_black_stays_grey() -> None:
    clear = PIL.Image.fromarray(FILM).convert("RGBA")
    clear.putpixel((3, 5), (255, 0, 0, 0))  # colour that nobody sees
    image = read_image(make_picture(clear))
    expected = FILM.copy()
    expected[5, 3] = 0
    assert np.array_equal(image.values, expected)  # type: ignore[arg-type]
    assert "Transparent parts were laid over black." in image.notes
    opaque = read_image(make_picture(PIL.Image.fromarray(FILM).convert("RGBA")))
    assert "Transparent parts were laid over black." not in opaque.notes


# WebP, TIFF and BMP


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("BMP", {}),
        ("WEBP", {"lossless": True, "exact": True}),
    ],
)
def test_each_format_keeps_its_pixels(kind: str, options: dict[str, Any]) -> None:
    grey = read_image(make_picture(PIL.Image.fromarray(FILM), kind, **options))
    colour = read_image(make_picture(PIL.Image.fromarray(RGB), kind, **options))
    assert np.array_equal(grey.values, FILM)  # type: ignore[arg-type]
    assert np.array_equal(grey.display, FILM)
    assert np.array_equal(colour.display, RGB)
    assert colour.values is None
    assert colour.tags["format"] == {"WEBP": "WebP"}.get(kind, kind)
    assert colour.notes == ()


def test_a_lossy_webp_says_so() -> None:
    image = read_image(make_picture(PIL.Image.fromarray(smooth()), "WEBP", quality=80))
    assert "The picture was compressed with loss (WebP)." in image.notes
    assert image.tags["lossy compression"] == "yes"


def as_white_is_zero(data: bytes) -> bytes:
    """The TIFF file with its photometric interpretation changed from 1 to 0."""
    old, new = (struct.pack("<HHIHH", 262, 3, 1, value, 0) for value in (1, 0))
    assert data.count(old) == 1
    return data.replace(old, new)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("pixels", [FILM, DEEP])
def test_tiff_values_are_bright_where_they_are_high(
    pixels: np.ndarray, compression: str | None
) -> None:
    data = make_picture(PIL.Image.fromarray(pixels), "TIFF", compression=compression)
    plain, turned = read_image(data), read_image(as_white_is_zero(data))
    assert plain.values is not None
    assert plain.values.dtype == pixels.dtype
    assert np.array_equal(plain.values, pixels)
    assert np.array_equal(turned.values, np.iinfo(pixels.dtype).max - pixels)  # type: ignore[arg-type]
    assert np.abs(turned.display.astype(int) + plain.display - 255).max() <= 1
    assert any("MinIsWhite" in note for note in turned.notes)
    assert not turned.inverted
    assert plain.tags["bits stored"] == str(8 * pixels.itemsize)


def test_big_endian_and_signed_tiff_values_are_read() -> None:
    signed = np.array([[-1000, 0], [5, 3000]], np.int16)

    def entry(tag: int, kind: int, value: int) -> bytes:
        return struct.pack(">HHI", tag, kind, 1) + struct.pack(
            ">HH" if kind == 3 else ">I", *((value, 0) if kind == 3 else (value,))
        )

    fields = [(256, 3, 2), (257, 3, 2), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 134)]
    fields += [(277, 3, 1), (278, 3, 2), (279, 4, 8), (339, 3, 2)]
    directory = struct.pack(">H", len(fields)) + b"".join(entry(*f) for f in fields) + bytes(4)
    assert 8 + len(directory) == 134
    data = b"MM\0*" + struct.pack(">I", 8) + directory + signed.astype(">i2").tobytes()
    image = read_image(data)
    assert np.array_equal(image.values, signed)  # type: ignore[arg-type]
    assert image.values.dtype == np.int16  # type: ignore[union-attr]
    assert image.display.tolist() == [[0, 64], [64, 255]]


def test_a_tiff_of_several_pages_gives_the_first_and_says_so() -> None:
    pages = [PIL.Image.fromarray(FILM), PIL.Image.fromarray(RAMP)]
    image = read_image(make_picture(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert np.array_equal(image.values, FILM)  # type: ignore[arg-type]
    assert "The file holds several pictures; this is the first." in image.notes


@pytest.mark.parametrize("kind", ["TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :8] = 255
    stored = {1: upright, 3: upright[::-1, ::-1], 6: upright.T[::-1]}[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    picture = PIL.Image.fromarray(np.ascontiguousarray(stored))
    image = read_image(make_picture(picture, kind, exif=exif, **options))
    assert np.array_equal(image.display, upright)
    assert any("EXIF" in note for note in image.notes) == (orientation > 1)
    assert image.tags["rows x columns"] == "16 x 32"


def test_sixteen_bits_a_channel_are_read_as_eight_with_a_note() -> None:
    import imagecodecs

    data = imagecodecs.png_encode(np.stack([DEEP] * 3, axis=-1))
    image = read_image(data)
    assert np.array_equal(image.values, DEEP >> 8)  # type: ignore[arg-type]
    assert "Its 16 bits a channel are read as 8." in image.notes


# Refusals


def animation(kind: str) -> bytes:
    frames = [PIL.Image.new("RGB", (4, 4), shade) for shade in ("black", "white")]
    return make_picture(frames[0], kind, save_all=True, append_images=frames[1:])


def large_webp() -> bytes:
    """A WebP file that says to have 16,383 × 16,383 pixels."""
    data = bytearray(animation("WEBP"))
    data[24:30] = 2 * (16382).to_bytes(3, "little")
    return bytes(data)


def resized(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


TIFF = make_picture(PIL.Image.fromarray(FILM), "TIFF")
TIFF_SIZE = [
    struct.pack("<HHII", 256, 4, 1, columns) + struct.pack("<HHII", 257, 4, 1, rows)
    for columns, rows in ((40, 48), (9000, 60000))
]
BMP = make_picture(PIL.Image.fromarray(FILM), "BMP")
REFUSED = {
    "animated webp": (animation("WEBP"), "animated"),
    "large webp": (large_webp(), f"{MAX_PIXELS:,}"),
    "large bmp": (resized(BMP, struct.pack("<ii", 40, 48), struct.pack("<ii", 60000, 9000)),
                  f"{MAX_PIXELS:,}"),
    "large tiff": (resized(TIFF, TIFF_SIZE[0], TIFF_SIZE[1]), "far too many"),
    "float tiff": (make_picture(PIL.Image.fromarray(DEEP.astype(np.float32)), "TIFF"), "floating"),
    "32-bit tiff": (make_picture(PIL.Image.fromarray(DEEP.astype(np.int32)), "TIFF"), "32 bits"),
    "jpeg in tiff": (
        make_picture(PIL.Image.fromarray(FILM), "TIFF", compression="jpeg"), "another way"),
    "lab tiff": (make_picture(PIL.Image.new("LAB", (8, 8)), "TIFF"), "LAB"),
    "run-length bmp": (resized(BMP, struct.pack("<HHI", 1, 8, 0), struct.pack("<HHI", 1, 8, 1)),
                       "run-length"),
    "text of a bmp": (b"BM " + NAME.encode() * 20, "BMP picture could not"),
    "riff": (b"RIFF\0\0\0\0WAVE" + bytes(60), "sounds"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_read_is_refused_with_what_to_do(kind: str) -> None:
    data, expected = REFUSED[kind]
    assert expected in refusal(data)


FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("WEBP", {"quality": 80}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("BMP", {}),
]


@pytest.mark.parametrize(("kind", "options"), FORMATS)
def test_a_picture_cut_short_or_damaged_is_refused_or_read_and_nothing_else(
    kind: str, options: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    if kind == "TIFF":
        options = options | {"description": NAME, "artist": NAME}
    data = make_picture(PIL.Image.fromarray(FILM), kind, **options)
    for length in (8, 14, 20, 40, len(data) // 2):
        refusal(data[:length])
    for seed in range(40):
        chance = random.Random(seed)
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 4, 16])):
            damaged[chance.randrange(len(data))] = chance.randrange(256)
        try:
            read_image(bytes(damaged))
        except ImageError:
            continue
    # libtiff itself says there what it could not decode, but nothing of the file's text.
    assert "Secret" not in "".join(capfd.readouterr())


def test_only_the_format_of_its_first_bytes_is_tried() -> None:
    inner = make_picture(PIL.Image.fromarray(FILM), "GIF")
    for magic in (b"BM", b"II*\0", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"):
        refusal(magic + inner)
    assert PIL.Image.open(io.BytesIO(inner)).format == "GIF"
