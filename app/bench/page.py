"""Measure how responsive the page feels: ``python -m app.bench``.

Starts ``python app.py`` and drives it in a real Chromium (which must be installed, with the
playwright package). Measured are the seconds until the page is served and the model is ready,
from the click to the evidence, from the click to the third answer with all heatmaps drawn, and
from a slider's move to the evidence ranked again; and the frames a second that the viewer draws
while the window of a 2,048 × 2,048 picture of 16 bits is dragged.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from app.bench.server import chromium, running

HERE = Path(__file__).parent
DRAG = (HERE / "drag.js").read_text(encoding="utf-8")
SLIDE = (HERE / "slide.js").read_text(encoding="utf-8")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
OPENED = "#status:has-text('Pick a sample case')"
EVIDENCE = "document.querySelectorAll('.evidence-card').length > 0"
# The answers are marked done, and each of the three maps has drawn its cells.
FINISHED = (
    "document.querySelectorAll('.answer[data-done=true]').length === 3 && "
    "['before', 'after', 'difference'].every(m => "
    "document.querySelector(`#map-${m} .heatmaplayer image`))"
)
SLIDES = 9
# gradio resets a slider to its value if it is moved in the frame or two of its mounting.
MOUNTED_MS = 300
DRAW_SECONDS = 60  # a page that draws nothing for so long is not slow, but stuck


class Times(NamedTuple):
    """Seconds of one visit: from the click to the evidence and to the answers, and per slide."""

    evidence: float
    answers: float
    slides: list[float]


def measure(repeats: int) -> dict[str, float]:
    """Return medians over ``repeats`` visits in seconds, after one visit that is not counted."""
    browser = chromium()
    if not browser:
        raise SystemExit("No Chromium was found. Install it, or set CHROMIUM to its path.")
    with tempfile.TemporaryDirectory(prefix="mr-rag-bench-") as folder:
        start = time.perf_counter()
        with running(Path(folder) / "served") as server:
            server.wait_for_page()
            served = time.perf_counter() - start
            server.wait_for()
            ready = time.perf_counter() - start
            visits, (frames, work) = _visits(browser, server.address, repeats + 1)
    visits = visits[1:]
    return {
        "page_served": served,
        "model_ready": ready,
        "click_to_evidence": statistics.median(v.evidence for v in visits),
        "click_to_answers_and_maps": statistics.median(v.answers for v in visits),
        "slider_to_evidence": statistics.median(s for v in visits for s in v.slides),
        "slowest_answers_and_maps": max(v.answers for v in visits),
        "window_drag_frames_a_second": frames,
        "window_drag_work_a_frame": work / 1000,
        "visits": repeats,
    }


def _drawn(page: Any, script: str, value: float | None = None) -> Any:
    """Return the result of a script that waits for the page to draw."""
    limit = f"new Promise((_, fail) => setTimeout(() => fail('stuck'), {1000 * DRAW_SECONDS}))"
    try:
        return page.evaluate(f"(value) => Promise.race([({script})(value), {limit}])", value)
    except Exception as error:
        if "stuck" not in str(error):
            raise
        what = "a slider's move" if script is SLIDE else "a drag on the picture"
        raise SystemExit(f"The page drew nothing within {DRAW_SECONDS} s of {what}.") from None


def _drag_window(page: Any) -> tuple[float, float]:
    """Return frames a second, and ms of work in each, while a large picture is windowed."""
    rows, columns = np.mgrid[0:2048, 0:2048]
    noise = np.random.default_rng(0).normal(0, 60, rows.shape)
    pixels = 8000 + 6000 * np.sin(columns / 90) * np.cos(rows / 130) + noise
    file = io.BytesIO()
    PIL.Image.fromarray(pixels.clip(0, 65535).astype(np.uint16)).save(file, "PNG")
    upload = {"name": "large.png", "mimeType": "image/png", "buffer": file.getvalue()}
    page.set_input_files("#upload input[type=file]", upload)
    page.wait_for_selector(".viewer[data-state=grey]")
    page.wait_for_selector(".model-view img")
    frames, work = _drawn(page, DRAG)
    return float(frames), float(work)


def _visits(chromium: str, address: str, count: int) -> tuple[list[Times], tuple[float, float]]:
    """Return the times of ``count`` visits, and the frames and the work of a dragged window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        times = []
        for visit in range(count):
            page = _open(browser, address)
            times.append(_visit(page, visit))
            page.close()
        page = _open(browser, address)
        page.bring_to_front()  # a page in the background draws no frames
        drag = _drag_window(page)
        browser.close()
    return times, drag


def _open(browser: Any, address: str) -> Any:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(address)
    page.wait_for_selector(OPENED)
    return page


def _visit(page: Any, number: int) -> Times:
    """Ask about a sample case, then move a slider."""
    cases = page.locator("button.sample").count() - 1  # the last one is declined
    page.click(f"button.sample >> nth={number % cases}")
    page.wait_for_selector(".film-frame img")
    clicked = time.perf_counter()
    page.click("#ask")
    page.wait_for_function(EVIDENCE, polling=10)
    evidence = time.perf_counter() - clicked
    page.wait_for_function(FINISHED, polling=10)
    answered = time.perf_counter() - clicked
    page.wait_for_selector("#status .done")
    page.wait_for_timeout(1000)  # the cards are drawn once more, with influence
    page.click("#settings .label-wrap")
    page.wait_for_selector("#settings input[type=range]")
    page.wait_for_timeout(MOUNTED_MS)
    slides = [_drawn(page, SLIDE, 0.1 * (n + 1)) for n in range(SLIDES)]
    return Times(evidence, answered, slides)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m app.bench", description="Measure how responsive the page feels."
    )
    parser.add_argument("--visits", type=int, default=7, help="visits (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    result = measure(arguments.visits)
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        unit = "" if name in ("visits", "window_drag_frames_a_second") else " s"
        print(f"{name.replace('_', ' '):28s}{value:8.{4 if value < 0.1 else 2}f}{unit}")


if __name__ == "__main__":
    main()
