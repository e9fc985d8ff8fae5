"""The page under a sub-path, behind nginx with the lines of docs/the-page.md."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from browsing import OPENED, SECONDS, ask
from pydicom.data import get_testdata_file

from app.bench.load import API
from app.bench.server import ROOT, Server, answers, free_port, running

LINES = re.compile(r"```nginx\n(.*?)```", re.DOTALL)
CONFIGURATION = """\
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/errors;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/unused;
    uwsgi_temp_path {folder}/unused;
    scgi_temp_path {folder}/unused;
    server {{
        listen 127.0.0.1:{port};
        {lines}
    }}
}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served") / "files"
    with running(folder, "--root-path", "/xray", GRADIO_HEARTBEAT_INTERVAL="1") as server:
        server.wait_for_page()
        yield server


@pytest.fixture(scope="module")
def proxied(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's address at nginx."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if not nginx:
        pytest.skip("nginx was not found (in Debian: apt-get install nginx-light).")
    folder = tmp_path_factory.mktemp("proxy")
    folder.parent.chmod(0o755)  # its workers are another user where the tests run as root
    (lines,) = LINES.findall((ROOT / "docs" / "the-page.md").read_text(encoding="utf-8"))
    port = free_port()
    configuration = folder / "nginx.conf"
    lines = lines.replace("127.0.0.1:7860", server.address.removeprefix("http://"))
    configuration.write_text(CONFIGURATION.format(folder=folder, port=port, lines=lines))
    address = f"http://127.0.0.1:{port}/xray"
    process = subprocess.Popen([nginx, "-e", folder / "errors", "-c", configuration])
    try:
        deadline = time.monotonic() + SECONDS
        while not answers(f"{address}/"):
            assert process.poll() is None, (folder / "errors").read_text()
            assert time.monotonic() < deadline, (folder / "errors").read_text()
            time.sleep(0.05)
        server.wait_for()
        yield address
    finally:
        process.terminate()
        process.wait(SECONDS)


@pytest.fixture
def page(browser: Any, proxied: str) -> Iterator[Any]:
    """A visit through the proxy: every request stays under the path, and none is refused."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(1000 * SECONDS)
    outside: list[str] = []
    refused: list[str] = []

    def look(response: Any) -> None:
        url = urlsplit(response.url)
        if url.scheme == "http" and not f"{url.path}/".startswith("/xray/"):
            outside.append(response.url)
        if response.status >= 400:
            refused.append(f"{response.status} {response.url}")

    page.on("response", look)
    page.on("pageerror", lambda error: refused.append(str(error)))
    page.goto(proxied)  # without the slash, as people type it
    page.wait_for_selector(OPENED)
    yield page
    context.close()
    assert outside == []
    assert refused == []


def test_an_upload_is_answered_and_saved_under_a_sub_path(page: Any, server: Server) -> None:
    page.set_input_files("#upload input[type=file]", str(get_testdata_file("CT_small.dcm")))
    page.wait_for_selector(".film-frame img")
    assert server.uploads() == []
    ask(page, "Is there a pleural effusion?")
    assert page.locator(".answer[data-done=true]").count() == 3
    assert page.locator("#map-before .heatmaplayer image").count() == 1
    with page.expect_download() as saving:
        page.get_by_text("Save as JSON").click()
    case = json.loads(Path(saving.value.path()).read_text(encoding="utf-8"))
    assert case["question"] == "Is there a pleural effusion?"


def test_a_large_upload_passes_and_nginx_keeps_nothing_of_it(
    proxied: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    large = httpx.post(
        f"{proxied}/{API}/upload", files={"files": ("a.png", b"\0" * 2**23)}, timeout=SECONDS
    )
    assert large.status_code == 200
    Path(large.json()[0]).unlink()
    kept = [
        file
        for folder in tmp_path_factory.getbasetemp().glob("proxy*")
        for file in folder.rglob("*")
        if file.is_file()
    ]
    assert {file.name for file in kept} <= {"nginx.conf", "pid", "errors"}


def test_nginx_passes_on_each_line_as_it_is_sent(proxied: str) -> None:
    # Signs of life, one a second and too short to fill a buffer. The first comes with the header.
    url = f"{proxied}/{API}/heartbeat/a"
    with httpx.stream("GET", url, timeout=httpx.Timeout(SECONDS, read=10)) as answer:
        signs = (line for line in answer.iter_lines() if line)
        assert [next(signs) for _ in range(3)] == ["data: ALIVE"] * 3
