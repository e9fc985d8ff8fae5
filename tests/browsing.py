"""What browser tests share: a server as a person starts it, and the page's usual moves."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
OPENED = "#status:has-text('Pick a sample case')"
SECONDS = 120  # for a machine that is busy with other things
HOSTILE = (
    "<script>window.hurt=1</script><img src=x onerror='window.hurt=1'> {{constructor}} "
    "${window.hurt=1} Is there a pleural effusion?"
)


CANVAS = "#viewer canvas"
READY = "['grey', 'colour'].includes(document.querySelector('.viewer').dataset.state)"
RAMP = (np.arange(240 * 200).reshape(240, 200) % 4096).astype(np.uint16)
WINDOW: dict[str, Any] = {
    "WindowCenter": [2000, 1000],
    "WindowWidth": [3000, 500],
    "WindowCenterWidthExplanation": ["BONE", "LUNG"],
    "BurnedInAnnotation": "NO",
}


def chromium() -> str:
    """Path of a Chromium, or skip (or fail where a browser is required)."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        if os.environ.get("MRRAG_REQUIRE_BROWSER") == "1":
            pytest.fail("MRRAG_REQUIRE_BROWSER is 1 and no Chromium was found.")
        pytest.skip("No Chromium was found; set CHROMIUM to its path.")
    return found


def serve(temporary: Path, *options: str) -> Iterator[str]:
    """Run ``python app.py`` with these options."""
    chromium()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = temporary.parent / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port), *options],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(temporary)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}/"
    try:
        deadline = time.monotonic() + SECONDS
        while not answers(url):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(30)
        assert list(temporary.glob("mr-rag-*")) == []


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def ask(page: Any, question: str | None = None) -> None:
    """Ask, and wait until all answers and maps are there."""
    if question is not None:
        page.fill("#question textarea", question)
    page.click("#ask")
    page.wait_for_selector("#status .done")


def upload(page: Any, folder: Path, data: bytes) -> None:
    """Upload a file and wait until the viewer shows it."""
    file = folder / "upload"
    file.write_bytes(data)
    page.evaluate("document.querySelector('.viewer').dataset.state = 'before'")
    page.set_input_files("#upload input[type=file]", file)
    page.wait_for_function(READY)


def pick(page: Any, sample: int = 0) -> None:
    """Choose a sample case and wait until the viewer shows it."""
    page.evaluate("document.querySelector('.viewer').dataset.state = 'before'")
    page.click(f"button.sample >> nth={sample}")
    page.wait_for_function(READY)
