"""A running page, a browser and a loaded pipeline, shared by the tests of one process.

Tests that need a browser are skipped where there is no Chromium; with MRRAG_REQUIRE_BROWSER=1
(as in continuous integration) that is a failure. CHROMIUM names a binary that is not on the path.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from browsing import ARGUMENTS, chromium_or_skip, serve, visit

from app.about import read_about
from app.backend import Backend
from app.bench.server import Server
from mrrag.files import ASSETS
from mrrag.loading import load_pipeline
from mrrag.pipeline import Pipeline


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running ``python app.py``; modules that need other options override it."""
    yield from serve(tmp_path_factory)


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    """The bundled model and knowledge base."""
    return load_pipeline()


@pytest.fixture(scope="session")
def backend(pipeline: Pipeline) -> Backend:
    """The bundled model as the page uses it."""
    loading: Future[Pipeline] = Future()
    loading.set_result(pipeline)
    return Backend(read_about(ASSETS), loading)


# Not of the session: while it is open, asyncio.run is refused to every other test.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    path = chromium_or_skip()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def profile(browser: Any) -> Any:
    """One module's browsing context: the page's scripts are compiled once for all its visits."""
    return browser.new_context(viewport={"width": 1440, "height": 900})


@pytest.fixture(scope="module")
def page(profile: Any, server: Server) -> Iterator[Any]:
    """The module's visit: each test begins with a picture of its own, and leaves no setting."""
    yield from visit(profile, server.address)


@pytest.fixture
def fresh(profile: Any, server: Server) -> Iterator[Any]:
    """A visit of the test's own, for what is left of the test before it would matter."""
    yield from visit(profile, server.address)
