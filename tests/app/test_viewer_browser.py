"""The viewer in a real Chromium: what a person would miss if it broke."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from browsing import CANVAS, OPENED, RAMP, SECONDS, WINDOW, ask, pick, upload
from tiny_dicom import RGB, make_dicom, make_table, shipped

from app.bench.server import Server
from mrrag.data.grey import apply_window
from mrrag.data.images import read_image
from mrrag.report.pictures import padded_square, patch_box
from mrrag.types import Image, Window

ROOT = Path(__file__).resolve().parents[2]


def settle(page: Any) -> None:
    """Wait for what was asked to be painted."""
    page.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")


def screen(page: Any) -> np.ndarray:
    """The canvas as it is: uint8 [rows, columns, RGB]."""
    settle(page)
    url = page.evaluate(f"document.querySelector('{CANVAS}').toDataURL('image/png')")
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    return np.asarray(picture.convert("RGB"))


def at_actual_size(page: Any, image: Image) -> tuple[np.ndarray, np.ndarray]:
    """What the viewer and the server show where the canvas covers the picture at 1:1."""
    page.click("[data-do=actual]")
    canvas = screen(page)
    rows, columns = image.display.shape[:2]
    y, x = (int(np.floor((c - s) / 2 + 0.5)) for c, s in zip(canvas.shape, (rows, columns)))  # noqa: B905
    display = image.display if image.display.ndim == 3 else image.display[..., None].repeat(3, 2)
    height, width = canvas.shape[:2]
    on_canvas = canvas[max(y, 0) : y + rows, max(x, 0) : x + columns]
    return on_canvas, display[max(-y, 0) : height - y, max(-x, 0) : width - x]


def differ(page: Any, image: Image) -> int:
    """The largest difference in grey levels."""
    shown, expected = at_actual_size(page, image)
    assert shown.shape == expected.shape
    assert min(shown.shape[:2]) > 5
    return int(np.abs(shown.astype(int) - expected).max())


def overlay(page: Any, part: str) -> str:
    """The words in a corner of the picture, which are written when it is painted."""
    settle(page)
    words: str = page.inner_text(part)
    return words


def window_of(page: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.get_attribute(".viewer", "data-view"))
    return found


def middle(page: Any) -> tuple[float, float]:
    page.locator(CANVAS).scroll_into_view_if_needed()
    box = page.locator(CANVAS).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page: Any, by: tuple[float, float], button: str = "left") -> None:
    x, y = middle(page)
    page.mouse.move(x, y)
    page.mouse.down(button=button)
    page.mouse.move(x + by[0] / 2, y + by[1] / 2)
    page.mouse.move(x + by[0], y + by[1])
    page.mouse.up(button=button)
    settle(page)


def pointed_at(page: Any) -> tuple[int, int]:
    """The file pixel under the pointer, as the viewer reads it out."""
    settle(page)
    words = overlay(page, ".hud-value").split()
    return int(words[1]), int(words[3])


# ---------------------------------------------------------------- greys


@pytest.mark.parametrize(
    "data",
    [
        make_dicom(RAMP, **WINDOW),
        make_dicom(RAMP, VOILUTFunction="SIGMOID", **WINDOW),
        make_dicom(RAMP, VOILUTFunction="LINEAR_EXACT", **WINDOW),
        make_dicom(RAMP, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0, **WINDOW),
        make_dicom(RAMP, RescaleSlope=0.25, RescaleIntercept=-300),
        make_dicom(
            RAMP.astype(np.uint8),
            VOILUTSequence=make_table([(i * 3) % 256 for i in range(256)]),
        ),
        make_dicom(RGB.repeat(9, 0).repeat(9, 1)),
        shipped("CT_small.dcm"),
        shipped("MR_small.dcm"),
    ],
    ids=["linear", "sigmoid", "exact", "inverted and padded", "rescaled", "table", "colour", "CT",
         "MR"],
)  # fmt: skip
def test_the_canvas_shows_what_the_server_would(page: Any, tmp_path: Path, data: bytes) -> None:
    upload(page, tmp_path, data)
    assert differ(page, read_image(data)) <= 1


def test_a_left_drag_sets_the_window_that_the_server_would_draw(page: Any, tmp_path: Path) -> None:
    data = make_dicom(RAMP, PhotometricInterpretation="MONOCHROME1", **WINDOW)
    upload(page, tmp_path, data)
    before = window_of(page)
    drag(page, (60, 0))
    wider = window_of(page)
    assert wider["width"] > before["width"]
    assert wider["center"] == before["center"]
    drag(page, (0, 40))
    after = window_of(page)
    assert after["center"] > wider["center"]
    assert after["width"] == pytest.approx(wider["width"])
    assert "by hand" in overlay(page, ".hud-window")
    page.click("[data-do=invert]")
    asked = Window("", after["center"], after["width"])
    assert differ(page, apply_window(read_image(data), asked, invert=True)) <= 1


def test_presets_of_the_header_are_chosen_by_name_and_by_number(page: Any, tmp_path: Path) -> None:
    data = make_dicom(RAMP, **WINDOW)
    upload(page, tmp_path, data)
    assert page.locator(".preset option").all_inner_texts() == [
        "BONE", "LUNG", "Automatic", "Full range", "By hand",
    ]  # fmt: skip
    page.select_option(".preset select", label="LUNG")
    assert (window_of(page)["center"], window_of(page)["width"]) == (1000, 500)
    assert differ(page, apply_window(read_image(data), Window("", 1000, 500))) <= 1
    page.locator(CANVAS).focus()
    page.keyboard.press("1")
    assert window_of(page)["center"] == 2000
    assert "BONE" in overlay(page, ".hud-window")


def test_the_pictures_of_a_zip_are_opened_by_their_thumbnails(
    page: Any, server: Server, tmp_path: Path
) -> None:
    file = io.BytesIO()
    film = PIL.Image.fromarray((RAMP // 16).astype(np.uint8)).convert("RGB")
    jpeg = io.BytesIO()
    film.save(jpeg, "JPEG", quality=95)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("Patient^Secret/2", make_dicom(RAMP, **WINDOW, ViewPosition="PA"))
        archive.writestr("Patient^Secret.jpg", jpeg.getvalue())
        archive.writestr("readme.txt", "a text")
    upload(page, tmp_path, file.getvalue())
    assert "Picture 1 of 2, frontal" in page.inner_text(".film-title")
    assert "1 file was left out" in page.inner_text("#pictures")
    assert "Secret" not in page.content()
    page.click("#pictures button >> nth=1")
    page.wait_for_selector("#status:has-text('Picture 2 of 2. Press Ask.')")
    page.wait_for_selector("#pictures [aria-pressed=true]:has-text('Picture 2 of 2')")
    page.wait_for_function(f"document.querySelector('{CANVAS}').ariaLabel.includes('2 of 2')")
    assert page.locator(".preset option").all_inner_texts()[0] == "As stored"
    assert not page.is_disabled("[data-do=invert]")
    assert server.uploads() == []
    pick(page)
    page.wait_for_selector("#pictures", state="hidden")


def test_hostile_names_of_windows_are_text(page: Any, tmp_path: Path) -> None:
    names = ["<img src=x onerror=window.hurt=1>", "${window.hurt=1} {{constructor}}"]
    upload(page, tmp_path, make_dicom(RAMP, **WINDOW | {"WindowCenterWidthExplanation": names}))
    assert page.locator(".preset option").all_inner_texts()[:2] == names
    assert names[0] in overlay(page, ".hud-window")
    assert page.evaluate("window.hurt") is None


def test_a_colour_picture_says_that_it_has_no_window(page: Any, tmp_path: Path) -> None:
    upload(page, tmp_path, make_dicom(RGB))
    assert page.is_disabled("[data-do=invert]")
    assert page.is_disabled(".preset select")
    assert page.is_disabled(".use input")
    assert "no window" in page.inner_text(".viewer-hint")
    before = screen(page)
    page.locator(CANVAS).focus()
    for key in ("i", "ArrowUp", "ArrowLeft", "1"):
        page.keyboard.press(key)
    np.testing.assert_array_equal(screen(page), before)


def test_a_large_picture_says_that_it_is_averaged(page: Any, tmp_path: Path) -> None:
    file = io.BytesIO()
    PIL.Image.fromarray(np.tile(RAMP, (1, 11))).save(file, "PNG")
    upload(page, tmp_path, file.getvalue())
    assert "2 × 2 pixels" in page.inner_text(".viewer-hint")
    page.mouse.move(*middle(page))
    x, y = pointed_at(page)
    assert abs(x - 1100) <= 2  # pixels of the file, and not of what travelled
    assert abs(y - 120) <= 2


# ---------------------------------------------------------------- zoom, pan, keys, touch


def test_the_wheel_zooms_about_the_pointer(page: Any) -> None:
    pick(page)
    x, y = middle(page)
    page.mouse.move(x + 90, y - 70)
    before, size = pointed_at(page), overlay(page, ".hud-zoom")
    page.mouse.wheel(0, -600)
    page.wait_for_function(f"document.querySelector('.hud-zoom').innerText !== {size!r}")
    after = pointed_at(page)
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) <= 1
    assert int(overlay(page, ".hud-zoom").split()[0]) > int(size.split()[0])


@pytest.mark.parametrize("how", ["middle", "space"])
def test_a_drag_pans(page: Any, how: str) -> None:
    pick(page)
    page.click("[data-do=actual]")
    x, y = middle(page)
    page.mouse.move(x, y)
    before, window = pointed_at(page), window_of(page)
    if how == "space":
        page.locator(CANVAS).focus()
        page.keyboard.down(" ")
        drag(page, (50, -30))
        page.keyboard.up(" ")
    else:
        drag(page, (50, -30), "middle")
    page.mouse.move(x, y)
    after = pointed_at(page)
    assert after == (before[0] - 50, before[1] + 30)
    assert window_of(page) == window


def test_keys_do_what_the_list_says(page: Any) -> None:
    pick(page)
    page.locator(CANVAS).focus()
    first, zoom = window_of(page), overlay(page, ".hud-zoom")

    def press(key: str) -> dict[str, Any]:
        page.keyboard.press(key)
        settle(page)
        return window_of(page)

    assert press("i")["invert"]
    assert page.get_attribute("[data-do=invert]", "aria-pressed") == "true"
    assert not press("I")["invert"]
    assert press("ArrowRight")["width"] > first["width"]
    assert press("ArrowLeft")["width"] == pytest.approx(first["width"])
    assert press("ArrowUp")["center"] < first["center"]
    assert press("ArrowDown")["center"] == pytest.approx(first["center"])
    press("+")
    larger = overlay(page, ".hud-zoom")
    press("-")
    press("-")
    sizes = [int(w.split()[0]) for w in (overlay(page, ".hud-zoom"), zoom, larger)]
    assert sizes == sorted(set(sizes))
    press("i")
    assert press("r") == first
    assert overlay(page, ".hud-zoom") == zoom
    listed = page.inner_text(".keys")
    for key in ("I", "R", "F", "H", "+ −", "← →", "↑ ↓", "[ ]", "1 … 9"):
        assert key in listed


def test_full_screen_comes_and_goes(page: Any) -> None:
    pick(page)
    page.locator(CANVAS).focus()
    small = screen(page).shape
    page.keyboard.press("f")
    full = "document.querySelector('[data-do=full]').getAttribute('aria-pressed') === '{}'"
    page.wait_for_function(full.format("true"))
    page.wait_for_function(f"document.querySelector('{CANVAS}').width > {2 * small[1]}")
    page.keyboard.press("f")
    page.wait_for_function(full.format("false"))


def test_the_viewer_is_reached_by_keyboard_and_shows_it(page: Any) -> None:
    pick(page)
    page.locator("#question textarea").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "CANVAS"
    style = page.evaluate("getComputedStyle(document.activeElement).outline")
    assert "solid" in style
    assert "512 by 512 pixels" in page.get_attribute(CANVAS, "aria-label")


def test_one_finger_sets_the_window_and_two_zoom(browser: Any, server: Server) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = context.new_page()
    page.set_default_timeout(1000 * SECONDS)
    page.goto(server.address)
    page.wait_for_selector(OPENED)
    pick(page)
    x, y = middle(page)
    fingers = context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": px, "y": py, "id": i} for i, (px, py) in enumerate(points)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    first, top = window_of(page), page.evaluate("scrollY")
    touch("touchStart", (x, y))
    for i in range(1, 6):
        touch("touchMove", (x + 8 * i, y - 6 * i))
    touch("touchEnd")
    settle(page)
    after = window_of(page)
    assert after["width"] > first["width"]
    assert after["center"] < first["center"]
    assert page.evaluate("scrollY") == top  # the page stays where it is
    zoom = int(overlay(page, ".hud-zoom").split()[0])
    touch("touchStart", (x - 20, y), (x + 20, y))
    for i in range(1, 6):
        touch("touchMove", (x - 20 - 8 * i, y), (x + 20 + 8 * i, y))
    touch("touchEnd")
    settle(page)
    assert int(overlay(page, ".hud-zoom").split()[0]) > 2 * zoom
    assert window_of(page) == after
    context.close()


# ---------------------------------------------------------------- frames


def test_another_frame_is_shown_and_leaves_no_file(
    page: Any, server: Server, tmp_path: Path
) -> None:
    frames = np.stack([RAMP, RAMP[::-1], RAMP.T.reshape(RAMP.shape)])
    data = make_dicom(
        frames.tobytes(), NumberOfFrames=3, Rows=240, Columns=200, SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2", BitsAllocated=16, BitsStored=16, HighBit=15,
        PixelRepresentation=0, **WINDOW,
    )  # fmt: skip
    upload(page, tmp_path, data)
    assert page.inner_text(".frames output") == "1 / 3"
    page.locator(CANVAS).focus()
    page.keyboard.press("ArrowRight")
    chosen = window_of(page)
    for number in (2, 3):
        page.keyboard.press("]")
        shown = f"document.querySelector('.hud-zoom').innerText.includes('frame {number} of 3')"
        page.wait_for_function(shown)
    assert window_of(page) == chosen  # the same look at the next frame
    expected = apply_window(
        read_image(data, frame=2), Window("", chosen["center"], chosen["width"])
    )
    assert differ(page, expected) <= 1
    assert server.uploads() == []
    page.locator(".frames input").focus()
    page.keyboard.press("Home")
    page.wait_for_function("document.querySelector('.hud-zoom').innerText.includes('frame 1 of 3')")
    assert "Frame 1 of 3" in page.inner_text("#status")


# ---------------------------------------------------------------- the model


def model_picture(page: Any) -> np.ndarray:
    url = page.get_attribute(".model-view img", "src")
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    return np.asarray(picture.convert("RGB"))


def test_the_model_reads_my_window_only_if_i_say_so(fresh: Any) -> None:
    page = fresh
    pick(page)
    page.wait_for_selector(".model-view img")
    assert not page.is_checked(".use input")
    plain = model_picture(page)
    assert plain.shape[0] == plain.shape[1]
    page.locator(CANVAS).focus()
    for _ in range(12):
        page.keyboard.press("ArrowUp")
    ask(page)
    assert "window chosen by hand" not in page.inner_text("#answers")
    np.testing.assert_array_equal(model_picture(page), plain)

    page.check(".use input")
    page.wait_for_function(
        "document.querySelector('.model-view').innerText.includes('through your window')"
    )
    chosen = window_of(page)
    assert chosen["use"]
    brighter = model_picture(page)
    assert brighter.mean() > plain.mean() + 5
    ask(page)
    page.wait_for_function(
        "document.querySelector('#answers').innerText.includes('window chosen by hand')"
    )
    assert f"width {chosen['width']:g}" in page.inner_text("#answers")

    pick(page, 2)  # another picture is read as its file asks
    page.wait_for_function(
        "document.querySelector('.model-view').innerText.includes('as the file asks')"
    )
    assert not page.is_checked(".use input")


def test_a_wide_picture_is_padded_for_the_model(fresh: Any, tmp_path: Path) -> None:
    page = fresh
    upload(page, tmp_path, make_dicom(np.zeros((50, 100), np.uint8), BurnedInAnnotation="NO"))
    page.wait_for_selector(".model-view img")
    seen = model_picture(page).astype(int)
    side = len(seen)
    assert np.abs(seen[side // 2, :, 0]).max() <= 1
    for edge in (seen[2], seen[-3]):
        assert np.abs(edge - [122, 116, 104]).max() <= 1  # the mean colour of CLIP's pictures


# ---------------------------------------------------------------- the heatmap


@pytest.mark.parametrize("shape", [(200, 380), (300, 170)])
def test_the_patch_under_the_pointer_reads_out_its_value(
    page: Any, tmp_path: Path, shape: tuple[int, int]
) -> None:
    rows, columns = shape
    pixels = (np.add.outer(np.arange(rows), np.arange(columns)) % 256).astype(np.uint8)
    upload(page, tmp_path, make_dicom(pixels))
    page.evaluate(
        "window.heat = null; document.querySelector('.viewer')"
        ".addEventListener('heat', (e) => { if (e.detail) window.heat = JSON.parse(e.detail); })"
    )
    plain = screen(page)
    ask(page, "Is there a pleural effusion?")
    page.wait_for_function("window.heat")
    heat = page.evaluate("window.heat")
    # Off until it is asked for.
    assert page.input_value(".heat-tools select") == "off"
    np.testing.assert_array_equal(screen(page), plain)
    page.select_option(".heat-tools select", "after")
    assert (screen(page) != plain).any()
    page.locator(".opacity input").fill("0")
    np.testing.assert_array_equal(screen(page), plain)
    page.locator(".opacity input").fill("100")

    grid = tuple(heat["grid"])
    before, after = (np.reshape(heat[name], grid) for name in ("before", "after"))
    page.wait_for_selector(".influence")  # the last that is drawn, and may move the picture
    page.click("[data-do=actual]")
    x0, y0 = middle(page)
    checked = set()
    for dy in range(-90, 91, 30):
        for dx in range(-80, 81, 20):
            page.mouse.move(x0 + dx, y0 + dy)
            x, y = pointed_at(page)
            words = overlay(page, ".hud-patch").replace("−", "-")
            found = [
                (i, j)
                for i in range(grid[0])
                for j in range(grid[1])
                for box in [patch_box(i, j, grid, rows, columns)]
                if box and box[0] <= y < box[2] and box[1] <= x < box[3]
            ]
            if len(found) != 1:  # a pixel that patches share
                continue
            (i, j) = found[0]
            change = after[i, j] - before[i, j]
            assert words.startswith(f"layer {heat['layer']}, patch {i}, {j}: "), (x, y)
            numbers = [float(w.strip("()")) for w in words.split(": ")[1].split() if w != "→"]
            assert numbers == pytest.approx([before[i, j], after[i, j], change], abs=6e-5)
            checked.add((i, j))
    assert len(checked) > 5
    assert padded_square(*shape)[2] == max(shape)


@pytest.mark.parametrize(("grid", "padded"), [((8, 8), True), ((4, 8), False)])
def test_the_heatmap_lies_on_its_patches(
    page: Any, tmp_path: Path, grid: tuple[int, int], padded: bool
) -> None:
    rows, columns = 160, 320
    upload(page, tmp_path, make_dicom(np.zeros((rows, columns), np.uint8)))
    page.click("[data-do=actual]")
    # A heatmap of one hot patch, as the server would send it.
    values = np.zeros(grid)
    values[3, 5] = 1.0
    heat = {
        "grid": grid, "padded": padded, "layer": 0,
        "before": [0.0] * values.size, "after": values.ravel().tolist(),
        "top": 1.0, "swing": 1.0, "sequential": [[0, "#000000"], [1, "#ffffff"]],
        "diverging": [[0, "#000000"], [1, "#ffffff"]],
    }  # fmt: skip
    page.evaluate(
        "(heat) => document.querySelector('.viewer').dispatchEvent("
        "new CustomEvent('heat', {detail: JSON.stringify(heat)}))",
        heat,
    )
    page.select_option(".heat-tools select", "after")
    page.locator(".opacity input").fill("100")
    canvas = screen(page)[..., 0]
    box = patch_box(3, 5, grid, rows, columns, padded=padded)
    assert box is not None
    y = (canvas.shape[0] - rows) // 2
    x = round((canvas.shape[1] - columns) / 2)
    bright_y, bright_x = np.nonzero(canvas > 128)
    edges = (bright_y.min() - y, bright_x.min() - x, bright_y.max() + 1 - y, bright_x.max() + 1 - x)
    assert np.abs(np.subtract(edges, box)).max() <= 1


def test_another_picture_has_no_heatmap(page: Any) -> None:
    pick(page)
    ask(page)
    page.wait_for_selector(".heat-tools", state="visible")
    page.locator(CANVAS).focus()
    page.keyboard.press("h")
    assert page.input_value(".heat-tools select") == "after"
    pick(page, 3)
    page.wait_for_selector(".heat-tools", state="hidden")
    assert page.input_value(".heat-tools select") == "off"


# ---------------------------------------------------------------- what is said of the file


def test_warnings_are_in_the_picture_and_beside_it(page: Any, tmp_path: Path) -> None:
    upload(page, tmp_path, make_dicom(RAMP, PhotometricInterpretation="MONOCHROME1"))
    flags = overlay(page, ".hud-flags")
    assert "burned-in text?" in flags
    assert "MONOCHROME1" in flags
    said = page.inner_text(".film-warnings")
    assert "could name the patient" in said
    table = page.inner_text(".film-tags")
    for words in ("photometric interpretation", "transfer syntax", "240 x 200", "16"):
        assert words in table
    assert "Secret" not in page.content()
