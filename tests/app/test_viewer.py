"""What of a picture travels to the viewer, and what is believed of what comes back."""

from __future__ import annotations

import base64
import io
import json
import re
import zlib
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from tiny_case import ABOUT, LEARNT_CONTROLS
from tiny_dicom import NAME, RAMP, RGB, make_dicom, make_picture, make_table, shipped

from app.backend import Backend
from app.sections import payload, viewer
from app.sections.asking import AskInputs, ask
from app.sections.case import choose_frame, model_view, read_upload
from app.sections.visit import Visit
from app.waiting import Room
from mrrag.data.grey import apply_window, window_grey
from mrrag.data.images import read_image
from mrrag.errors import ImageError, MRRAGError, SettingsError
from mrrag.types import Image, Window

DEEP = np.random.default_rng(0).integers(0, 4096, (40, 60)).astype(np.uint16)


def unpacked(sent: dict[str, Any]) -> np.ndarray:
    """The index that a browser makes of a film, by other means than the browser's."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(sent["index"])), np.uint8)
    high, low = planes.reshape(2, sent["height"], sent["width"]).astype(np.uint16)
    index: np.ndarray = np.cumsum((high << 8) + low, axis=1, dtype=np.uint16)
    return index


def table(sent: dict[str, Any]) -> np.ndarray:
    if "values" in sent["table"]:
        return np.frombuffer(base64.b64decode(sent["table"]["values"]), "<f8")
    step = sent["table"]["step"] * np.arange(sent["size"])
    values: np.ndarray = sent["table"]["first"] + step
    return values


def sent_film(image: Image) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(payload.encode(image, "A title", multiframe=False))
    return found


# ---------------------------------------------------------------- to the browser


@pytest.mark.parametrize(
    "values",
    [
        RAMP,
        DEEP,
        DEEP.astype(np.int16) - 2000,
        np.arange(65536, dtype=np.uint16).reshape(256, 256),
        (DEEP * np.float32(0.37) - 5).astype(np.float32),
        DEEP.astype(np.float32) - 1024,
        DEEP.astype(np.uint32) * 700_001,
        np.full((3, 5), 7, np.uint8),
    ],
)
def test_values_arrive_at_full_bit_depth(values: np.ndarray) -> None:
    image = Image(display=np.zeros(values.shape, np.uint8), values=values)
    sent = sent_film(image)
    np.testing.assert_array_equal(table(sent)[unpacked(sent)], values.astype(np.float64))
    assert sent["exact"]


def test_more_levels_than_travel_are_rounded_and_said() -> None:
    values = np.random.default_rng(0).random((300, 300)).astype(np.float32)
    sent = sent_film(Image(display=np.zeros(values.shape, np.uint8), values=values))
    assert not sent["exact"]
    worst = np.abs(table(sent)[unpacked(sent)] - values).max()
    assert worst <= 0.5001 * (values.max() - values.min()) / 65535


def test_padding_has_a_place_of_its_own() -> None:
    padding = DEEP < 100
    image = Image(display=np.zeros(DEEP.shape, np.uint8), values=DEEP, padding=padding)
    sent = sent_film(image)
    index = unpacked(sent)
    np.testing.assert_array_equal(index == sent["size"], padding)
    np.testing.assert_array_equal(table(sent)[index[~padding]], DEEP[~padding])


def test_a_large_picture_travels_as_means_of_whole_blocks() -> None:
    values = np.random.default_rng(0).integers(0, 4096, (10, 4100)).astype(np.uint16)
    sent = sent_film(Image(display=np.zeros(values.shape, np.uint8), values=values))
    assert (sent["step"], sent["width"], sent["height"]) == (3, 1367, 4)
    mean = values[:9, :4098].reshape(3, 3, 1366, 3).mean(axis=(1, 3))
    shown = table(sent)[unpacked(sent)]
    assert np.abs(shown[:3, :1366] - mean).max() <= 0.5


def test_padding_does_not_colour_the_means() -> None:
    values = np.full((4, 4), 100, np.uint16)
    padding = np.zeros((4, 4), bool)
    values[0, 0], padding[0, 0] = 60000, True
    values[2:, 2:], padding[2:, 2:] = 60000, True
    mean, outside = payload.block_mean(values, padding, 2)
    assert outside is not None
    assert outside.tolist() == [[False, False], [False, True]]
    assert mean[~outside].tolist() == [100, 100, 100]


WINDOW = {"WindowCenter": [2000, 1000], "WindowWidth": [3000, 500]}


@pytest.mark.parametrize(
    "data",
    [
        make_dicom(DEEP, **WINDOW),
        make_dicom(DEEP, PhotometricInterpretation="MONOCHROME1", **WINDOW),
        make_dicom(DEEP, VOILUTFunction="SIGMOID", **WINDOW),
        make_dicom(DEEP, VOILUTFunction="LINEAR_EXACT", **WINDOW),
        make_dicom(DEEP, RescaleSlope=0.25, RescaleIntercept=-7, **WINDOW),
        make_dicom(DEEP, PixelPaddingValue=int(DEEP[0, 0]), **WINDOW),
        make_dicom(DEEP),
        make_dicom(RAMP),
        make_dicom(RAMP, VOILUTSequence=make_table([(i * 7) % 256 for i in range(256)]), **WINDOW),
        make_dicom(
            RAMP,
            PhotometricInterpretation="MONOCHROME1",
            VOILUTSequence=make_table([255 - i // 2 for i in range(256)]),
        ),
    ],
)
def test_the_first_look_is_the_servers(data: bytes) -> None:
    image = read_image(data)
    sent = sent_film(image)
    if sent["greys"] is None:
        first = sent["presets"][0]
        window = Window("", first["center"], first["width"])
        greys = window_grey(table(sent), window, sent["function"])
    else:
        greys = np.frombuffer(base64.b64decode(sent["greys"]), np.uint8)
    if sent["inverted"]:
        greys = 255 - greys
    shown = np.append(greys, 0)[unpacked(sent)].astype(int)
    assert np.abs(shown - image.display).max() <= 1


def test_the_header_presets_keep_their_names_and_order() -> None:
    names = {"WindowCenterWidthExplanation": ["BONE", "LUNG"]}
    sent = sent_film(read_image(make_dicom(DEEP, **WINDOW, **names)))
    assert [p["name"] for p in sent["presets"]] == ["BONE", "LUNG", "Automatic", "Full range"]


def test_an_automatic_window_is_offered_and_the_model_reads_it() -> None:
    pixels = DEEP.copy()
    pixels[0, :10] = 65535  # a marker
    image = read_image(make_dicom(pixels, WindowCenter=2000, WindowWidth=3000))
    found = {preset["name"]: preset for preset in sent_film(image)["presets"]}
    assert list(found) == ["Window 1", "Automatic", "Full range"]
    automatic = found["Automatic"]
    assert automatic["width"] < found["Full range"]["width"] / 10
    asked = view(center=automatic["center"], width=automatic["width"])
    seen = viewer.through_window(image, asked)
    window = Window("", automatic["center"], automatic["width"])
    np.testing.assert_array_equal(seen.display, apply_window(image, window).display)
    assert seen.display.std() > 50
    assert f"width {automatic['width']:g}" in seen.notes[-1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_film_stored_as_rgb_has_a_window(kind: str) -> None:
    import PIL.Image

    film = (np.add.outer(np.arange(64), np.arange(80)) + 30).astype(np.uint8)
    image = read_image(make_picture(PIL.Image.fromarray(film).convert("RGB"), kind))
    sent = sent_film(image)
    assert sent["kind"] == "grey"
    assert sent["presets"][0]["name"] == "As stored"
    asked = view(center=100, width=51, invert=True)
    seen = viewer.through_window(image, asked)
    assert (int(seen.display[0, 0]), int(seen.display[-1, -1])) == (255, 0)
    assert "grey, stored as RGB" in viewer.details(image, "A title")


def test_colour_travels_as_it_is() -> None:
    image = read_image(make_dicom(RGB))
    sent = sent_film(image)
    assert sent["kind"] == "colour"
    import PIL.Image

    picture = PIL.Image.open(io.BytesIO(base64.b64decode(sent["picture"].split(",")[1])))
    np.testing.assert_array_equal(np.asarray(picture), image.display)


def test_a_film_says_nothing_of_the_patient() -> None:
    image = read_image(make_dicom(DEEP, **WINDOW))
    assert NAME.split("^")[1] not in payload.encode(image, "A title", multiframe=False)


def test_values_too_large_to_keep_are_not_kept() -> None:
    small = Image(display=RAMP, values=RAMP)
    assert payload.retained(small) is small
    large = np.broadcast_to(np.float32(0), (4096, 4096))  # no memory of its own
    kept = payload.retained(Image(display=RAMP, values=large))
    assert kept.values is None
    assert kept.display is RAMP


# ---------------------------------------------------------------- other frames


@pytest.mark.parametrize(
    "name",
    ["rtdose.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm", "examples_ybr_color.dcm"],
)
def test_other_frames_are_read_from_what_is_kept(name: str) -> None:
    data = shipped(name)
    kept = payload.other_frames(data, read_image(data))
    assert kept
    frames = read_image(data).frames
    for frame in (0, frames - 1):
        original, again = read_image(data, frame=frame), read_image(kept, frame=frame)
        np.testing.assert_array_equal(again.display, original.display)
        assert again.notes == original.notes
        assert again.windows == original.windows
        assert dict(again.tags) == dict(original.tags)


def test_what_is_kept_for_other_frames_names_no_patient() -> None:
    frames = np.stack([DEEP, DEEP[::-1]])
    data = make_dicom(
        frames.tobytes(), NumberOfFrames=2, Rows=40, Columns=60, SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2", BitsAllocated=16, BitsStored=16, HighBit=15,
        PixelRepresentation=0, PatientBirthDate="19700101", InstitutionName="St Secret",
    )  # fmt: skip
    kept = payload.other_frames(data, read_image(data))
    assert kept
    for secret in (b"Secret", b"ID-4711", b"19700101", b"1.2.3\0"):
        assert secret in data
        assert secret not in kept
    np.testing.assert_array_equal(read_image(kept, frame=1).values, DEEP[::-1])


def test_each_frames_own_window_is_kept() -> None:
    groups = []
    for center in (1000, 3000):
        group, window = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 400
        group.FrameVOILUTSequence = [window]
        content = Dataset()
        content.FrameComments = "Secret"
        group.FrameContentSequence = [content]
        groups.append(group)
    data = make_dicom(
        np.stack([DEEP, DEEP]).tobytes(), NumberOfFrames=2, Rows=40, Columns=60,
        SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=16,
        BitsStored=16, HighBit=15, PixelRepresentation=0, PerFrameFunctionalGroupsSequence=groups,
    )  # fmt: skip
    kept = payload.other_frames(data, read_image(data))
    assert [read_image(kept, frame=i).windows[0].center for i in (0, 1)] == [1000, 3000]
    assert b"Secret" not in kept


def test_one_frame_keeps_no_file() -> None:
    data = make_dicom(DEEP)
    assert payload.other_frames(data, read_image(data)) == b""
    assert payload.other_frames(b"not a file", replace(read_image(data), frames=4)) == b""


def test_a_file_too_large_to_keep_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    data = shipped("rtdose.dcm")
    monkeypatch.setattr(payload, "MAX_FRAME_BYTES", len(data) - 1)
    assert payload.other_frames(data, read_image(data)) == b""


def test_a_frame_takes_the_pictures_place() -> None:
    first = read_upload((), shipped("rtdose.dcm"))
    update = choose_frame(first["image"], first["multiframe"], 3)
    assert update["image"].frame == 3
    assert update["image"].sha256 == first["image"].sha256
    assert json.loads(update["payload"])["frame"] == 3
    assert update["viewer"] != first["viewer"]
    assert update["case_state"] is None
    expected = read_image(shipped("rtdose.dcm"), frame=3)
    np.testing.assert_array_equal(update["image"].display, expected.display)


@pytest.mark.parametrize("frame", [-1, 15, 1.5, True, None, "1", {}])
def test_unknown_frames_are_refused(frame: object) -> None:
    first = read_upload((), shipped("rtdose.dcm"))
    update = choose_frame(first["image"], first["multiframe"], frame)
    assert 'class="status problem"' in update["status"]
    assert "image" not in update
    assert "problem" in choose_frame(first["image"], b"", 0)["status"]
    assert "problem" in choose_frame(None, first["multiframe"], 0)["status"]


# ---------------------------------------------------------------- from the browser


def view(**changes: object) -> str:
    return json.dumps({"use": True, "center": 1000, "width": 500, "invert": False} | changes)


@pytest.mark.parametrize(
    "sent",
    [
        "[]", "1", "{}", "not json", "[" * 500, b"{}", 3, {"use": True}, "x" * 2000,
        view(use=1), view(use=None), view(invert="no"), view(center="40"), view(width=None),
        view(center=None), view(center=True), view(center=1e10), view(width=-1e300),
        view().replace("1000", "NaN"), view().replace("500", "Infinity"),
        view().replace("1000", "9" * 400),
    ],
)  # fmt: skip
def test_a_window_that_no_viewer_sends_is_refused(sent: object) -> None:
    with pytest.raises(SettingsError, match="viewer"):
        viewer.parse_view(sent)


@pytest.mark.parametrize(("center", "width"), [(0, 0), (0, 0.5), (0, -3)])
def test_a_window_too_narrow_is_refused(center: float, width: float) -> None:
    image = read_image(make_dicom(DEEP))
    with pytest.raises(ImageError, match="width"):
        viewer.through_window(image, view(center=center, width=width))


@pytest.mark.parametrize("sent", [None, "", view(use=False)])
def test_the_model_reads_the_file_as_it_is_unless_told_otherwise(sent: object) -> None:
    image = read_image(make_dicom(DEEP, **WINDOW))
    assert viewer.through_window(image, sent) is image


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_chosen_window_is_drawn_from_the_values(photometric: str, invert: bool) -> None:
    data = make_dicom(
        DEEP, PhotometricInterpretation=photometric, PixelPaddingValue=int(DEEP[0, 0])
    )
    image = read_image(data)
    chosen = viewer.through_window(image, view(invert=invert))
    plain = np.clip(((DEEP - 999.5) / 499 + 0.5) * 255, 0, 255)
    expected = 255 - plain if (photometric == "MONOCHROME1") != invert else plain
    padding = DEEP[0, 0]
    expected[padding == DEEP] = 0
    assert np.abs(chosen.display - expected).max() <= 0.5 + 1e-9
    assert "centre 1000, width 500" in chosen.notes[-1]
    assert chosen.notes[:-1] == image.notes


def test_a_voi_table_can_be_inverted_by_hand() -> None:
    image = read_image(make_dicom(RAMP, VOILUTSequence=make_table([i // 2 for i in range(256)])))
    asked = view(center=None, width=None)
    assert viewer.through_window(image, asked) is image
    turned = viewer.through_window(image, view(center=None, width=None, invert=True))
    np.testing.assert_array_equal(turned.display, 255 - image.display)
    assert "Inverted" in turned.notes[-1]


def test_a_colour_picture_has_no_window_to_read_through() -> None:
    with pytest.raises(SettingsError, match="colour"):
        viewer.through_window(read_image(make_dicom(RGB)), view())


def test_ask_and_the_models_view_refuse_a_bad_window() -> None:
    loading: Future[Any] = Future()
    loading.set_exception(AssertionError("a refusal does not reach the model"))
    backend = Backend(ABOUT, loading)
    inputs = AskInputs(None, None, read_image(make_dicom(RGB)), "Is it?", window=view())
    (update,) = ask(backend, Room(), Visit(), 1.0, inputs, LEARNT_CONTROLS)
    assert "colour" in update["status"]
    assert model_view(backend, None, "") == {"model_view": ""}


def test_no_other_window_is_close_to_a_threshold() -> None:
    # A linear window of width 1 is a threshold, and not a division by zero.
    window = Window("", 100, 1)
    assert window_grey(np.array([98, 99, 100, 101]), window, "LINEAR").tolist() == [0, 0, 255, 255]


def test_windows_by_table_and_by_pixel_are_equal() -> None:
    values = np.random.default_rng(0).integers(-3000, 3000, (300, 300)).astype(np.int16)
    image = Image(display=np.zeros(values.shape, np.uint8), values=values)
    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        window = Window("", 40.5, 401)
        by_table = apply_window(replace(image, voi_function=function), window).display
        by_pixel = window_grey(values.astype(np.float32), window, function)
        np.testing.assert_array_equal(by_table, by_pixel)


# ---------------------------------------------------------------- heat and markup


def test_the_heatmaps_scale_ignores_the_padding_alone() -> None:
    before = np.zeros((4, 4), np.float32)
    before[0, 0] = 9.0  # above a wide picture there is only padding
    before[1, 1] = 0.5
    after = before.copy()
    after[2, 2] = 0.25
    sent = json.loads(viewer.heat(before, after, 3, (40, 80)))
    assert sent["top"] == 0.5
    assert sent["swing"] == 0.25
    assert sent["grid"] == [4, 4]
    assert sent["layer"] == 3
    np.testing.assert_array_equal(np.reshape(sent["after"], (4, 4)), after)


@pytest.mark.parametrize(
    ("tags", "inverted", "expected"),
    [
        ({"transfer syntax": "x", "burned-in annotation": "NO"}, False, []),
        ({"transfer syntax": "x"}, False, ["Text may be burned in."]),
        ({"transfer syntax": "x", "burned-in annotation": "YES"}, True,
         ["Text may be burned in.", "MONOCHROME1."]),
        ({"format": "PNG"}, False, []),
        ({"format": "JPEG"}, False, ["Lossy compression."]),
        ({"lossy compression": "yes"}, True, ["Lossy compression.", "MONOCHROME1."]),
    ],
)  # fmt: skip
def test_warnings(tags: dict[str, str], inverted: bool, expected: list[str]) -> None:
    assert [head for _, head, _ in payload.warnings(tags, inverted)] == expected


def test_only_technical_attributes_are_shown() -> None:
    tags = {"modality": "DX", "bits stored": "12", "patient": "Secret"}
    markup = viewer.details(Image(display=RAMP, tags=tags), "A title")
    assert "DX" in markup
    assert "12" in markup
    assert "Secret" not in markup


def test_the_frame_is_a_constant_that_no_template_engine_changes() -> None:
    markup = viewer.frame()
    assert "${" not in markup
    assert "{{" not in markup
    for key, _ in viewer.KEYS:
        assert f"<kbd>{key}</kbd>" in markup


def test_the_script_fetches_nothing_and_writes_no_markup() -> None:
    for forbidden in ("http", "innerHTML", "insertAdjacentHTML", "eval(", "import(", "XMLHttp"):
        assert forbidden not in viewer.SCRIPT
    assert re.search(r"\bfetch\(", viewer.SCRIPT) is None


def test_a_hostile_window_name_travels_as_json() -> None:
    name = "</script><img src=x onerror=alert(1)> ${x} {{y}}"[:60]
    names = {"WindowCenterWidthExplanation": [name, "LUNG"]}
    sent = sent_film(read_image(make_dicom(DEEP, **WINDOW, **names)))
    assert sent["presets"][0]["name"] == name


def test_every_shipped_file_gives_a_film_or_a_refusal() -> None:
    folder = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent
    seen = 0
    for file in sorted(folder.glob("*.dcm")):
        try:
            image = read_image(file.read_bytes())
        except MRRAGError:
            continue
        sent = sent_film(image)
        seen += 1
        if sent["kind"] == "grey" and sent["greys"] is None and sent["step"] == 1:
            first = sent["presets"][0]
            window = Window("", first["center"], first["width"])
            greys = window_grey(table(sent), window, sent["function"])
            greys = np.append(255 - greys if sent["inverted"] else greys, 0)
            difference = greys[unpacked(sent)].astype(int) - image.display
            assert np.abs(difference).max() <= 1, file.name
    assert seen > 30
