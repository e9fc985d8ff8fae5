"""How quick the page feels: ``python -m app.bench.page``.

Starts ``python app.py`` as a person would and drives it in a real Chromium (which must be
installed, with the playwright package): seconds until the page is served and the model is
ready, from the click to the evidence, from the click to the third answer with all heatmaps
drawn, and from a slider's move to the evidence ranked again; and how many frames a second
the viewer draws while the window of a 2,048 × 2,048 picture of 16 bits is dragged.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
OPENED = "#status:has-text('Pick a sample case')"
EVIDENCE = "document.querySelectorAll('.evidence-card').length > 0"
# The answers are marked done, and each of the three maps has drawn its cells.
FINISHED = (
    "document.querySelectorAll('.answer[data-done=true]').length === 3 && "
    "['before', 'after', 'difference'].every(m => "
    "document.querySelector(`#map-${m} .heatmaplayer image`))"
)
# Moves the pointer once a frame for three seconds; frames a second, and the viewer's own
# work in each, in milliseconds. The work is timed around what it asks of the browser.
DRAG = """async () => {
  const canvas = document.querySelector('#viewer canvas');
  const box = canvas.getBoundingClientRect();
  const send = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type, {
    pointerId: 1, isPrimary: true, pointerType: 'mouse', bubbles: true,
    button: type === 'pointermove' ? -1 : 0,
    clientX: box.left + box.width / 2 + x, clientY: box.top + box.height / 2 + y}));
  const ask = window.requestAnimationFrame.bind(window);
  const work = [];
  window.requestAnimationFrame = (draw) => ask((time) => {
    const start = performance.now();
    draw(time);
    work.push(performance.now() - start);
  });
  send('pointerdown', 0, 0);
  const times = [];
  const start = performance.now();
  while (performance.now() - start < 3000) {
    send('pointermove', 100 * Math.sin(times.length / 20), 80 * Math.cos(times.length / 17));
    times.push(await new Promise(ask));
  }
  send('pointerup', 0, 0);
  window.requestAnimationFrame = ask;
  const middle = (numbers) => numbers.sort((a, b) => a - b)[numbers.length >> 1];
  const gaps = times.slice(1).map((time, i) => time - times[i]);
  return [1000 / middle(gaps), middle(work)];
}"""

# Moves γ as a drag does, and waits until the cards that it ranks have been drawn.
SLIDE = """async (value) => {
  const block = [...document.querySelectorAll('#settings .block')].find(
    (b) => b.innerText.trim().startsWith('γ') && b.querySelector('input[type=range]'));
  const slider = block.querySelector('input[type=range]');
  const wanted = `question–report, weight ${value.toFixed(2)}`;
  const evidence = document.querySelector('#evidence');
  const drawn = new Promise((done) => new MutationObserver((_, observer) => {
    if (!evidence.querySelector('.legend').textContent.includes(wanted)) return;
    observer.disconnect();
    requestAnimationFrame(() => done(performance.now()));
  }).observe(evidence, {childList: true, subtree: true}));
  const start = performance.now();
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(slider, value);
  slider.dispatchEvent(new Event('input', {bubbles: true}));
  return (await drawn - start) / 1000;
}"""
SLIDES = 9
# gradio takes a slider back to its value if it is moved in the frame or two of its mounting.
MOUNTED_MS = 300
DRAW_SECONDS = 60  # a page that draws nothing for so long is not slow, but stuck


def measure(repeats: int) -> dict[str, Any]:
    """Medians over ``repeats`` visits, seconds, after one visit that is not counted."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        raise SystemExit("No Chromium was found. Install it, or set CHROMIUM to its path.")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        url = f"http://127.0.0.1:{port}/"
        while not _answers(url):
            if server.poll() is not None:
                raise SystemExit("app.py stopped before it served a page.")
            time.sleep(0.05)
        served = time.perf_counter() - start
        assert server.stdout is not None
        while "ready" not in (line := server.stdout.readline()):
            if not line:
                raise SystemExit("app.py stopped before its model was ready.")
        ready = time.perf_counter() - start
        visits, (frames, work) = _visits(chromium, url, repeats + 1)
        visits = visits[1:]
    finally:
        server.terminate()
        server.wait(30)
    return {
        "page_served": served,
        "model_ready": ready,
        "click_to_evidence": statistics.median(v[0] for v in visits),
        "click_to_answers_and_maps": statistics.median(v[1] for v in visits),
        "slider_to_evidence": statistics.median(s for v in visits for s in v[2]),
        "slowest_answers_and_maps": max(v[1] for v in visits),
        "window_drag_frames_a_second": frames,
        "window_drag_work_a_frame": work / 1000,
        "visits": repeats,
    }


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def _drawn(page: Any, script: str, value: float | None = None) -> Any:
    """What the script comes to, which waits for the page to draw."""
    limit = f"new Promise((_, fail) => setTimeout(() => fail('stuck'), {1000 * DRAW_SECONDS}))"
    try:
        return page.evaluate(f"(value) => Promise.race([({script})(value), {limit}])", value)
    except Exception as error:
        if "stuck" not in str(error):
            raise
        what = "a slider's move" if script is SLIDE else "a drag on the picture"
        raise SystemExit(f"The page drew nothing within {DRAW_SECONDS} s of {what}.") from None


def _drag_window(page: Any) -> tuple[float, float]:
    """Frames a second, and milliseconds of work in each, while a large picture is windowed."""
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


def _visits(
    chromium: str, url: str, count: int
) -> tuple[list[tuple[float, float, list[float]]], tuple[float, float]]:
    from playwright.sync_api import sync_playwright

    seconds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        for visit in range(count):
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(url)
            page.wait_for_selector(OPENED)
            cases = page.locator("button.sample").count() - 1  # the last one is declined
            page.click(f"button.sample >> nth={visit % cases}")
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
            seconds.append((evidence, answered, slides))
            page.close()
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(url)
        page.wait_for_selector(OPENED)
        page.bring_to_front()  # a page that is not seen draws no frames
        drag = _drag_window(page)
        browser.close()
    return seconds, drag


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m app.bench.page", description=__doc__)
    parser.add_argument("--visits", type=int, default=7)
    parser.add_argument("--json", action="store_true")
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
