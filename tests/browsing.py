"""Shared by browser tests: a server as a person starts it, and the usual steps on the page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from app.bench.page import OPENED as OPENED
from app.bench.server import Server, chromium, running

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
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


def chromium_or_skip() -> str:
    """Return the path of a Chromium, or skip (or fail where a browser is required)."""
    found = chromium()
    if not found:
        if os.environ.get("MRRAG_REQUIRE_BROWSER") == "1":
            pytest.fail("MRRAG_REQUIRE_BROWSER is 1 and no Chromium was found.")
        pytest.skip("No Chromium was found; set CHROMIUM to its path.")
    return found


def serve(folders: pytest.TempPathFactory, *options: str) -> Iterator[Server]:
    """Run ``python app.py`` with these options; it leaves no file when it ends."""
    folder = folders.mktemp("served") / "files"
    with running(folder, *options) as server:
        server.wait_for_page()
        yield server
    assert list(folder.iterdir()) == []


def visit(profile: Any, address: str) -> Iterator[Any]:
    """Open the page, which must make no request elsewhere and raise no script error."""
    page = profile.new_page()
    page.set_default_timeout(1000 * SECONDS)
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("websocket", lambda sockets: requests.append(sockets.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.goto(address)
    page.wait_for_selector(OPENED)
    yield page
    page.evaluate("localStorage.clear(); sessionStorage.clear()")
    page.close()
    profile.clear_cookies()
    hosts = {urlsplit(url).hostname for url in requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}
    assert errors == []


def ask(page: Any, question: str | None = None) -> None:
    """Ask, and wait until all answers and maps are there."""
    if question is not None:
        page.fill("#question textarea", question)
    page.click("#ask")
    page.wait_for_selector("#status .done")


def have_answers(page: Any) -> None:
    """Have a case whose answers, maps and influences are there, whichever it is."""
    if page.locator(".answer[data-done=true]").count() < 3:
        pick(page)
        ask(page)
    page.wait_for_selector(".influence")


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
