"""A running page and a browser, for the tests that use both.

Skipped where there is no Chromium; with MRRAG_REQUIRE_BROWSER=1 (as in continuous
integration) that is a failure. CHROMIUM names a binary that is not on the path.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from browsing import ARGUMENTS, OPENED, SECONDS, chromium, serve


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps its temporary files."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def arguments() -> list[str]:
    """What the server is started with."""
    return []


@pytest.fixture(scope="module")
def address(temporary: Path, arguments: list[str]) -> Iterator[str]:
    """A running ``python app.py``."""
    yield from serve(temporary, *arguments)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A fresh visit, which must make no request elsewhere and raise no script error."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(1000 * SECONDS)
    requests: list[str] = []
    broken: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("websocket", lambda sockets: requests.append(sockets.url))
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("dialog", lambda dialog: broken.append(dialog.message))
    page.goto(address)
    page.wait_for_selector(OPENED)
    yield page
    context.close()
    hosts = {urlsplit(url).hostname for url in requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}
    assert broken == []
